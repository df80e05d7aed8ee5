"""Ranks from one float32 pass equal those of the exact ranking, ties and near ties included."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from opencoca.eval.ranks import ranks_both_ways
from opencoca.ranking import ranks_of_targets


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pictures=st.integers(1, 40),
    more=st.integers(0, 60),
    width=st.sampled_from([2, 5, 64]),
    coarse=st.booleans(),
    block=st.sampled_from([5, 13, 2048]),
)
def test_ranks_are_those_of_the_exact_ranking(seed, pictures, more, width, coarse, block) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(pictures), torch.randint(0, pictures, (more,), generator=generator)])
    images, texts = (torch.randn(n, width, generator=generator) for n in (pictures, len(targets)))
    if coarse:  # few different vectors, so that scores tie, and differ in their last bits
        images, texts = images.sign() + 1e-7 * images, texts.sign()
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    i2t, t2i = ranks_both_ways(images, texts, targets, block)
    owned = [(targets == i).nonzero()[:, 0].tolist() for i in range(pictures)]
    assert i2t.tolist() == ranks_of_targets(images, texts, owned).tolist()
    assert t2i.tolist() == ranks_of_targets(texts, images, targets).tolist()
