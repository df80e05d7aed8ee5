"""What must hold of the losses for every batch, grouping and cut into ranks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import plain_losses
from tests.plain_losses import value_and_gradients
from torch import Tensor
from torch.nn import functional as F

from opencoca.losses import (
    captioning_loss,
    classification_loss,
    contrastive_loss,
    linear_captioning_loss,
    sigmoid_loss,
)

SOME = settings(max_examples=40)
EXACT = {"rtol": 0.0, "atol": 1e-12}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    image, text = (F.normalize(random(count, 5, seed=seed + i), dim=-1) for i in (0, 1000))
    return image, text


GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=8)
SCALES = st.floats(1.0, 100.0)
SEEDS = st.integers(0, 99)
CHUNKS = st.integers(0, 9)
LOSSES = {"softmax": (contrastive_loss, plain_losses.contrastive), "sigmoid": (sigmoid_loss, plain_losses.sigmoid)}
KINDS = sorted(LOSSES)


def factors(kind: str, scale: float) -> list[Tensor]:
    """The scale, and the sigmoid loss's bias."""
    values = [scale] if kind == "softmax" else [scale, -10.0]
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@SOME
@given(
    groups=GROUPS,
    scale=SCALES,
    seed=SEEDS,
    chunk=CHUNKS,
    spread=st.booleans(),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_no_cut_into_ranks_or_chunks_changes_the_loss_or_its_gradient(
    groups: list[int], scale: float, seed: int, chunk: int, spread: bool, kind: str, data: st.DataObject
) -> None:
    """Ranks of any sizes: the mean over pairs is the sum over ranks, weighted by their pairs."""
    count = len(groups)
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    ours, plain = LOSSES[kind]
    settings = {"group_ids": torch.tensor(groups), "multi_positive": spread}

    def of_ranks(image: Tensor, text: Tensor, *factors: Tensor) -> Tensor:
        parts = [
            (b - a) / count * ours(image[a:b], text[a:b], image, text, *factors, first=a, chunk=chunk, **settings)
            for a, b in zip([0, *cuts], [*cuts, count], strict=True)
        ]
        return torch.stack(parts).sum()

    leaves = [x.requires_grad_() for x in (*pairs(count, seed), *factors(kind, scale))]
    of_ranks_, alone, written_out = (
        value_and_gradients(loss, leaves)
        for loss in (
            of_ranks,
            lambda image, text, *factors: ours(image, text, image, text, *factors, chunk=chunk, **settings),
            lambda image, text, *factors: plain(image, text, image, text, *factors, **settings),
        )
    )
    torch.testing.assert_close(of_ranks_, written_out, **EXACT)
    torch.testing.assert_close(alone, written_out, **EXACT)


@SOME
@given(groups=GROUPS, seed=SEEDS, chunk=CHUNKS, spread=st.booleans(), kind=st.sampled_from(KINDS))
def test_the_order_of_pairs_matters_to_no_loss(
    groups: list[int], seed: int, chunk: int, spread: bool, kind: str
) -> None:
    image, text = pairs(len(groups), seed)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(groups)
    loss, moved = (
        LOSSES[kind][0](i, t, i, t, *factors(kind, 20.0), group_ids=g, multi_positive=spread, chunk=chunk)
        for i, t, g in ((image, text, ids), (image[order], text[order], ids[order]))
    )
    torch.testing.assert_close(moved, loss, **EXACT)


@SOME
@given(positions=st.integers(0, 9), tokens=st.integers(1, 7), chunk=CHUNKS, cut=st.integers(0, 9), seed=SEEDS)
def test_no_cut_changes_the_loss_without_logits(positions: int, tokens: int, chunk: int, cut: int, seed: int) -> None:
    """However positions are spread over chunks and ranks that know the global count."""
    decoded, weight = (
        random(positions, 3, seed=seed).requires_grad_(),
        random(tokens, 3, seed=seed + 1).requires_grad_(),
    )
    targets = torch.randint(0, tokens, (positions,), generator=torch.Generator().manual_seed(seed))

    def of_ranks(decoded: Tensor, weight: Tensor) -> Tensor:
        parts = [
            linear_captioning_loss(decoded[part], weight, targets[part], positions, chunk)
            for part in (slice(cut), slice(cut, None))
        ]
        return torch.stack(parts).sum()

    plain = value_and_gradients(lambda d, w: captioning_loss(d @ w.T, targets), (decoded, weight))
    torch.testing.assert_close(value_and_gradients(of_ranks, (decoded, weight)), plain, **EXACT)


@SOME
@given(groups=GROUPS, scale=SCALES, seed=SEEDS)
def test_contrastive_loss_is_symmetric_finite_and_not_negative(groups: list[int], scale: float, seed: int) -> None:
    image, text = pairs(len(groups), seed)
    factor, ids = torch.tensor([scale]), torch.tensor(groups)
    loss = contrastive_loss(image, text, image, text, factor, group_ids=ids)
    assert loss.isfinite() and loss >= 0
    assert (loss == 0) == (len(set(groups)) == 1)
    torch.testing.assert_close(contrastive_loss(text, image, text, image, factor, group_ids=ids), loss, **EXACT)


@SOME
@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=8), seed=SEEDS)
def test_forgiving_a_group_never_costs_more(groups: list[int], seed: int) -> None:
    image, text = pairs(len(groups), seed)
    factor = torch.tensor([10.0])
    strict = contrastive_loss(image, text, image, text, factor)
    grouped = contrastive_loss(image, text, image, text, factor, group_ids=torch.tensor(groups))
    if len(set(groups)) == len(groups):
        assert grouped == strict
    else:
        assert grouped < strict


@SOME
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    seed=SEEDS,
    cut=st.integers(0, 5),
)
def test_captioning_loss_weighs_every_token_alike(lengths: list[int], seed: int, cut: int) -> None:
    """However captions are spread over rows, ranks and padding, only the tokens count."""
    logits = random(len(lengths), 5, 7, seed=seed).requires_grad_()
    targets = torch.randint(0, 7, (len(lengths), 5), generator=torch.Generator().manual_seed(seed))
    valid = torch.arange(5) < torch.tensor(lengths)[:, None]
    whole = captioning_loss(logits, targets, valid)
    tokens = sum(lengths)
    expected = -sum(logits[b, t].log_softmax(-1)[targets[b, t]].item() for b, n in enumerate(lengths) for t in range(n))
    assert whole.item() == pytest.approx(expected / max(1, tokens), abs=1e-12)
    first, second = (
        captioning_loss(logits[part], targets[part], valid[part], tokens) for part in (slice(cut), slice(cut, None))
    )
    torch.testing.assert_close(first + second, whole, **EXACT)
    picked = captioning_loss(logits[valid], targets[valid])
    torch.testing.assert_close(picked, whole, **EXACT)
    ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (first + second, picked))
    torch.testing.assert_close(ours, theirs, **EXACT)


@SOME
@given(classes=st.integers(2, 9), smoothing=st.floats(0.0, 0.9), seed=SEEDS)
def test_classification_loss_is_least_at_the_smoothed_labels(classes: int, smoothing: float, seed: int) -> None:
    """Its minimum is the entropy of the smoothed labels, reached where the prediction equals them."""
    labels = torch.tensor([seed % classes])
    wanted = torch.full((1, classes), smoothing / classes, dtype=torch.float64)
    wanted[0, labels] += 1 - smoothing
    entropy = -sum(p * math.log(p) for p in wanted[0].tolist() if p > 0)
    logits = random(1, classes, seed=seed)
    best = classification_loss(wanted.clamp(min=1e-300).log(), labels, smoothing)
    assert best.item() == pytest.approx(entropy, abs=1e-9)
    assert classification_loss(logits, labels, smoothing).item() > entropy - 1e-9
