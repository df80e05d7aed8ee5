"""Adafactor against its paper's formulas, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opencoca.train.adafactor import MIN_FACTORED, Adafactor

LR, BETA1, BETA2, DECAY, EPSILON = 0.05, 0.9, 0.97, 0.1, 1e-30


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> list[Tensor]:
    """Gradients that grow, so that updates are larger than 1 and clipped."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5**i for i in range(steps)]


def trained(start: Tensor, steps: list[Tensor], clip: float, min_factored: int) -> tuple[Tensor, Adafactor]:
    weight = torch.nn.Parameter(start.clone())
    optimizer = Adafactor([{"params": [weight]}], LR, BETA1, BETA2, DECAY, clip, min_factored)
    for gradient in steps:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer


def by_hand(start: Tensor, steps: list[Tensor], clip: float, factored: bool) -> tuple[list[list[float]], list[float]]:
    """The same for a matrix, with plain numbers, and each step's root mean square before it is clipped.

    Second moments are means over all past steps with weights beta2 ** age, which is what Adam's correction makes them.
    """
    rows, columns = start.shape
    weight = start.tolist()
    momentum = [[0.0] * columns for _ in range(rows)]
    sizes = []
    for now in range(len(steps)):
        ages = [BETA2 ** (now - past) for past in range(now + 1)]

        def mean_square(i: int, j: int, ages: list[float] = ages) -> float:
            squares = [float(steps[past][i, j]) ** 2 + EPSILON for past in range(len(ages))]
            return sum(age * square for age, square in zip(ages, squares, strict=True)) / sum(ages)

        v = [[mean_square(i, j) for j in range(columns)] for i in range(rows)]
        if factored:  # Algorithm 4: the outer product of row sums and column sums, over the sum of all
            row_sums = [sum(v[i]) for i in range(rows)]
            column_sums = [sum(v[i][j] for i in range(rows)) for j in range(columns)]
            v = [[row_sums[i] * column_sums[j] / sum(row_sums) for j in range(columns)] for i in range(rows)]
        update = [[float(steps[now][i, j]) / math.sqrt(v[i][j]) for j in range(columns)] for i in range(rows)]
        size = math.sqrt(sum(u * u for line in update for u in line) / (rows * columns))
        sizes.append(size)
        for i in range(rows):
            for j in range(columns):
                clipped = update[i][j] / max(1.0, size / clip)
                momentum[i][j] = BETA1 * momentum[i][j] + (1 - BETA1) * clipped
                weight[i][j] -= LR * DECAY * weight[i][j] + LR * momentum[i][j]
    return weight, sizes


@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("factored", [True, False])
def test_steps_are_the_papers(factored: bool, clip: float) -> None:
    start, steps = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).double(), gradients((5, 7), 6)
    expected, sizes = by_hand(start, steps, clip, factored)
    weight, _ = trained(start, steps, clip, min_factored=5 if factored else 6)
    assert max(sizes) > 1.05, "nothing was there to clip"
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_vectors_are_trained_like_matrices_of_one_row() -> None:
    start, steps = torch.linspace(-1, 1, 9, dtype=torch.float64), gradients((9,), 4)
    expected, _ = by_hand(start[None], [step[None] for step in steps], 1.0, factored=False)
    weight, _ = trained(start, steps, 1.0, min_factored=1)
    torch.testing.assert_close(weight, torch.tensor(expected[0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_large_matrices_alone_are_factored() -> None:
    for shape, names in {
        (MIN_FACTORED, MIN_FACTORED + 1): {"momentum", "row", "column", "step"},
        (MIN_FACTORED - 1, 4 * MIN_FACTORED): {"momentum", "square", "step"},
        (4 * MIN_FACTORED,): {"momentum", "square", "step"},
    }.items():
        _, optimizer = trained(torch.zeros(shape), [torch.ones(shape)], 1.0, MIN_FACTORED)
        (state,) = optimizer.state.values()
        assert set(state) == names
        if "row" in state:
            assert (state["row"].shape, state["column"].shape) == (shape[:1], shape[1:])


def test_a_gradient_of_rank_one_is_divided_out() -> None:
    """Factored moments are exact for such a matrix: only signs remain, times 1 - beta1 in the first step."""
    gradient = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.1, 10.0])).double()
    weight, _ = trained(torch.zeros(3, 2).double(), [gradient], math.inf, min_factored=2)
    torch.testing.assert_close(weight, -LR * (1 - BETA1) * gradient.sign(), rtol=1e-6, atol=0)


def test_rows_that_get_no_gradient_only_decay() -> None:
    """A token that no caption holds: nothing is divided by 0."""
    gradient = torch.ones(4, 4).double()
    gradient[2] = 0
    weight, _ = trained(torch.ones(4, 4).double(), [gradient, gradient], 1.0, min_factored=2)
    torch.testing.assert_close(weight[2], torch.full((4,), (1 - LR * DECAY) ** 2, dtype=torch.float64))
    assert (weight[[0, 1, 3]] < weight[2]).all()


def test_beta2_of_zero_takes_the_newest_square_alone() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = Adafactor([{"params": [weight]}], 1.0, 0.0, 0.0, 0.0, math.inf)
    for gradient in (torch.tensor([1.0, 2.0, -3.0]), torch.tensor([-5.0, 7.0, 9.0])):
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.0, -2.0, 0.0]))


def test_parameters_without_a_gradient_stay() -> None:
    still, moved = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    moved.grad = torch.ones(3)
    optimizer = Adafactor(
        [{"params": [still, moved]}, {"params": [torch.nn.Parameter(torch.ones(2))]}], 0.1, 0.9, 0.99, 0.1
    )
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(3)) and still not in optimizer.state
    assert (moved < 1).all()
