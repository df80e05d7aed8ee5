"""The losses whose large matrix never exists as a whole, against the plain ones."""

import math

import pytest
import torch
from tests import plain_losses
from tests.plain_losses import Operations, value_and_gradients
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.losses import captioning_loss, contrastive_loss, linear_captioning_loss, sigmoid_loss
from opencoca.losses.sweep import chunks

EXACT = {"rtol": 0.0, "atol": 1e-12}
GROUPS = [None, [0, 1, 0, 2, 1, 3, 0], [4] * 7]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(rows: int, seed: int = 0) -> Tensor:
    return F.normalize(draw(rows, 5, seed=seed), dim=-1).requires_grad_()


def head(positions: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Decoded positions, a head's matrix for 17 tokens, targets."""
    targets = torch.randint(0, 17, (positions,), generator=torch.Generator().manual_seed(9))
    return draw(positions, 6, dtype=dtype).requires_grad_(), draw(17, 6, seed=1, dtype=dtype).requires_grad_(), targets


def through_logits(decoded: Tensor, weight: Tensor, targets: Tensor, token_count: Tensor | int | None = None) -> Tensor:
    return captioning_loss(F.linear(decoded, weight), targets, token_count=token_count)


# --- captioning without logits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 1, 4, 11, 100])
@pytest.mark.parametrize("count", [None, 40, torch.tensor(40)])
def test_the_loss_without_logits_is_that_of_the_logits(chunk: int, count: Tensor | int | None) -> None:
    leaves = head()
    got = value_and_gradients(linear_captioning_loss, leaves, token_count=count, chunk=chunk)
    torch.testing.assert_close(got, value_and_gradients(through_logits, leaves, token_count=count), **EXACT)


def test_without_gradients_the_loss_is_the_same_and_costs_one_product_per_chunk() -> None:
    decoded, weight, targets = head()
    expected = through_logits(decoded, weight, targets)
    with torch.no_grad(), Operations() as seen:
        value = linear_captioning_loss(decoded, weight, targets, chunk=4)
    torch.testing.assert_close(value, expected, **EXACT)
    assert not value.requires_grad and seen.products == 3


@pytest.mark.parametrize("frozen", ["weight", "decoded"])
def test_a_frozen_end_gets_no_gradient_and_costs_nothing(frozen: str) -> None:
    decoded, weight, targets = head()
    {"weight": weight, "decoded": decoded}[frozen].requires_grad_(False)
    with Operations() as seen:
        got = value_and_gradients(linear_captioning_loss, (decoded, weight, targets), chunk=4)
    assert seen.products == 6
    torch.testing.assert_close(got, value_and_gradients(through_logits, (decoded, weight, targets)), **EXACT)


def test_the_logits_never_exist_as_a_whole() -> None:
    decoded = draw(60, 4).requires_grad_()
    weight, targets = draw(50, 4).requires_grad_(), torch.arange(60) % 50
    with Operations() as seen:
        linear_captioning_loss(decoded, weight, targets, chunk=7).backward()
    assert 6 * 50 <= seen.largest <= 7 * 50
    with Operations() as seen:
        through_logits(decoded, weight, targets).backward()
    assert seen.largest == 60 * 50


def test_a_tied_weight_learns_from_both_ends() -> None:
    embedding = nn.Embedding(17, 6, dtype=torch.float64)
    ids, targets = torch.arange(11), torch.arange(11) + 3
    gradients = []
    for loss in (linear_captioning_loss, through_logits):
        embedding.zero_grad()
        loss(embedding(ids), embedding.weight, targets).backward()
        assert embedding.weight.grad is not None
        gradients.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients, **EXACT)


def test_a_second_backward_pass_gives_the_same_again() -> None:
    decoded, weight, targets = head()
    loss = linear_captioning_loss(decoded, weight, targets, chunk=4)
    first = torch.autograd.grad(3 * loss, (decoded, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (decoded, weight))
    torch.testing.assert_close([x / 3 for x in first], list(second), **EXACT)


def test_no_token_costs_nothing() -> None:
    decoded, weight, targets = head(0)
    loss = linear_captioning_loss(decoded, weight, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None and not weight.grad.any() and weight.grad.shape == (17, 6)
    assert decoded.grad is not None and decoded.grad.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_have_the_types_of_what_they_belong_to(dtype: torch.dtype) -> None:
    leaves = head(dtype=dtype)
    loss, *gradients = value_and_gradients(linear_captioning_loss, leaves, chunk=4)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    exact = value_and_gradients(
        through_logits, [leaf.double() if leaf.is_floating_point() else leaf for leaf in leaves]
    )
    error = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-6}[dtype]
    assert loss.item() == pytest.approx(exact[0].item(), rel=error)


def test_under_autocast_the_loss_is_that_of_the_head_under_autocast() -> None:
    """Worst seen: equal losses, gradients 0.6% of the largest apart (bf16 rounds what is added up chunk by chunk)."""
    leaves = head(64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole = value_and_gradients(through_logits, leaves)
        got = value_and_gradients(linear_captioning_loss, leaves, chunk=16)
    exact = value_and_gradients(through_logits, leaves)
    assert whole[0] != exact[0], "autocast reaches the head"
    torch.testing.assert_close(got[0], whole[0], rtol=1e-6, atol=0)
    for ours, theirs, true in zip(got[1:], whole[1:], exact[1:], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.008 * theirs.abs().max().item())
        assert (ours - true).abs().mean() <= 1.05 * (theirs - true).abs().mean(), "nearer to the truth, if anything"


@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_probability_too_small_for_its_type_still_has_a_logarithm(with_gradient: bool) -> None:
    weight = torch.tensor([[1.0], [-1.0]]).requires_grad_(with_gradient)
    decoded = torch.tensor([[150.0], [-150.0]])
    loss = linear_captioning_loss(decoded, weight, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(150.0)
    if with_gradient:
        loss.backward()
        assert weight.grad is not None and weight.grad.tolist() == [[75.0], [-75.0]]


def test_chunks_cover_all_rows_and_are_alike() -> None:
    like = torch.empty(0)
    assert chunks(0, 10, like) == []
    assert chunks(7, 10, like, chunk=3) == [(0, 2), (2, 4), (4, 7)]
    assert chunks(640, 49408, like, most=160) == [(0, 160), (160, 320), (320, 480), (480, 640)]
    assert chunks(3, 10**9, like) == [(0, 1), (1, 2), (2, 3)]


# --- contrastive ------------------------------------------------------------------------------------------------


def ids(groups: list[int] | None) -> Tensor | None:
    return None if groups is None else torch.tensor(groups)


# Text 1 is true of pictures 0 to 3, text 5 of 0 and 4, which has a text that stands nowhere; 2 and 6 have one text.
TRUE_TEXTS = torch.tensor([[0, 1, 5], [1, 1, 1], [2, 1, 2], [3, 1, 3], [4, 5, 99], [5, 5, 5], [2, 2, 2]])


@pytest.mark.parametrize("chunk", [0, 1, 3])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("true_texts", [None, TRUE_TEXTS])
def test_both_directions_of_one_matrix(
    chunk: int, groups: list[int] | None, multi_positive: bool, true_texts: Tensor | None
) -> None:
    leaves = unit(7), unit(7, seed=1), torch.tensor([30.0], dtype=torch.float64, requires_grad=True)
    settings = {"group_ids": ids(groups), "multi_positive": multi_positive, "true_texts": true_texts}

    def of(loss):
        return lambda image, text, scale, **more: loss(image, text, image, text, scale, **settings, **more)

    got = value_and_gradients(of(contrastive_loss), leaves, chunk=chunk)
    torch.testing.assert_close(got, value_and_gradients(of(plain_losses.contrastive), leaves), **EXACT)


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("true_texts", [None, TRUE_TEXTS])
def test_a_ranks_rows_among_all(
    chunk: int, groups: list[int] | None, multi_positive: bool, kind: str, true_texts: Tensor | None
) -> None:
    """Rows 2 to 4 of 7, and gradients for each of the five or six tensors on its own."""
    leaves = [unit(3), unit(3, seed=1), unit(7, seed=2), unit(7, seed=3)]
    leaves += [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (30.0, -5.0)]
    ours, plain = sigmoid_loss, plain_losses.sigmoid
    if kind == "softmax":
        ours, plain, leaves = contrastive_loss, plain_losses.contrastive, leaves[:5]
    settings = {"first": 2, "group_ids": ids(groups), "multi_positive": multi_positive, "true_texts": true_texts}
    got = value_and_gradients(ours, leaves, chunk=chunk, **settings)
    torch.testing.assert_close(got, value_and_gradients(plain, leaves, **settings), **EXACT)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_the_similarities_never_exist_as_a_whole(loss, alone: bool) -> None:
    image, text = unit(40), unit(40, seed=1)
    keys = (image, text) if alone else (image.detach().clone(), text.detach().clone())
    factors = [torch.ones(1).double().requires_grad_() for _ in range(1 if loss is contrastive_loss else 2)]
    with Operations() as seen:
        loss(image, text, *keys, *factors, group_ids=torch.arange(40) // 2, chunk=6).backward()
    assert 5 * 40 <= seen.largest <= 6 * 40
    if loss is contrastive_loss:  # 7 chunks: 4 products for each but one, which isn't computed again; 3 each, twice
        assert seen.products == (27 if alone else 42)


def test_members_of_a_group_share_the_target() -> None:
    """Done by hand: all 4 similarities are equal, so every pair has p = 1/4 wherever its target stands."""
    same = torch.ones(4, 1, dtype=torch.float64).requires_grad_()
    factor, groups = torch.tensor([10.0]).double(), torch.tensor([0, 0, 0, 1])
    loss = contrastive_loss(same, same, same, same, factor, group_ids=groups, multi_positive=True)
    assert loss.item() == pytest.approx(2 * math.log(4))
    apart = contrastive_loss(same, same, same, same, factor, group_ids=groups)
    assert apart.item() == pytest.approx(2 * (3 * math.log(2) + math.log(4)) / 4)


def test_a_text_that_is_true_of_another_picture_is_no_wrong_answer() -> None:
    """Done by hand: all similarities are equal. Text 1 is true of picture 0 too; text 0 isn't of picture 1."""
    same, factor = torch.ones(2, 1, dtype=torch.float64).requires_grad_(), torch.tensor([10.0]).double()
    settings = {"true_texts": torch.tensor([[10, 11], [11, 11]])}
    left_out = contrastive_loss(same, same, same, same, factor, **settings)
    assert left_out.item() == pytest.approx((0 + math.log(2) + math.log(2) + 0) / 2)
    shared = contrastive_loss(same, same, same, same, factor, multi_positive=True, **settings)
    assert shared.item() == pytest.approx(2 * math.log(2))  # every target is worth log 2, spread or not
    image, text = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    spread = contrastive_loss(image, text, image, text, factor, multi_positive=True, **settings)
    right = math.log1p(math.exp(-10))  # nats of an entry on the diagonal
    wrong = 10 + right
    of_pictures, of_texts = (right + wrong) / 2 + right, right + (right + wrong) / 2
    assert spread.item() == pytest.approx((of_pictures + of_texts) / 2)


def test_sigmoid_loss_of_a_case_done_by_hand() -> None:
    """Two orthogonal pairs that match exactly: a yes at scale + bias and a no at bias for each image."""
    pair = torch.eye(2)
    scale, bias = torch.tensor([3.0]), torch.tensor([-1.0])
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert sigmoid_loss(pair, pair, pair, pair, scale, bias).item() == pytest.approx(expected)
    ids = torch.zeros(2)
    alone = sigmoid_loss(pair, pair, pair, pair, scale, bias, group_ids=ids)
    assert alone.item() == pytest.approx(math.log(1 + math.exp(-2)))
    both = sigmoid_loss(pair, pair, pair, pair, scale, bias, group_ids=ids, multi_positive=True)
    assert both.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)))


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("multi_positive", [False, True])
def test_the_largest_scale_is_finite_where_everything_is_wrong(chunk: int, multi_positive: bool) -> None:
    image = torch.tensor([[1.0], [-1.0], [1.0]]).requires_grad_()
    text, scale, bias = -image.detach(), torch.tensor([100.0]).requires_grad_(), torch.tensor([-10.0])
    settings = {"group_ids": torch.tensor([0, 1, 0]), "multi_positive": multi_positive, "chunk": chunk}
    for loss, expected in (
        (contrastive_loss(image, text, image, text, scale, **settings), 400.0 + 2 * math.log(2) / 3),
        (sigmoid_loss(image, text, image, text, scale, bias, **settings), 110.0 + 4 * 90.0 / 3),
    ):
        leaves = torch.autograd.grad(loss, (image, scale))
        assert loss.isfinite() and all(leaf.isfinite().all() for leaf in leaves)
        assert multi_positive or loss.item() == pytest.approx(expected)


def test_one_pair_alone_has_nothing_to_tell_apart() -> None:
    image, text, scale = unit(1), unit(1, seed=1), torch.tensor([100.0]).double()
    for keys in ((image, text), (image.detach(), text.detach())):
        loss = contrastive_loss(image, text, *keys, scale)
        assert loss.item() == 0.0 and not torch.autograd.grad(loss, image)[0].any()


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_autocast_reaches_no_chunk(loss) -> None:
    image, text = unit(9).float(), unit(9, seed=1).float()
    factors = [torch.tensor([100.0]), torch.tensor([-10.0])][: 1 if loss is contrastive_loss else 2]
    plain = loss(image, text, image, text, *factors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(image, text, image, text, *factors), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it wherever it goes on after a break
def test_inside_a_compiled_function_they_stay_what_they_are() -> None:
    decoded, weight, targets = head(dtype=torch.float32)
    image, text = unit(7).detach().float(), unit(7, seed=1).detach().float()
    scale, bias = torch.tensor([10.0]), torch.tensor([-10.0])

    def total(decoded: Tensor, weight: Tensor) -> Tensor:
        pairs = image, text, image, text, scale
        captioning = linear_captioning_loss(decoded * 2, weight, targets, chunk=4)
        return 2 * captioning + contrastive_loss(*pairs, chunk=3) + sigmoid_loss(*pairs, bias, chunk=3)

    compiled = torch.compile(total, backend="aot_eager")
    got, expected = (value_and_gradients(f, (decoded, weight)) for f in (compiled, total))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


# --- on a GPU ---------------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@on_gpu
def test_on_a_gpu_the_captioning_loss_is_nearer_to_the_exact_one_than_that_of_bf16_logits() -> None:
    """Larger than a warp of anything, so that in-place kernels would show what they overwrite too early."""
    targets = torch.arange(300) * 7 % 5000
    leaves = draw(300, 64).requires_grad_(), draw(5000, 64, seed=1).mul(0.3).requires_grad_(), targets
    exact = value_and_gradients(through_logits, leaves)
    moved = [x.detach().to("cuda", torch.float32 if x.is_floating_point() else x.dtype) for x in leaves]
    moved = [x.requires_grad_() if x.is_floating_point() else x for x in moved]
    plain = value_and_gradients(linear_captioning_loss, moved, chunk=77)
    torch.testing.assert_close([x.double().cpu() for x in plain], exact, rtol=1e-4, atol=1e-6)
    with torch.autocast("cuda", torch.bfloat16):
        ours = value_and_gradients(linear_captioning_loss, moved, chunk=77)
        theirs = value_and_gradients(through_logits, moved)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        errors = [(x.double().cpu() - true).abs().mean() for x in (mine, other)]
        assert errors[0] <= 1.05 * errors[1] + 1e-6


@on_gpu
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_on_a_gpu_the_similarities_are_those_of_the_cpu(loss, alone: bool) -> None:
    image, text = (F.normalize(draw(300, 40, seed=seed), dim=1) for seed in (0, 1))
    factors = [torch.tensor([x]).double() for x in (30.0, -5.0)][: 1 if loss is contrastive_loss else 2]
    ids = torch.arange(300) // 2

    def of(image: Tensor, text: Tensor, *factors: Tensor) -> Tensor:
        keys = (image, text) if alone else (image.clone(), text.clone())
        return loss(image, text, *keys, *factors, group_ids=ids.to(image.device), chunk=77)

    leaves = [x.requires_grad_() for x in (image, text, *factors)]
    exact = value_and_gradients(of, leaves)
    got = value_and_gradients(of, [x.detach().float().cuda().requires_grad_() for x in leaves])
    torch.testing.assert_close([x.double().cpu() for x in got], exact, rtol=1e-3, atol=1e-5)
