"""What a training step is said to need, against what it does need."""

import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from opencoca import recipes
from opencoca.config import Config, ModelConfig, PoolerConfig, TextConfig, VisionConfig
from opencoca.losses import captioning, contrastive
from opencoca.model.blocks import Block, PictureBlock
from opencoca.model.draws import kept
from opencoca.model.init import build
from opencoca.parallel.fsdp import recompute
from opencoca.train.memory import Shape, memory, parameter_bytes
from opencoca.train.optim import make_optimizers
from opencoca.types import DecoderDraws, TextBucket

PAIRS, LENGTH = 8, 24
PAPER = ModelConfig(
    vision=VisionConfig(image_size_px=96, patch_size_px=8, width=192, depth=4, num_heads=3, mlp_width=768),
    text=TextConfig(
        vocab_size=4000,
        context_length=32,
        width=192,
        unimodal_depth=3,
        multimodal_depth=3,
        num_heads=3,
        mlp_width=768,
        tie_output=True,
    ),
    pooler=PoolerConfig(num_queries=64),
)
DRAWN = dataclasses.replace(
    PAPER,
    text=dataclasses.replace(PAPER.text, token_drop=0.5),
    pooler=dataclasses.replace(PAPER.pooler, train_queries=16),
)
PUBLISHED = recipes.open_clip.layout(
    image_size_px=96,
    patch_size_px=12,
    vision_width=192,
    vision_depth=6,
    vision_heads=3,
    text_width=128,
    text_depth=3,
    multimodal_depth=3,
    text_heads=2,
    num_queries=63,
    vocab_size=4000,
    context_length=32,
)


def config_of(model: ModelConfig, optimizer: str = "adamw", light: bool = False, **optim) -> Config:
    tiny = recipes.tiny.tiny()
    return dataclasses.replace(
        tiny,
        model=model,
        optim=dataclasses.replace(tiny.optim, **{"ema_decay": 0.0, "optimizer": optimizer, **optim}),
        run=dataclasses.replace(tiny.run, checkpoint_activations=light),
    )


def measured_peak(config: Config, bf16: bool) -> int:
    """The most bytes that are held at any instant of the second step, by the profiler's record of allocations."""
    model = build(config.model)
    optimizers = make_optimizers(model, config.optim)
    if config.run.checkpoint_activations:
        recompute(module for module in model.modules() if isinstance(module, Block | PictureBlock))
    size_px = config.model.vision.image_size_px
    pixels = torch.randn(PAIRS, 3, size_px, size_px)
    ids = torch.randint(3, config.model.text.vocab_size, (PAIRS, LENGTH))
    valid = torch.ones_like(ids, dtype=torch.bool)
    drawn, predicts = DecoderDraws(), valid[:, 1:]
    buckets = (TextBucket(0, PAIRS // 2, LENGTH), TextBucket(PAIRS // 2, PAIRS, LENGTH))
    if config.model.text.token_drop:
        drawn = DecoderDraws(words=torch.rand(PAIRS, LENGTH - 1), queries=torch.rand(PAIRS, 64))
        predicts = kept(config.model.text, valid, torch.rand(PAIRS, LENGTH - 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(pixels, ids, valid, buckets, None, drawn)
            embeds = out.image_embed, out.text_embed
            loss = contrastive.contrastive_loss(*embeds, *embeds, out.scale)
            decoded, targets = out.decoded[predicts], ids[:, 1:][predicts]
            loss = loss + 2 * captioning.linear_captioning_loss(decoded, model.head.weight, targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step()
    held = sum(4 * parameter.numel() for parameter in model.parameters())
    for optimizer in optimizers:
        for moments in optimizer.state.values():
            held += sum(x.numel() * x.element_size() for x in moments.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():  # pyright: ignore
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return held + most


@pytest.mark.parametrize(
    ("model", "bf16", "light"),
    [
        (PAPER, False, False),
        (PAPER, True, True),
        (PUBLISHED, True, False),
        (PUBLISHED, False, True),
        (DRAWN, False, False),
    ],
    ids=["paper-fp32", "paper-bf16-recomputed", "published-bf16", "published-fp32-recomputed", "drawn-fp32"],
)
def test_the_peak_is_within_15_percent_of_the_measured_one(model, bf16, light):
    config = config_of(model, light=light)
    measured = measured_peak(config, bf16)
    said = memory(config, Shape(PAIRS, LENGTH, PAIRS), bf16, device="cpu").peak
    assert said == pytest.approx(measured, rel=0.15), f"{said / 1e6:.1f} MB said, {measured / 1e6:.1f} MB measured"


def test_activations_dominate_the_cases_above_and_recomputing_removes_most_of_them():
    shape = Shape(PAIRS, LENGTH, PAIRS)
    full, light = (memory(config_of(PAPER, light=light), shape, False, device="cpu") for light in (False, True))
    assert full.activations > 3 * full.weights and light.activations < full.activations / 5


def test_what_the_decoder_leaves_out_takes_less():
    shape = Shape(PAIRS, LENGTH, PAIRS)
    whole, drawn = (memory(config_of(model), shape, False, device="cpu").activations for model in (PAPER, DRAWN))
    assert drawn < 0.95 * whole


def test_optimizers_take_what_they_keep_of_each_parameter():
    sizes = {name: parameter_bytes(config_of(PAPER, name)) for name in ("adamw", "muon", "adafactor")}
    weights = sizes["adamw"].weights
    assert sizes["adamw"].moments == pytest.approx(2 * weights, rel=1e-3)
    assert weights < sizes["muon"].moments < 1.4 * weights, "hidden matrices have one moment, the rest two"
    assert weights < sizes["adafactor"].moments < 1.05 * weights, "a matrix's second moments are a row and a column"


def test_frozen_parts_have_no_gradients_no_moments_and_no_average():
    whole = parameter_bytes(config_of(PAPER, ema_decay=0.9))
    lit = parameter_bytes(config_of(PAPER, ema_decay=0.9, frozen=("encoder",)))
    encoder = whole.trained_by_part["encoder"]
    assert whole.trained - lit.trained == encoder > 0 and lit.trained_by_part["encoder"] == 0
    assert lit.average == lit.trained and lit.weights == whole.weights
    assert lit.moments == pytest.approx(2 * lit.trained, rel=1e-3)


def test_ranks_share_what_is_cut_up_and_nothing_else():
    config, shape = config_of(recipes.paper.coca().model), Shape(8, 24, 512)
    copied, cut = (memory(config, shape, True, world=64, sharded=sharded) for sharded in (False, True))
    assert (cut.weights, cut.gradients) == (-(-copied.weights // 64), -(-copied.gradients // 64))
    assert cut.activations < copied.activations, "no bf16 copies of whole matrices"
    assert copied.peak > 40e9 > 15e9 > cut.peak


def test_a_smaller_micro_batch_and_smaller_chunks_take_less():
    config = config_of(PAPER)
    peaks = [memory(config, Shape(pairs, LENGTH, 64), True).peak for pairs in (64, 32, 8)]
    assert peaks == sorted(peaks, reverse=True)
    chunked = dataclasses.replace(config, loss=dataclasses.replace(config.loss, caption_chunk=64))
    shape = Shape(64, LENGTH, 64)
    assert memory(chunked, shape, True).losses < memory(config, shape, True).losses
