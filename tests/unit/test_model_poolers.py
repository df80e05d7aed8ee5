"""The poolers against plain float64 reimplementations: any length into any number of queries, in both arrangements."""

import dataclasses

import pytest
import torch
from tests import plain_model
from tests.plain_model import EXACT, IDS, VALID, all_random, naive_attention, random, tiny
from torch import Tensor

from opencoca.config import PoolerConfig
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.model.pooler import AttentionalPooler

model, pixels = plain_model.model, plain_model.pixels


@pytest.mark.parametrize("num_queries", [1, 256])
def test_a_pooler_pools_any_length_into_its_queries(num_queries: int) -> None:
    pooler = all_random(AttentionalPooler(num_queries, 12, 3, context_width=8))
    for length in (1, 9):
        context_BSD = random(2, length, 8)
        queries = pooler.norm_queries(pooler.queries_QD).expand(2, -1, -1)
        expected = naive_attention(pooler.attention, queries, pooler.norm_context(context_BSD), causal=False)
        pooled = pooler(context_BSD)
        assert pooled.shape == (2, num_queries, 12)
        torch.testing.assert_close(pooled, pooler.norm_out(expected), **EXACT)
    assert num_queries == 1 or not torch.allclose(pooled[:, 0], pooled[:, 1], atol=1e-3)


@pytest.mark.parametrize("num_queries", [1, 256])
@pytest.mark.parametrize("arrangement", ["cascade", "parallel"])
def test_any_number_of_queries_makes_a_whole_model(num_queries: int, arrangement: str, pixels: Tensor) -> None:
    coca = build(tiny(num_queries=num_queries, arrangement=arrangement)).double()
    output = coca(pixels, IDS, VALID)
    assert coca.encode_image(pixels).tokens.shape == (3, num_queries, 48)
    assert output.image_embed.shape == output.text_embed.shape == (3, 48)
    assert output.decoded.shape == (3, 6, 48)
    assert all(part.isfinite().all() for part in output)


@pytest.mark.parametrize("arrangement", ["cascade", "parallel"])
def test_only_in_the_cascade_does_the_image_embedding_pass_the_generative_pooler(
    arrangement: str, pixels: Tensor
) -> None:
    coca = all_random(build(tiny(arrangement=arrangement)))
    assert isinstance(coca, CoCa)
    (coca.encode_image(pixels).embed * random(3, 48)).sum().backward()
    reached = {name for name, p in coca.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-9}
    assert any(name.startswith("encoder.patch") for name in reached)
    assert "contrastive_pooler.queries_QD" in reached
    generative = {name for name in reached if name.startswith("generative_pooler")}
    if arrangement == "cascade":
        assert {"generative_pooler.queries_QD", "generative_pooler.norm_out.weight"} <= generative
    else:
        assert not generative


def test_image_features_are_what_the_poolers_give(model: CoCa, pixels: Tensor) -> None:
    image = model.encode_image(pixels)
    tokens_BQD = model.generative_pooler(model.encoder(pixels))
    torch.testing.assert_close(image.tokens, tokens_BQD, **EXACT)
    pooled_BD = model.contrastive_pooler(tokens_BQD)[:, 0]  # pyright: ignore[reportOptionalCall]
    torch.testing.assert_close(image.embed, pooled_BD / pooled_BD.norm(dim=1, keepdim=True), **EXACT)


def test_pooler_configuration_decides_the_number_of_image_tokens(pixels: Tensor) -> None:
    coca = build(dataclasses.replace(tiny(), pooler=PoolerConfig(num_queries=2))).double()
    assert coca.encode_image(pixels).tokens.shape == (3, 2, 48)
