"""Drawing tokens: the right frequencies, the right tokens kept, and a chance that depends on nothing but its name."""

import math

import pytest
import torch
from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.infer.sampling import FIRST_TOP, sample


def options(**changes) -> GenerationConfig:
    return GenerationConfig(**{"beams": 1, "temperature": 1.0} | changes)


def frequencies(logits_V: Tensor, config: GenerationConfig, draws: int = 20_000) -> Tensor:
    drawn = sample(logits_V.expand(draws, -1), [(0, i) for i in range(draws)], config)
    return drawn.bincount(minlength=len(logits_V)).double() / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    logits_V = torch.tensor([2.0, 0.0, -1.0, 1.0, -math.inf, 0.5])
    expected = (logits_V.double() / temperature).softmax(dim=0)
    found = frequencies(logits_V, options(temperature=temperature))
    deviation = (expected * (1 - expected) / 20_000).sqrt()
    assert ((found - expected).abs() <= 4 * deviation).all()
    assert found[4] == 0


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"top_k": 2}, {0, 3}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.1}, {0}),
        ({"top_p": 0.5}, {0, 3}),
        ({"top_p": 0.7}, {0, 3}),
        ({"top_p": 0.71}, {0, 3, 1}),
        ({"top_k": 2, "top_p": 0.58}, {0, 3}),
        ({"top_k": 2, "top_p": 0.57}, {0}),
        ({"top_p": 0.5, "temperature": 1e-3}, {0}),
    ],
)
def test_what_is_kept(changes: dict, kept: set[int]) -> None:
    """top_p counts within top_k: 0.4 of 0.7 are 0.571."""
    logits_V = torch.tensor([0.4, 0.15, 0.05, 0.3, 0.1]).log()
    found = frequencies(logits_V, options(**changes), draws=3000)
    assert set(found.nonzero()[:, 0].tolist()) == kept


def test_a_flat_distribution_keeps_as_many_as_top_p_needs() -> None:
    """More than are sorted at first."""
    vocab = 8 * FIRST_TOP
    logits, draws = torch.zeros(2500, vocab), [(i,) for i in range(2500)]
    half, whole = (len(set(sample(logits, draws, config).tolist())) for config in (options(top_p=0.5), options()))
    assert vocab // 4 < half <= vocab // 2 < whole


def test_the_batch_does_not_matter() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    logits[3] = 0.0  # needs a longer top than the others
    draws = [(1, key, 0, 5) for key in range(6)]
    for config in (options(), options(top_k=50), options(top_p=0.8), options(top_k=20, top_p=0.5)):
        together = sample(logits, draws, config).tolist()
        assert together == [sample(logits[i : i + 1], draws[i : i + 1], config).item() for i in range(6)]


def test_every_part_of_the_name_matters() -> None:
    logits = torch.zeros(1, 1000)
    names = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 11), (0, 0, 1, 1)]
    drawn = [sample(logits, [name], options()).item() for name in names]
    assert len(set(drawn)) == len(drawn)
    assert drawn == [sample(logits, [name], options()).item() for name in names]


def test_neighbouring_draws_are_independent() -> None:
    """Positions of one caption, and captions of one picture: pairs fill the square evenly."""
    for step in ((0, 1), (1, 0)):
        names = [(7, i, 0, 0) for i in range(8000)]
        others = [(7, i, step[0], step[1]) for i in range(8000)]
        one, other = (sample(torch.zeros(8000, 4), some, options()) for some in (names, others))
        counts = (4 * one + other).bincount(minlength=16).double()
        assert ((counts - 500).abs() < 4.5 * 500**0.5).all()
