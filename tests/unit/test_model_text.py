"""The decoder's halves and the whole model: where [CLS] stands, what a logit may see, buckets that change nothing."""

import dataclasses

import pytest
import torch
from tests import plain_model
from tests.plain_model import EXACT, IDS, LENGTHS, VALID, all_random, random, tiny
from torch import Tensor

from opencoca.model.attention import Attention
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.types import TextBucket

model, pixels = plain_model.model, plain_model.pixels


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
        decoded = block(decoded, block.picture_keys_values(image.tokens))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(output.decoded, model.multimodal.norm_out(decoded), **EXACT)
    torch.testing.assert_close(model.caption_logits(output.decoded), output.decoded @ model.head.weight.T, **EXACT)
    assert output.scale.shape == (1,)
    assert output.scale.item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("directly", [False, True], ids=["keys and values", "pictures read directly"])
@pytest.mark.parametrize(
    "text",
    [{}, {"cls_place": "at_end"}, {"cross_attention": "after"}, {"qk_norm": True}],
    ids=["as it is", "[CLS] at the end", "cross-attention after", "normed queries"],
)
def test_buckets_change_no_value_and_no_gradient(pixels: Tensor, text, directly, monkeypatch) -> None:
    """Rows in order of length, each run read at its own length; padding positions hold zeros."""
    if directly:
        monkeypatch.setattr("opencoca.model.attention.WORTH_IT", 0)
        monkeypatch.setattr("opencoca.model.attention.SAVES", 10.0)
    plain, read = Attention._read, []
    monkeypatch.setattr(Attention, "_read", lambda *arguments: read.append(len(arguments[3])) or plain(*arguments))
    order = [1, 0, 2]
    ids, valid, weights = IDS[order], VALID[order], random(3, 6, 48)
    config = tiny()
    coca = all_random(build(dataclasses.replace(config, text=dataclasses.replace(config.text, **text))))
    assert isinstance(coca, CoCa)
    results, gradients = [], []
    two = (TextBucket(0, 1, 3), TextBucket(1, 3, 7))
    three = (TextBucket(0, 1, 3), TextBucket(1, 2, 5), TextBucket(2, 3, 7))
    one = (TextBucket(0, 3, 7),)
    for buckets in ((), two, three, one):
        output = coca(pixels, ids, valid, buckets)
        assert output.decoded.shape == (3, 6, 48)
        coca.zero_grad()
        ((output.decoded * weights * valid[:, 1:, None]).sum() + (output.text_embed * weights[:, 0]).sum()).backward()
        results.append((output.text_embed, output.decoded * valid[:, 1:, None], output.image_embed))
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in coca.parameters()])
        for first, last, length in buckets:
            assert not output.decoded[first:last, length - 1 :].any()
    assert set(read) == ({1, 2, 3} if directly and "qk_norm" not in text else set())  # runs that were read directly
    for other in (1, 2, 3):
        torch.testing.assert_close(results[0], results[other], **EXACT)
        torch.testing.assert_close(gradients[0], gradients[other], rtol=1e-11, atol=1e-11)


def test_no_pictures_give_no_features(model: CoCa) -> None:
    image = model.encode_image(torch.zeros(0, 3, 16, 16, dtype=torch.float64))
    assert image.embed.shape == (0, 48) and image.tokens.shape == (0, 5, 48)
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert model.encode_text(none, none > 0).embed.shape == (0, 48)


def test_a_bucket_of_one_id_predicts_nothing(pixels: Tensor) -> None:
    ids, valid = IDS[[1, 0, 2]], VALID[[1, 0, 2]].clone()
    valid[0, 1:] = False
    coca = all_random(build(tiny()))
    plain, cut = (coca(pixels, ids, valid, b) for b in ((), (TextBucket(0, 1, 1), TextBucket(1, 3, 7))))
    torch.testing.assert_close(cut.text_embed, plain.text_embed, **EXACT)
    torch.testing.assert_close(cut.decoded[1:] * valid[1:, 1:, None], plain.decoded[1:] * valid[1:, 1:, None], **EXACT)
    assert not cut.decoded[0].any()
