"""What must hold of the model for every caption, padding, split into steps, and order of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opencoca import recipes
from opencoca.model.attention import Attention, KVCache
from opencoca.model.coca import CoCa
from opencoca.model.init import build

EXACT = {"rtol": 0.0, "atol": 1e-12}  # worst measured: 4e-15, by the order of sums
SOME = settings(max_examples=25)
TOKENS = st.integers(0, 319)
CAPTIONS = st.lists(TOKENS, min_size=1, max_size=12)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> CoCa:
    """Tiny, float64, every parameter random: as initialised, a bias that is missing would not show."""
    model = build(recipes.tiny.tiny().model).double().eval().requires_grad_(False)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1 and name != "log_scale":
            parameter += 0.3 * random(*parameter.shape, seed=seed)
    return model


@pytest.fixture(scope="module")
def picture(model: CoCa) -> Tensor:
    return model.encode_image(random(1, 3, 16, 16)).tokens


def padded(captions: list[list[int]], fill: list[int], extra: int) -> tuple[Tensor, Tensor]:
    """Ids [B,T] and valid [B,T], with `extra` columns more than the longest caption needs, `fill` in the padding."""
    length = min(16, max(map(len, captions)) + extra)
    ids = torch.tensor([[*caption, *(fill * length)][:length] for caption in captions])
    return ids, torch.arange(length) < torch.tensor([len(caption) for caption in captions])[:, None]


@SOME
@given(
    captions=st.lists(CAPTIONS, min_size=1, max_size=4),
    fill=st.lists(TOKENS, min_size=1, max_size=3),
    extra=st.integers(0, 5),
)
def test_padding_is_invisible(
    model: CoCa, picture: Tensor, captions: list[list[int]], fill: list[int], extra: int
) -> None:
    """Neither what stands in the padding nor how much of it there is, nor the other rows, reaches a caption."""
    ids, valid = padded(captions, fill, extra)
    together = model.encode_text(ids, valid)
    logits = model.caption_logits(model.decode(picture.expand(len(ids), -1, -1), together.tokens))
    for row, caption in enumerate(captions):
        alone = model.encode_text(torch.tensor([caption]), torch.ones(1, len(caption), dtype=torch.bool))
        torch.testing.assert_close(together.embed[row], alone.embed[0], **EXACT)
        torch.testing.assert_close(together.tokens[row, : len(caption)], alone.tokens[0], **EXACT)
        expected = model.caption_logits(model.decode(picture, alone.tokens))[0]
        torch.testing.assert_close(logits[row, : len(caption)], expected, **EXACT)


@SOME
@given(caption=st.lists(TOKENS, min_size=2, max_size=12), data=st.data())
def test_a_token_changes_what_follows_and_nothing_before(
    model: CoCa, picture: Tensor, caption: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(caption) - 1))
    token = data.draw(TOKENS.filter(lambda token: token != caption[position]))
    ids = torch.tensor([caption, [*caption[:position], token, *caption[position + 1 :]]])
    text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
    logits = model.caption_logits(model.decode(picture.expand(2, -1, -1), text.tokens))
    moved = (logits[0] - logits[1]).abs().amax(dim=-1)
    assert (moved[:position] <= 1e-12).all()
    assert (moved[position:] > 1e-9).all()
    assert (text.embed[0] - text.embed[1]).abs().max() > 1e-9


@SOME
@given(steps=st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda steps: sum(steps) <= 16))
def test_cached_decoding_equals_uncached_for_every_split(model: CoCa, picture: Tensor, steps: list[int]) -> None:
    length = sum(steps)
    ids = torch.randint(0, 320, (2, length), generator=torch.Generator().manual_seed(length))
    text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = model.caption_logits(model.decode(picture.expand(2, -1, -1), text.tokens))
    cache = model.start_decoding(picture, capacity=length, beams=2)
    start = 0
    for step in steps:
        logits = model.decode_step(ids[:, start : start + step], cache)
        start += step
        torch.testing.assert_close(logits, expected[:, start - 1], **EXACT)
    assert cache.length == length


@SOME
@given(steps=st.lists(st.integers(1, 4), min_size=1, max_size=5), num_heads=st.sampled_from([1, 2, 6]))
def test_cached_attention_equals_uncached_for_every_split(steps: list[int], num_heads: int) -> None:
    attention = Attention(12, num_heads).double().requires_grad_(False)
    x_BTD = random(2, sum(steps), 12)
    expected = attention(x_BTD, attention.keys_values(x_BTD), causal=True)
    cache = KVCache(2, num_heads, sum(steps), 12 // num_heads, like=x_BTD)
    outputs, start = [], 0
    for step in steps:
        next_BTD = x_BTD[:, start : start + step]
        outputs.append(attention(next_BTD, cache.append(attention.keys_values(next_BTD)), causal=True))
        start += step
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **EXACT)


@SOME
@given(order=st.permutations(range(4)))
def test_the_order_of_pairs_is_the_order_of_results(model: CoCa, order: list[int]) -> None:
    pixels = random(4, 3, 16, 16)
    ids = torch.tensor([[1, 5, 2, 0], [1, 2, 0, 0], [1, 6, 7, 2], [1, 5, 2, 0]])
    plain, shuffled = model(pixels, ids, ids > 0), model(pixels[order], ids[order], ids[order] > 0)
    torch.testing.assert_close(shuffled.image_embed, plain.image_embed[order], **EXACT)
    torch.testing.assert_close(shuffled.text_embed, plain.text_embed[order], **EXACT)
    torch.testing.assert_close(shuffled.decoded[:, 0], plain.decoded[order, 0], **EXACT)


@SOME
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 9))
def test_every_picture_size_gives_unit_embeddings(model: CoCa, rows: int, columns: int, seed: int) -> None:
    image = model.encode_image(random(2, 3, 4 * rows, 4 * columns, seed=seed))
    assert image.tokens.shape == (2, 5, 48) and image.tokens.isfinite().all()
    torch.testing.assert_close(image.embed.norm(dim=1), torch.ones(2, dtype=torch.float64), **EXACT)
