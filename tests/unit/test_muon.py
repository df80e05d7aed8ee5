"""Muon: its direction is the momentum made orthogonal, and its step is the documented one."""

from __future__ import annotations

import pytest
import torch

from opencoca.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (24, 40), (24, 24)])
def test_directions_are_near_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    """For singular values within a factor of ten the result is the polar factor, to the stated 7%."""
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(3, *shape, generator=generator), full_matrices=False)
    spectrum = torch.linspace(1.0, 0.2, min(shape))
    directions = orthogonalise(u * spectrum @ vt)
    values = torch.linalg.svdvals(directions)
    assert values.min() > 0.93 and values.max() < 1.05
    torch.testing.assert_close(directions, u @ vt, atol=0.07, rtol=0)


def test_scale_does_not_matter() -> None:
    gradient = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalise(1e-3 * gradient), orthogonalise(gradient), atol=1e-3, rtol=0)


def test_a_zero_gradient_gives_no_direction() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


def test_a_step_is_decay_then_the_direction_scaled_by_shape() -> None:
    weight = torch.nn.Parameter(torch.randn(32, 8, generator=torch.Generator().manual_seed(2)))
    before, gradient = weight.detach().clone(), torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    weight.grad = gradient.clone()
    Muon([{"params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    momentum = 0.1 * gradient
    direction = orthogonalise(torch.lerp(gradient, momentum, 0.9)[None])[0]
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * 2.0 * direction)


def test_matrices_of_one_shape_do_not_mix() -> None:
    """Updating two matrices together equals updating each alone."""
    generator = torch.Generator().manual_seed(4)
    start = [torch.randn(6, 10, generator=generator) for _ in range(2)]
    gradients = [torch.randn(6, 10, generator=generator) for _ in range(2)]

    def trained(groups: list[list[int]]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(tensor.clone()) for tensor in start]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        for group in groups:
            Muon([{"params": [weights[i] for i in group]}], lr=0.1, momentum=0.9, weight_decay=0.0).step()
        return [weight.detach() for weight in weights]

    for together, alone in zip(trained([[0, 1]]), trained([[0], [1]]), strict=True):
        torch.testing.assert_close(together, alone)
