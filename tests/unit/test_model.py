"""The network against plain float64 reimplementations: patches, positions, poolers, decoder halves, cache."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca import recipes
from opencoca.config import ModelConfig, PoolerConfig
from opencoca.model.attention import Attention, KeysValues, KVCache
from opencoca.model.blocks import Block
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.model.pooler import AttentionalPooler
from opencoca.model.vit import patchify, prominence
from opencoca.types import TextBucket

EXACT = {"rtol": 0.0, "atol": 1e-12}  # worst measured: 4e-15, by the order of sums


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_random(module: nn.Module) -> nn.Module:
    """The module in float64 with every parameter random, so that no bias is 0 and no norm is 1."""
    module = module.double()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(module.named_parameters()):
            if name != "log_scale":
                spread = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.3
                parameter.copy_(spread * random(*parameter.shape, seed=seed) + ("norm" in name and "weight" in name))
    return module.eval()


def tiny(**pooler: object) -> ModelConfig:
    config = recipes.tiny.tiny().model
    return dataclasses.replace(config, pooler=dataclasses.replace(config.pooler, **pooler))


@pytest.fixture(scope="module")
def model() -> CoCa:
    return all_random(build(tiny())).requires_grad_(False)  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return random(3, 3, 16, 16, seed=100)


IDS = torch.tensor([[1, 40, 50, 60, 2, 0, 0], [1, 7, 2, 0, 0, 0, 0], [1, 9, 40, 9, 300, 301, 2]])
LENGTHS = (5, 3, 7)
VALID = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


# --- attention --------------------------------------------------------------------------------------------------


def naive_attention(module: Attention, x_BTD: Tensor, context_BSD: Tensor, causal: bool) -> Tensor:
    """One query, one head at a time, with softmax written out; the queries are the last positions of the context."""
    width = x_BTD.shape[-1]
    head_width = width // module.num_heads
    q_BTD = x_BTD @ module.q.weight.T + module.q.bias
    k_BSD = context_BSD @ module.kv.weight[:width].T + module.kv.bias[:width]
    v_BSD = context_BSD @ module.kv.weight[width:].T + module.kv.bias[width:]
    heads_BTD = torch.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            seen = context_BSD.shape[1] - x_BTD.shape[1] + t + 1 if causal else context_BSD.shape[1]
            for n in range(module.num_heads):
                part = slice(n * head_width, (n + 1) * head_width)
                scores_S = k_BSD[b, :seen, part] @ q_BTD[b, t, part] / math.sqrt(head_width)
                weights_S = scores_S.exp() / scores_S.exp().sum()
                heads_BTD[b, t, part] = weights_S @ v_BSD[b, :seen, part]
    return heads_BTD @ module.out.weight.T + module.out.bias


@pytest.fixture(scope="module")
def attention() -> Attention:
    return all_random(Attention(12, 3)).requires_grad_(False)  # pyright: ignore[reportReturnType]


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


# --- encoder and poolers ----------------------------------------------------------------------------------------


def test_patchify_equals_a_convolution() -> None:
    pixels_BCHW = random(2, 3, 8, 12)
    kernel = random(7, 3, 4, 4, seed=1)
    convolved = F.conv2d(pixels_BCHW, kernel, stride=4).flatten(2).transpose(1, 2)
    patches = patchify(pixels_BCHW, 4) @ kernel.reshape(7, -1).T
    assert patches.shape == (2, 6, 7)
    torch.testing.assert_close(patches, convolved, **EXACT)


@pytest.mark.parametrize("shape", [(18, 16), (16, 18), (2, 2)])
def test_pictures_that_cannot_be_cut_into_patches_are_refused(model: CoCa, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} px .* patches of 4 px"):
        model.encode_image(torch.zeros(1, 3, *shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (8, 8), (24, 12), (4, 4)])
def test_other_resolutions_run(model: CoCa, shape: tuple[int, int]) -> None:
    pixels_BCHW = random(2, 3, *shape)
    assert model.encoder(pixels_BCHW).shape == (2, shape[0] * shape[1] // 16, 32)
    image = model.encode_image(pixels_BCHW)
    assert image.embed.shape == (2, 48) and image.tokens.shape == (2, 5, 48)
    assert image.embed.isfinite().all()


def test_positions_of_the_trained_grid_are_the_parameter_itself(model: CoCa) -> None:
    assert model.encoder.positions(4, 4) is model.encoder.positions_PD


def test_positions_interpolate_rows_as_rows_and_columns_as_columns() -> None:
    """Channel 0 rises with the row, channel 1 with the column, channel 2 is constant."""
    encoder = build(tiny()).encoder
    with torch.no_grad():
        encoder.positions_PD[:, 0] = torch.arange(4.0).repeat_interleave(4)
        encoder.positions_PD[:, 1] = torch.arange(4.0).repeat(4)
        encoder.positions_PD[:, 2] = 7.0
        wanted = encoder.positions(8, 4).reshape(8, 4, -1)
    torch.testing.assert_close(wanted[:, :, 0], wanted[:, :1, 0].expand(8, 4), rtol=0, atol=1e-5)
    assert (wanted[1:, 0, 0] > wanted[:-1, 0, 0]).all()
    torch.testing.assert_close(wanted[2:6, 0, 0], torch.tensor([0.75, 1.25, 1.75, 2.25]), rtol=0, atol=0.06)
    torch.testing.assert_close(wanted[:, :, 1], torch.arange(4.0).expand(8, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(wanted[:, :, 2], torch.full((8, 4), 7.0), rtol=0, atol=1e-5)
    with torch.no_grad():
        as_many_patches = encoder.positions(2, 8).reshape(2, 8, -1)
    torch.testing.assert_close(as_many_patches[:, :, 0], as_many_patches[:, :1, 0].expand(2, 8), rtol=0, atol=1e-5)
    assert (as_many_patches[0, 1:, 1] > as_many_patches[0, :-1, 1]).all()


def with_max_patches(max_patches: int) -> CoCa:
    config = tiny()
    vision = dataclasses.replace(config.vision, max_patches=max_patches)
    return all_random(build(dataclasses.replace(config, vision=vision))).requires_grad_(False)  # pyright: ignore


def test_prominence_is_the_squared_difference_from_the_edge() -> None:
    pixels_BCHW = random(2, 3, 8, 12)
    measured_BP = prominence(pixels_BCHW, 4)
    assert measured_BP.shape == (2, 6)
    for b in range(2):
        rows, columns = range(8), range(12)
        edge = [(y, x) for y in (0, 7) for x in columns] + [(y, x) for x in (0, 11) for y in rows]
        colour_C = torch.stack([pixels_BCHW[b, :, y, x] for y, x in edge]).mean(dim=0)
        for patch in range(6):
            top, left = 4 * (patch // 3), 4 * (patch % 3)
            patch_CHW = pixels_BCHW[b, :, top : top + 4, left : left + 4]
            expected = ((patch_CHW - colour_C[:, None, None]) ** 2).mean()
            torch.testing.assert_close(measured_BP[b, patch], expected, **EXACT)


def test_the_encoder_reads_the_most_prominent_patches_where_they_stand() -> None:
    """A drawing in two patches of a blank picture: the same as a plain encoder that is given only those two."""
    coca = with_max_patches(2)
    pixels_BCHW = torch.ones(2, 3, 16, 16, dtype=torch.float64)
    drawn = [(5, 10), (9, 6)]  # patch 4 * row + column; none touches the edge
    for b, patches in enumerate(drawn):
        for strength, patch in zip((3.0, 1.0), patches, strict=True):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            pixels_BCHW[b, :, top : top + 4, left : left + 4] += strength * random(3, 4, 4, seed=patch)
    measured = coca.encoder(pixels_BCHW)
    assert measured.shape == (2, 2, 32)
    for b, patches in enumerate(drawn):
        x_BPD = coca.encoder.patch(patchify(pixels_BCHW, 4)[b : b + 1, list(patches)])
        x_BPD = x_BPD + coca.encoder.positions_PD[list(patches)]
        for block in coca.encoder.blocks:
            x_BPD = block(x_BPD)
        torch.testing.assert_close(measured[b], x_BPD[0], **EXACT)
    assert coca.encode_image(pixels_BCHW).tokens.shape == (2, 5, 48)


def test_training_reads_the_patches_with_most_noise(pixels: Tensor) -> None:
    config = tiny()
    few = dataclasses.replace(config, vision=dataclasses.replace(config.vision, train_patches=3))
    reads_all, reads_few = (build(c).to(pixels.dtype).encoder.requires_grad_(False) for c in (config, few))
    noise_BP = torch.rand(len(pixels), config.vision.grid**2)
    kept_BP = torch.zeros_like(noise_BP).scatter(1, noise_BP.topk(3).indices, 1.0).bool()
    upscaled = kept_BP.unflatten(1, (config.vision.grid, -1)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    assert reads_few(pixels, noise_BP).shape[1] == 3
    changed = torch.where(upscaled, pixels, pixels + 1)  # what isn't drawn makes no difference
    assert torch.equal(reads_few(changed, noise_BP), reads_few(pixels, noise_BP))
    assert not torch.equal(reads_few(pixels + 1, noise_BP), reads_few(pixels, noise_BP))
    assert torch.equal(reads_few(pixels), reads_all(pixels)), "outside training all are read"


@pytest.mark.parametrize("max_patches", [0, 16, 17])
def test_as_many_patches_as_there_are_means_all_of_them(model: CoCa, pixels: Tensor, max_patches: int) -> None:
    assert torch.equal(with_max_patches(max_patches).encoder(pixels), model.encoder(pixels))


def test_a_larger_picture_is_read_at_its_most_prominent_patches_too() -> None:
    coca = with_max_patches(6)
    assert coca.encoder(random(2, 3, 24, 32)).shape == (2, 6, 32)
    assert coca.encoder(random(2, 3, 8, 8)).shape == (2, 4, 32)


def test_the_encoder_sees_where_a_patch_stands(model: CoCa, pixels: Tensor) -> None:
    moved = pixels.roll(4, dims=3)
    rolled_back = model.encoder(moved).unflatten(1, (4, 4)).roll(-1, dims=2).flatten(1, 2)
    assert not torch.allclose(rolled_back, model.encoder(pixels), atol=1e-3)


def test_the_encoder_is_not_causal(model: CoCa, pixels: Tensor) -> None:
    other = pixels.clone()
    other[:, :, -1, -1] += 1.0
    first = model.encoder(pixels)[:, 0] - model.encoder(other)[:, 0]
    assert first.abs().max() > 1e-6


def test_a_block_equals_its_formula() -> None:
    block = all_random(Block(12, 3, 20, causal=True, context_width=8))
    x_BTD, picture_BQD = random(2, 4, 12), random(2, 5, 8, seed=1)
    normed = block.norm_self(x_BTD)
    expected = x_BTD + naive_attention(block.self_attention, normed, normed, causal=True)
    crossed = naive_attention(block.cross_attention, block.norm_cross(expected), picture_BQD, causal=False)
    expected = expected + crossed
    hidden = block.mlp.up(block.norm_mlp(expected))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = expected + block.mlp.down(hidden)
    torch.testing.assert_close(block(x_BTD, block.picture_keys_values(picture_BQD)), expected, **EXACT)


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
    pooled_BD = model.contrastive_pooler(tokens_BQD)[:, 0]
    torch.testing.assert_close(image.embed, pooled_BD / pooled_BD.norm(dim=1, keepdim=True), **EXACT)


# --- text -------------------------------------------------------------------------------------------------------


def naive_text(model: CoCa, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Embedding [D] and token outputs [T,D] of one caption without padding, [CLS] plainly appended."""
    text = model.unimodal
    x_TD = torch.cat([text.tokens.weight[ids], text.cls_D[None]]) + text.positions_TD[: len(ids) + 1]
    for block in text.blocks:
        x_TD = block(x_TD[None])[0]
    embed_D = text.norm_cls(x_TD[-1])
    return embed_D / embed_D.norm(), x_TD[:-1]


def test_cls_stands_after_the_last_real_token(model: CoCa) -> None:
    text = model.encode_text(IDS, VALID)
    for row, length in enumerate(LENGTHS):
        embed_D, tokens_TD = naive_text(model, IDS[row, :length].tolist())
        torch.testing.assert_close(text.embed[row], embed_D, **EXACT)
        torch.testing.assert_close(text.tokens[row, :length], tokens_TD, **EXACT)


def test_the_text_embedding_depends_on_every_real_token_and_on_cls(model: CoCa) -> None:
    embed = model.encode_text(IDS, VALID).embed
    torch.testing.assert_close(embed.norm(dim=1), torch.ones(3, dtype=torch.float64), **EXACT)
    for position in range(7):
        other = IDS.clone()
        other[:, position] = 77
        moved = (model.encode_text(other, VALID).embed - embed).abs().amax(dim=1)
        assert (moved > 1e-6).tolist() == VALID[:, position].tolist(), f"position {position}"
    coca = all_random(build(tiny()))
    assert isinstance(coca, CoCa)
    (coca.encode_text(IDS, VALID).embed * random(3, 48)).sum().backward()
    assert coca.unimodal.cls_D.grad is not None and coca.unimodal.cls_D.grad.abs().max() > 1e-6


def test_the_order_of_words_matters(model: CoCa) -> None:
    swapped = IDS[:, [0, 2, 1, 3, 4, 5, 6]]
    assert (model.encode_text(swapped, VALID).embed - model.encode_text(IDS, VALID).embed)[0].abs().max() > 1e-6


def test_a_caption_fills_the_context_to_the_brim_but_not_beyond(model: CoCa) -> None:
    ids = torch.full((1, 16), 5)
    assert model.encode_text(ids, ids > 0).tokens.shape == (1, 16, 48)
    ids = torch.full((1, 17), 5)
    with pytest.raises(ValueError, match="17 ids don't fit context_length 16"):
        model.encode_text(ids, ids > 0)


def caption_logits(model: CoCa, pixels: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
    return model.caption_logits(model(pixels, ids, valid).decoded)


def test_caption_logits_see_the_past_and_the_present_only(model: CoCa, pixels: Tensor) -> None:
    before = caption_logits(model, pixels, IDS, VALID)
    assert before.shape == (3, 6, 320), "one position fewer than ids: nothing follows the last"
    for position in range(7):
        other = IDS.clone()
        other[:, position] = 77
        moved = (caption_logits(model, pixels, other, VALID) - before).abs().amax(dim=-1)
        for row, length in enumerate(LENGTHS):
            assert (moved[row, :position] <= 1e-12).all()
            if position < length:
                assert (moved[row, position : length - 1] > 1e-6).all()


def test_caption_logits_see_their_own_picture_only(model: CoCa, pixels: Tensor) -> None:
    other = pixels.clone()
    other[1] += random(3, 16, 16, seed=5)
    moved = (caption_logits(model, other, IDS, VALID) - caption_logits(model, pixels, IDS, VALID)).abs().amax(dim=-1)
    assert (moved[1] > 1e-6).all()
    assert moved[0].max() <= 1e-12 and moved[2].max() <= 1e-12


def test_cls_never_reaches_the_multimodal_half(pixels: Tensor) -> None:
    coca = all_random(build(tiny()))
    assert isinstance(coca, CoCa)
    logits = caption_logits(coca, pixels, IDS, VALID)
    (logits * VALID[:, 1:, None] * random(*logits.shape)).sum().backward()
    assert coca.unimodal.positions_TD.grad is not None
    assert coca.unimodal.positions_TD.grad[5].abs().max() > 1e-9
    assert coca.unimodal.cls_D.grad is None or coca.unimodal.cls_D.grad.abs().max() == 0


def test_forward_is_the_sum_of_its_parts(model: CoCa, pixels: Tensor) -> None:
    output = model(pixels, IDS, VALID)
    image, text = model.encode_image(pixels), model.encode_text(IDS, VALID)
    assert torch.equal(output.image_embed, image.embed)
    assert torch.equal(output.text_embed, text.embed)
    decoded = text.tokens[:, :-1]
    for block in model.multimodal.blocks:
        decoded = block(decoded, block.picture_keys_values(image.tokens))
    torch.testing.assert_close(output.decoded, model.multimodal.norm_out(decoded), **EXACT)
    torch.testing.assert_close(model.caption_logits(output.decoded), output.decoded @ model.head.weight.T, **EXACT)
    assert output.scale.shape == (1,)
    assert output.scale.item() == pytest.approx(1 / 0.07)


def test_buckets_change_no_value_and_no_gradient(pixels: Tensor) -> None:
    """Rows in order of length, each run read at its own length; padding positions hold zeros."""
    order = [1, 0, 2]
    ids, valid, weights = IDS[order], VALID[order], random(3, 6, 48)
    coca = all_random(build(tiny()))
    assert isinstance(coca, CoCa)
    results, gradients = [], []
    two = (TextBucket(0, 1, 3), TextBucket(1, 3, 7))
    three = (TextBucket(0, 1, 3), TextBucket(1, 2, 5), TextBucket(2, 3, 7))
    for buckets in ((), two, three):
        output = coca(pixels, ids, valid, buckets)
        assert output.decoded.shape == (3, 6, 48)
        coca.zero_grad()
        ((output.decoded * weights * valid[:, 1:, None]).sum() + (output.text_embed * weights[:, 0]).sum()).backward()
        results.append((output.text_embed, output.decoded * valid[:, 1:, None], output.image_embed))
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in coca.parameters()])
        for first, last, length in buckets:
            assert not output.decoded[first:last, length - 1 :].any()
    for other in (1, 2):
        torch.testing.assert_close(results[0], results[other], **EXACT)
        torch.testing.assert_close(gradients[0], gradients[other], rtol=1e-11, atol=1e-11)


# --- decoding with the cache ------------------------------------------------------------------------------------


def test_cached_logits_equal_uncached_ones_at_every_position(model: CoCa, pixels: Tensor) -> None:
    ids = torch.randint(3, 320, (3, 16), generator=torch.Generator().manual_seed(0))
    image = model.encode_image(pixels)
    text = model.encode_text(ids, ids > 0)
    expected = model.caption_logits(model.decode(image.tokens, text.tokens))
    cache = model.start_decoding(image.tokens, capacity=16)
    for t in range(16):
        assert cache.length == t
        logits = model.decode_step(ids[:, t : t + 1], cache)
        torch.testing.assert_close(logits, expected[:, t], **EXACT)
    with pytest.raises(ValueError, match="holds 16 positions, 17"):
        model.decode_step(ids[:, :1], cache)


def test_beams_share_their_picture(model: CoCa, pixels: Tensor) -> None:
    ids = torch.randint(3, 320, (6, 4), generator=torch.Generator().manual_seed(0))
    tokens = model.encode_image(pixels).tokens
    shared = model.start_decoding(tokens, capacity=4, beams=2)
    repeated = model.start_decoding(tokens.repeat_interleave(2, dim=0), capacity=4)
    for steps in (ids[:, :1], ids[:, 1:3], ids[:, 3:]):
        logits = model.decode_step(steps, shared)
        torch.testing.assert_close(logits, model.decode_step(steps, repeated), **EXACT)
    assert [len(picture.keys) for picture in shared.pictures] == [3, 3]


def test_beams_branch_change_places_and_leave(model: CoCa, pixels: Tensor) -> None:
    """Three pictures of one row branch into two beams; these change places; a picture leaves; the others go on."""
    drawn = torch.Generator().manual_seed(0)
    tokens = model.encode_image(pixels).tokens
    cache = model.start_decoding(tokens, capacity=7, beams=2)
    pasts: list[list[list[int]]] = [[[]], [[]], [[]]]  # by picture and beam

    def step(positions: int) -> Tensor:
        ids = torch.randint(3, 320, (sum(map(len, pasts)), positions), generator=drawn)
        for past, new in zip((past for beams in pasts for past in beams), ids.tolist(), strict=True):
            past += new
        return model.decode_step(ids, cache)

    def select(parents: list[list[int]]) -> None:
        pasts[:] = [[[*beams[parent]] for parent in some] for beams, some in zip(pasts, parents, strict=True)]
        cache.select_beams(torch.tensor(parents))

    step(2)
    select([[0, 0]] * 3)
    step(2)
    select([[0, 1], [1, 0], [1, 1]])
    step(1)
    order = cache.keep_pictures(torch.tensor([False, True, True])).tolist()
    assert order == [2, 1], "the last moves into the free place"
    pasts[:] = [pasts[picture] for picture in order]
    select([[1, 0], [1, 1]])
    found = step(2).unflatten(0, (2, 2))
    assert cache.length == 7 == len(pasts[0][0])
    for picture, beams, logits in zip(order, pasts, found, strict=True):
        fresh = model.start_decoding(tokens[picture].expand(2, -1, -1), capacity=7)
        torch.testing.assert_close(logits, model.decode_step(torch.tensor(beams), fresh), **EXACT)


def test_a_cache_cannot_be_longer_than_the_positions(model: CoCa, pixels: Tensor) -> None:
    tokens = model.encode_image(pixels).tokens
    with pytest.raises(ValueError, match=r"17 tokens is beyond context_length 16"):
        model.start_decoding(tokens, capacity=17)


def test_decoding_runs_in_bfloat16(pixels: Tensor) -> None:
    coca = build(tiny()).bfloat16()
    tokens = coca.encode_image(pixels.bfloat16()).tokens
    logits = coca.decode_step(torch.tensor([[1], [1], [1]]), coca.start_decoding(tokens, capacity=2))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_no_pictures_give_no_features(model: CoCa) -> None:
    image = model.encode_image(torch.zeros(0, 3, 16, 16, dtype=torch.float64))
    assert image.embed.shape == (0, 48) and image.tokens.shape == (0, 5, 48)
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert model.encode_text(none, none > 0).embed.shape == (0, 48)


def test_pooler_configuration_decides_the_number_of_image_tokens(pixels: Tensor) -> None:
    coca = build(dataclasses.replace(tiny(), pooler=PoolerConfig(num_queries=2))).double()
    assert coca.encode_image(pixels).tokens.shape == (3, 2, 48)
