"""What must hold of the losses for every batch, grouping and cut into ranks."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from opencoca.losses import captioning_loss, classification_loss, contrastive_loss

SOME = settings(max_examples=40)
EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared between cores, four times over where something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    image, text = (F.normalize(random(count, 5, seed=seed + i), dim=-1) for i in (0, 1000))
    return image, text


GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=8)
SCALES = st.floats(1.0, 100.0)
SEEDS = st.integers(0, 99)


@SOME
@given(groups=GROUPS, scale=SCALES, seed=SEEDS, data=st.data())
def test_no_cut_into_ranks_changes_the_loss_or_its_gradient(
    groups: list[int], scale: float, seed: int, data: st.DataObject
) -> None:
    """Ranks of any sizes: the mean over pairs is the sum over ranks, weighted by their pairs."""
    count = len(groups)
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    image, text = (x.requires_grad_() for x in pairs(count, seed))
    factor = torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor(groups)
    whole = contrastive_loss(image, text, image, text, factor, group_ids=ids)
    parts = sum(
        contrastive_loss(image[a:b], text[a:b], image, text, factor, first=a, group_ids=ids) * (b - a) / count
        for a, b in zip([0, *cuts], [*cuts, count], strict=True)
    )
    assert isinstance(parts, Tensor)
    torch.testing.assert_close(parts, whole, **EXACT)
    leaves = (image, text, factor)
    torch.testing.assert_close(torch.autograd.grad(parts, leaves), torch.autograd.grad(whole, leaves), **EXACT)


@SOME
@given(groups=GROUPS, scale=SCALES, seed=SEEDS)
def test_contrastive_loss_is_symmetric_finite_and_not_negative(groups: list[int], scale: float, seed: int) -> None:
    image, text = pairs(len(groups), seed)
    factor, ids = torch.tensor([scale]), torch.tensor(groups)
    loss = contrastive_loss(image, text, image, text, factor, group_ids=ids)
    assert loss.isfinite() and loss >= 0
    assert (loss == 0) == (len(set(groups)) == 1)
    torch.testing.assert_close(contrastive_loss(text, image, text, image, factor, group_ids=ids), loss, **EXACT)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    moved = contrastive_loss(image[order], text[order], image[order], text[order], factor, group_ids=ids[order])
    torch.testing.assert_close(moved, loss, **EXACT)


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
