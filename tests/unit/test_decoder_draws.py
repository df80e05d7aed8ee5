"""Parallel prediction, and text positions and picture tokens that training leaves out of the multimodal decoder."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny as tiny_model
from tests.decoder_draws import (
    ALL,
    EXACT,
    IDS,
    PARALLEL,
    PIXELS,
    VALID,
    batch_of,
    changed,
    fields_of,
    model_of,
    run,
    uniform,
)
from tests.support import tiny_config, tiny_loader, tiny_tokenizer, write_shards
from torch import Tensor
from torch.nn.functional import log_softmax

from opencoca import recipes
from opencoca.config import trained_positions
from opencoca.errors import ConfigError
from opencoca.infer.predictor import Predictor
from opencoca.model.coca import CoCa
from opencoca.model.draws import kept
from opencoca.model.init import build, init_weights
from opencoca.train.optim import layers_above
from opencoca.train.task import Pretraining
from opencoca.types import DecoderDraws, TextBucket

# --- off ----------------------------------------------------------------------------------------------------------


def test_without_the_options_there_is_no_weight_and_no_draw(tmp_path) -> None:
    config = tiny_config(write_shards(tmp_path / "data"))
    batch = tiny_loader(config, tiny_tokenizer()).batch(0)
    assert not batch.decoder_draws and batch.decoder_draws == DecoderDraws()
    assert build(config.model).multimodal.mask_TD is None
    for name in ("paper.base", "paper.large", "paper.coca", "open_clip.vit_b_32", "openmoji", "drawings"):
        text, pooler = recipes.get(name).model.text, recipes.get(name).model.pooler
        assert (text.parallel_share, text.token_drop, pooler.train_queries) == (0, 0, 0)


def test_the_masks_are_the_only_weights_and_change_no_other() -> None:
    plain, full = (build(config).state_dict() for config in (changed(), changed(**fields_of(ALL))))
    assert full.keys() - plain.keys() == {"multimodal.mask_TD"} and full["multimodal.mask_TD"].shape == (15, 48)
    assert all(torch.equal(tensor, full[name]) for name, tensor in plain.items())
    above = layers_above(full)
    assert above["multimodal.mask_TD"] == above["multimodal.blocks.0.mlp.up.weight"] + 1


def test_poison_of_the_masks() -> None:
    model = CoCa(changed(text_parallel_share=0.75))
    assert model.multimodal.mask_TD is not None
    with torch.no_grad():
        model.multimodal.mask_TD.fill_(math.nan)
    init_weights(model)
    assert 0.01 < model.multimodal.mask_TD.std() < 0.03


@torch.no_grad()
def test_without_draws_the_model_computes_what_it_does_without_the_options() -> None:
    """As in evaluation and generation, which the masks don't reach: here they are NaN."""
    config = dataclasses.replace(tiny_model.CONFIG, model=changed(**fields_of(ALL)))
    model, plain = build(config.model), build(tiny_model.CONFIG.model)
    assert model.multimodal.mask_TD is not None
    model.multimodal.mask_TD.fill_(math.nan)
    ours, theirs = model(PIXELS.float(), IDS, VALID), plain(PIXELS.float(), IDS, VALID)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    pictures = [np.full((16, 16, 3), level, np.uint8) for level in (0, 120, 250)]
    captions = [Predictor(one, tiny_tokenizer(), config, 4).caption(pictures) for one in (model, plain)]
    assert captions[0] == captions[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("text.parallel_share", 1.5), ("text.token_drop", 1.0), ("text.token_drop", -0.1), ("pooler.train_queries", 6)],
)
def test_shares_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field.partition('.')[2]} {value}"):
        tiny_model.CONFIG.with_values([f"model.{field}={value}"])


# --- parallel prediction ------------------------------------------------------------------------------------------


def test_a_parallel_caption_is_predicted_from_the_picture_alone() -> None:
    """Whatever it says and however long it is; the others, and all embeddings, are what they always are."""
    model = model_of(text_parallel_share=0.5)
    plain, drawn = run(model), run(model, DecoderDraws(PARALLEL))
    torch.testing.assert_close(drawn.decoded[~PARALLEL], plain.decoded[~PARALLEL], **EXACT)
    assert torch.equal(drawn.text_embed, plain.text_embed) and torch.equal(drawn.image_embed, plain.image_embed)
    ids, valid = torch.tensor([[3, 3, 3, 3, 3, 3]]).expand(4, -1), torch.ones_like(VALID)
    other = run(model, DecoderDraws(PARALLEL), ids, valid)
    torch.testing.assert_close(other.decoded[PARALLEL], drawn.decoded[PARALLEL], **EXACT)
    assert (other.decoded[~PARALLEL] - drawn.decoded[~PARALLEL]).abs().max() > 1e-2
    short = run(model, DecoderDraws(PARALLEL), IDS[:, :3], VALID[:, :3])
    torch.testing.assert_close(short.decoded[PARALLEL], drawn.decoded[PARALLEL][:, :2], **EXACT)
    turned = model(PIXELS.flip(0), IDS, VALID, (), None, DecoderDraws(PARALLEL))
    assert (turned.decoded[PARALLEL] - drawn.decoded[PARALLEL]).abs().max() > 1e-2, "the picture is seen"
    assert (drawn.decoded[0, 0] - drawn.decoded[0, 1]).abs().max() > 1e-2, "and the position is known"


def test_gradients_reach_the_masks_and_not_the_masked_text() -> None:
    model = build(changed(text_parallel_share=0.5)).double()
    words: list[Tensor] = []
    model.unimodal.tokens.register_forward_hook(lambda _, __, out: words.append(out) or out.retain_grad())
    run(model, DecoderDraws(PARALLEL)).decoded.square().sum().backward()
    assert model.multimodal.mask_TD is not None and model.multimodal.mask_TD.grad is not None
    assert (model.multimodal.mask_TD.grad[:5].abs().amax(dim=1) > 0).all()
    assert not model.multimodal.mask_TD.grad[5:].any()
    assert words[0].grad is not None
    assert not words[0].grad[PARALLEL].any() and words[0].grad[~PARALLEL].any()


# --- left-out positions and picture tokens ------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("buckets", [(), (TextBucket(0, 1, 3), TextBucket(1, 3, 6), TextBucket(3, 4, 3))])
def test_kept_positions_compute_what_each_caption_computes_alone(buckets: tuple[TextBucket, ...]) -> None:
    model = model_of(**fields_of(ALL))
    drawn = DecoderDraws(PARALLEL, uniform(4, 5, seed=1), uniform(4, 5, seed=2))
    assert drawn.words is not None and drawn.queries is not None
    found = model(PIXELS, IDS, VALID, buckets, None, drawn)
    keep = kept(model.config.text, VALID, drawn.words)
    image, mask_TD = model.encode_image(PIXELS), model.multimodal.mask_TD
    assert mask_TD is not None
    for row, length in enumerate(VALID.sum(1).tolist()):
        at = keep[row].nonzero()[:, 0]
        assert len(at) == trained_positions(length - 1, 0.4) < length - 1 or length == 3
        read = drawn.queries[row].argsort(descending=True)[:3]
        text_D = model.encode_text(IDS[row : row + 1, :length], VALID[row : row + 1, :length]).tokens[0]
        text_D = mask_TD if PARALLEL[row] else text_D
        alone = model.decode(image.tokens[row : row + 1, read], text_D[None, at])[0]
        torch.testing.assert_close(found.decoded[row, at], alone, **EXACT)


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=5),
    drop=st.floats(0, 0.99),
    extra=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_so_many_positions_are_kept_whatever_else_is_in_the_batch(
    lengths: list[int], drop: float, extra: int, seed: int
) -> None:
    config = changed(text_token_drop=drop).text
    noise_BT = (uniform(len(lengths), 20, seed=seed) * 8).floor()  # with ties
    valid_BT = torch.arange(max(lengths) + extra) < torch.tensor(lengths)[:, None]
    keep_BT = kept(config, valid_BT, noise_BT[:, : valid_BT.shape[1] - 1] if valid_BT.shape[1] > 1 else noise_BT[:, :0])
    for row, length in enumerate(lengths):
        at = keep_BT[row].nonzero()[:, 0]
        assert len(at) == trained_positions(length - 1, drop) and (not len(at) or at[-1] < length - 1)
        assert len(at) >= min(1, length - 1)
        alone = kept(config, valid_BT[row : row + 1, :length], noise_BT[row : row + 1, : length - 1])
        assert torch.equal(alone[0].nonzero()[:, 0], at)
        if len(at) < length - 1:
            left_out = [noise_BT[row, t] for t in range(length - 1) if t not in at.tolist()]
            assert min(noise_BT[row, at]) >= max(left_out)


def test_the_loss_is_the_mean_over_the_kept_tokens() -> None:
    model = model_of(**fields_of(ALL))
    drawn = DecoderDraws(PARALLEL, uniform(4, 5, seed=1), uniform(4, 5, seed=2))
    assert drawn.words is not None
    task = Pretraining(model.config, recipes.tiny.tiny().loss)
    found = task.loss(model, batch_of(drawn))
    log_p = log_softmax(model.caption_logits(run(model, drawn).decoded), dim=-1)
    keep = kept(model.config.text, VALID, drawn.words)
    nats = [-log_p[row, t, IDS[row, t + 1]] for row, t in keep.nonzero().tolist()]
    assert task.counts(batch_of(drawn)) == {"captioning": len(nats)} and 0 < len(nats) < VALID[:, 1:].sum()
    torch.testing.assert_close(found.parts["captioning"], torch.stack(nats).mean(), **EXACT)
