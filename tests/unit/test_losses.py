"""The losses, against formulas written out."""

import math

import pytest
import torch
from tests.plain_losses import written_out
from torch import Tensor
from torch.nn import functional as F

from opencoca.losses import at_least_fp32, captioning_loss, classification_loss, contrastive_loss

TEN = torch.tensor([10.0])


def unit(rows: int, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1).to(dtype)


# --- contrastive ------------------------------------------------------------------------------------------------


def test_contrastive_loss_of_a_case_done_by_hand() -> None:
    """Two orthogonal pairs that match exactly: each direction costs log(1 + e^-scale), and there are two."""
    pair = torch.eye(2)
    loss = contrastive_loss(pair, pair, pair, pair, torch.tensor([3.0]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-3)), rel=1e-6)


def test_contrastive_loss_of_identical_embeddings_is_chance() -> None:
    same = torch.ones(7, 1)
    assert contrastive_loss(same, same, same, same, TEN).item() == pytest.approx(2 * math.log(7), rel=1e-6)


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 3, 4], [0, 1, 0, 2, 1], [3, 3, 3, 3, 9]])
def test_contrastive_loss_equals_the_formula(groups: list[int] | None) -> None:
    image, text = unit(5), unit(5, seed=1)
    ids = None if groups is None else torch.tensor(groups)
    loss = contrastive_loss(image, text, image, text, TEN.double(), group_ids=ids)
    assert loss.item() == pytest.approx(written_out(image, text, 10.0, groups or list(range(5))), rel=1e-12)


def test_the_two_directions_are_told_apart() -> None:
    """One text fits both pictures: texts lose nothing by it, pictures do, and which is which shows in the gradient."""
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = math.log(2) + 0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)))
    assert contrastive_loss(image, text, image, text, torch.ones(1)).item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_one_group_has_nothing_to_learn() -> None:
    image, text = unit(4).requires_grad_(), unit(4, seed=1).requires_grad_()
    loss = contrastive_loss(image, text, image, text, TEN.double(), group_ids=torch.full((4,), 7))
    loss.backward()
    assert loss.item() == 0.0
    for embeddings in (image, text):
        assert embeddings.grad is not None and not embeddings.grad.any(), "neither NaN nor a pull"


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1, 3]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_the_mean_over_ranks_is_the_global_loss_with_its_gradient(ranks: int, groups: list[int] | None) -> None:
    ids = None if groups is None else torch.tensor(groups)
    image, text = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    scale = TEN.double().requires_grad_()
    leaves = (image, text, scale)
    whole = contrastive_loss(image, text, image, text, scale, group_ids=ids)
    expected = torch.autograd.grad(whole, leaves)
    rows = 6 // ranks
    parts = [
        contrastive_loss(image[i : i + rows], text[i : i + rows], image, text, scale, first=i, group_ids=ids)
        for i in range(0, 6, rows)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-12)
    assert ranks == 1 or parts[0].item() != pytest.approx(parts[1].item())
    for got, wanted in zip(torch.autograd.grad(mean, leaves), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_contrastive_loss_computes_in_fp32_at_least(dtype: torch.dtype) -> None:
    image, text = unit(5, dtype=dtype), unit(5, seed=1, dtype=dtype)
    loss = contrastive_loss(image, text, image, text, torch.tensor([100.0], dtype=dtype))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = contrastive_loss(*(x.double() for x in (image, text, image, text)), torch.tensor([100.0]).double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12 if dtype == torch.float64 else 1e-6)


def test_autocast_does_not_reach_the_similarities() -> None:
    image, text = unit(9, dtype=torch.float32), unit(9, seed=1, dtype=torch.float32)
    scale = torch.tensor([100.0])
    plain = contrastive_loss(image, text, image, text, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert (image @ text.T).dtype == torch.bfloat16
        assert torch.equal(contrastive_loss(image, text, image, text, scale), plain)


def test_contrastive_loss_is_finite_at_the_largest_scale() -> None:
    """The worst case there is: every picture opposite to its own text and equal to all others."""
    image = torch.tensor([[1.0], [-1.0]]).requires_grad_()
    text = -image.detach()
    loss = contrastive_loss(image, text, image, text, torch.tensor([100.0]))
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert image.grad is not None and image.grad.isfinite().all()


# --- captioning -------------------------------------------------------------------------------------------------


def some_logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).mul(4).to(dtype)


TARGETS = torch.tensor([[4, 2, 0], [1, 3, 2]])
VALID = torch.tensor([[True, True, False], [True, True, True]])


def test_captioning_loss_is_the_mean_over_all_valid_tokens() -> None:
    """Over tokens, not over captions: 5 tokens, 2 in one caption and 3 in the other."""
    logits = some_logits(2, 3, 5)
    nats = [
        math.log(sum(math.exp(x) for x in logits[b, t].tolist())) - logits[b, t, TARGETS[b, t]].item()
        for b, t in VALID.nonzero().tolist()
    ]
    assert len(nats) == 5
    assert captioning_loss(logits, TARGETS, VALID).item() == pytest.approx(sum(nats) / 5, rel=1e-12)
    picked = captioning_loss(logits[VALID], TARGETS[VALID])
    assert picked.item() == pytest.approx(sum(nats) / 5, rel=1e-12)
    for count in (20, torch.tensor(20)):
        assert captioning_loss(logits, TARGETS, VALID, count).item() == pytest.approx(sum(nats) / 20, rel=1e-12)
        assert captioning_loss(logits[VALID], TARGETS[VALID], None, count).item() == pytest.approx(sum(nats) / 20)


def test_ranks_that_know_the_global_token_count_add_up_to_the_global_loss() -> None:
    logits = some_logits(2, 3, 5).requires_grad_()
    whole = captioning_loss(logits, TARGETS, VALID)
    parts = sum(captioning_loss(logits[i : i + 1], TARGETS[i : i + 1], VALID[i : i + 1], 5) for i in (0, 1))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    got, wanted = torch.autograd.grad(parts, logits)[0], torch.autograd.grad(whole, logits)[0]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_padding_has_no_gradient_and_no_say() -> None:
    logits = some_logits(2, 3, 5).requires_grad_()
    captioning_loss(logits, TARGETS, VALID).backward()
    assert logits.grad is not None
    assert ((logits.grad != 0).any(dim=-1) == VALID).all()
    other = torch.where(VALID, TARGETS, 4)
    assert captioning_loss(logits, other, VALID) == captioning_loss(logits, TARGETS, VALID)


@pytest.mark.parametrize("way", ["mask", "picked"])
def test_a_batch_of_padding_costs_nothing(way: str) -> None:
    logits = some_logits(2, 3, 5).requires_grad_()
    nothing = torch.zeros_like(VALID)
    if way == "mask":
        loss = captioning_loss(logits, TARGETS, nothing)
    else:
        loss = captioning_loss(logits[nothing], TARGETS[nothing])
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_captioning_loss_computes_in_fp32_at_least(dtype: torch.dtype) -> None:
    logits = some_logits(2, 3, 5, dtype=dtype)
    loss = captioning_loss(logits, TARGETS, VALID)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = captioning_loss(logits.double(), TARGETS, VALID).item()
    assert loss.item() == pytest.approx(exact, rel=1e-12 if dtype == torch.float64 else 1e-6)


# --- classification ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_classification_loss_equals_the_formula(smoothing: float) -> None:
    """-sum of p(y) log q(y), with p = 1 - smoothing on the label plus smoothing spread over all classes."""
    logits, labels = some_logits(3, 4), [2, 0, 3]
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        p = [(1 - smoothing) * (c == label) + smoothing / 4 for c in range(4)]
        total -= sum(p_c * (x - log_sum) for p_c, x in zip(p, row, strict=True))
    loss = classification_loss(logits, torch.tensor(labels), smoothing)
    assert loss.item() == pytest.approx(total / 3, rel=1e-12)


def test_classification_loss_computes_in_fp32_at_least() -> None:
    labels = torch.tensor([2, 0, 3])
    logits = some_logits(3, 4, dtype=torch.bfloat16)
    exact = classification_loss(logits.double(), labels, 0.1)
    loss = classification_loss(logits, labels, 0.1)
    assert (exact.dtype, loss.dtype) == (torch.float64, torch.float32)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_at_least_fp32_leaves_wider_types_alone() -> None:
    wide = torch.ones(2, dtype=torch.float64)
    assert at_least_fp32(wide) is wide
    assert at_least_fp32(wide.half()).dtype == torch.float32
