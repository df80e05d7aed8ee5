"""Attention and its cache against a plain float64 reimplementation, and a block against its formula."""

import math

import pytest
import torch
from tests.plain_model import EXACT, all_random, naive_attention, random

from opencoca.model.attention import Attention, KeysValues, KVCache
from opencoca.model.blocks import Block


@pytest.fixture(scope="module")
def attention() -> Attention:
    return all_random(Attention(12, 3)).requires_grad_(False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_self_attention_equals_the_naive_one(attention: Attention, length: int, causal: bool) -> None:
    x_BTD = random(2, length, 12)
    measured = attention(x_BTD, attention.keys_values(x_BTD), causal=causal)
    torch.testing.assert_close(measured, naive_attention(attention, x_BTD, x_BTD, causal), **EXACT)


@pytest.mark.parametrize(("queries", "keys"), [(4, 6), (1, 6), (6, 1), (4, 4)])
def test_cross_attention_equals_the_naive_one(queries: int, keys: int) -> None:
    module = all_random(Attention(12, 3, context_width=20))
    x_BTD, context_BSD = random(2, queries, 12), random(2, keys, 20, seed=1)
    measured = module(x_BTD, module.keys_values(context_BSD))
    torch.testing.assert_close(measured, naive_attention(module, x_BTD, context_BSD, causal=False), **EXACT)


@pytest.mark.parametrize("queries", [1, 2, 5, 6])
def test_causal_queries_stand_at_the_end_of_their_context(attention: Attention, queries: int) -> None:
    context_BSD = random(2, 6, 12)
    x_BTD = context_BSD[:, -queries:]
    measured = attention(x_BTD, attention.keys_values(context_BSD), causal=True)
    torch.testing.assert_close(measured, naive_attention(attention, x_BTD, context_BSD, causal=True), **EXACT)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_rows_that_share_a_context_equal_a_repeated_context(attention: Attention, rows: int, length: int) -> None:
    context_BSD, x_BTD = random(2, 5, 12), random(2 * rows, length, 12, seed=1)
    repeated = attention.keys_values(context_BSD.repeat_interleave(rows, dim=0))
    shared = attention(x_BTD, attention.keys_values(context_BSD))
    torch.testing.assert_close(shared, attention(x_BTD, repeated), **EXACT)


@pytest.mark.parametrize("pictures", [1, 3])
def test_one_row_of_queries_reads_every_context(attention: Attention, pictures: int) -> None:
    context, queries_1TD = attention.keys_values(random(pictures, 5, 12)), random(1, 4, 12, seed=1)
    measured = attention(queries_1TD, context)
    assert measured.shape == (pictures, 4, 12)
    repeated = attention(queries_1TD.repeat(pictures, 1, 1), context)
    torch.testing.assert_close(measured, repeated, **EXACT)


def test_cache_refuses_what_does_not_fit_and_keeps_what_it_held() -> None:
    cache = KVCache(2, 3, 4, 5, like=random(1))
    first = KeysValues(random(2, 3, 3, 5), random(2, 3, 3, 5, seed=1))
    cache.append(first)
    with pytest.raises(ValueError, match=r"holds 4 positions, 5 were asked for"):
        cache.append(KeysValues(random(2, 3, 2, 5), random(2, 3, 2, 5)))
    assert cache.length == 3
    last = KeysValues(random(2, 3, 1, 5, seed=2), random(2, 3, 1, 5, seed=3))
    held = cache.append(last)
    for part in (0, 1):
        assert torch.equal(held[part], torch.cat([first[part], last[part]], dim=2))
    assert cache.length == 4


def test_rows_of_one_picture_stand_beside_each_other_in_its_cache() -> None:
    cache = KVCache(2, 1, 6, 1, like=random(1))
    for step in (0, 100):
        values = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]], dtype=torch.float64)[:, None, :, None] + step
        last = values if step == 0 else values[:, :, :1]
        keys, held = cache.append(KeysValues(last, -last))
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 3, 4, 101, 103], [5, 6, 7, 8, 105, 107]]
    assert torch.equal(held, -keys)


def test_a_block_equals_its_formula() -> None:
    block = all_random(Block(12, 3, 20, causal=True, context_width=8))
    x_BTD, picture_BQD = random(2, 4, 12), random(2, 5, 8, seed=1)
    normed = block.norm_self(x_BTD)
    expected = x_BTD + naive_attention(block.self_attention, normed, normed, causal=True)
    crossed = naive_attention(block.cross_attention, block.norm_cross(expected), picture_BQD, causal=False)  # pyright: ignore[reportArgumentType]
    expected = expected + crossed
    hidden = block.mlp.up(block.norm_mlp(expected))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = expected + block.mlp.down(hidden)
    torch.testing.assert_close(block(x_BTD, block.picture_keys_values(picture_BQD)), expected, **EXACT)


def test_reading_without_keys_and_values_gives_the_same(monkeypatch):
    torch.manual_seed(0)
    reader = Attention(24, 4, context_width=20).double()
    x, context = torch.randn(3, 5, 24).double(), torch.randn(3, 9, 20).double()
    found = []
    for worth_it in (10**12, 0):  # with keys and values, and without
        monkeypatch.setattr("opencoca.model.attention.WORTH_IT", worth_it)
        monkeypatch.setattr("opencoca.model.attention.SAVES", 10.0)
        inputs = [part.clone().requires_grad_() for part in (x, context)]
        out = reader.read(*inputs)
        gradients = torch.autograd.grad(out.sin().sum(), [*inputs, *reader.parameters()])
        found.append([out, *gradients])
        assert reader._reads_directly(*inputs) == (worth_it == 0)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_keys_and_values_are_made_where_they_cost_less_or_are_shared(monkeypatch):
    monkeypatch.setattr("opencoca.model.attention.WORTH_IT", 0)
    reader, normed = Attention(24, 4), Attention(24, 4, qk_norm=True)
    few, many, context = torch.randn(2, 2, 24), torch.randn(2, 30, 24), torch.randn(2, 30, 24)
    assert reader._reads_directly(few, context)
    assert not reader._reads_directly(many, context)  # as many queries as there are positions to read
    assert not normed._reads_directly(few, context)  # the norm is of each key
    assert not reader._reads_directly(few[:1], context)
    monkeypatch.setattr("opencoca.model.attention.WORTH_IT", 50_000_000)
    assert not reader._reads_directly(few, context)  # too small to save anything
    with torch.no_grad():
        monkeypatch.setattr("opencoca.model.attention.WORTH_IT", 0)
        assert not reader._reads_directly(few, context)
