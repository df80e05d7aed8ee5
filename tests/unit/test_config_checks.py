"""Configurations that contradict themselves are refused with the values and the repair; those at the edge are taken."""

import dataclasses
import math
from typing import Any

import pytest

from opencoca import recipes
from opencoca.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    PoolerConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)
from opencoca.errors import ConfigError

VISION: dict[str, int] = {
    "image_size_px": 16,
    "patch_size_px": 4,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_width": 64,
}


TEXT: dict[str, int] = {
    "vocab_size": 320,
    "context_length": 16,
    "width": 48,
    "unimodal_depth": 2,
    "multimodal_depth": 2,
    "num_heads": 3,
    "mlp_width": 96,
}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: VisionConfig(**VISION | {"image_size_px": 18}), ["image_size_px 18", "patch_size_px 4", "16 and 20"]),
        (lambda: VisionConfig(**VISION | {"image_size_px": 3}), ["image_size_px 3", "patch_size_px 4", "4 is"]),
        (lambda: VisionConfig(**VISION | {"num_heads": 5}), ["width 32", "VisionConfig", "num_heads 5", "30 and 35"]),
        (lambda: TextConfig(**TEXT | {"num_heads": 5}), ["width 48", "TextConfig", "num_heads 5", "45 and 50"]),
        (lambda: TextConfig(**TEXT | {"context_length": 1}), ["context_length 1", "at least 2"]),
        (lambda: TextConfig(**TEXT | {"unimodal_depth": 0}), ["unimodal_depth 0", "at least 1"]),
        (lambda: TextConfig(**TEXT | {"multimodal_depth": -1}), ["multimodal_depth -1"]),
        (lambda: PoolerConfig(num_queries=0), ["num_queries 0", "at least 1"]),
        (lambda: PixelConfig(std=(0.5, 0.0, 0.5)), ["std (0.5, 0.0, 0.5)", "above 0"]),
        (lambda: LossConfig(0.0, 0.0), ["both loss weights are 0"]),
        (lambda: LossConfig(-1.0, 2.0), ["-1.0", "2.0", "negative"]),
        (lambda: LossConfig(math.nan, 2.0), ["nan", "2.0"]),
        (lambda: OptimConfig(steps=0), ["steps 0", "at least 1"]),
        (lambda: OptimConfig(steps=5, warmup_steps=5), ["warmup_steps 5", "steps 5", "set both"]),
        (lambda: OptimConfig(steps=5, warmup_steps=-1), ["warmup_steps -1", "not negative"]),
        (lambda: OptimConfig(steps=5, ema_decay=1.0), ["ema_decay 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, peak_lr=0.0), ["peak_lr 0.0", "above 0"]),
        (lambda: OptimConfig(steps=5, peak_lr=math.nan), ["peak_lr nan", "above 0"]),
        (lambda: OptimConfig(steps=5, beta2=1.0), ["beta2 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, beta1=-0.1), ["beta1 -0.1", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, muon_peak_lr=0.0), ["muon_peak_lr 0.0", "above 0"]),
        (lambda: OptimConfig(steps=5, muon_momentum=1.0), ["muon_momentum 1.0", "[0, 1)"]),
        (lambda: OptimConfig(steps=5, eps=-1e-8), ["eps -1e-08", "negative"]),
        (lambda: OptimConfig(steps=5, weight_decay=-0.1), ["weight_decay -0.1", "negative"]),
        (lambda: OptimConfig(steps=5, clip_norm=0.0), ["clip_norm 0.0", "inf"]),
        (lambda: DataConfig("d", batch_size=0), ["batch_size 0", "at least 1"]),
        (lambda: DataConfig("d", batch_size=1, max_shift_px=-1), ["max_shift_px -1"]),
        (lambda: DataConfig("d", batch_size=1, first_caption=1.5), ["first_caption 1.5", "0 to 1"]),
        (lambda: DataConfig("d", batch_size=1, text_buckets=0), ["text_buckets 0"]),
        (lambda: DataConfig("d", batch_size=1, bucket_gain=-1), ["bucket_gain -1"]),
        (lambda: DataConfig("d", batch_size=1, clump_size=0), ["clump_size 0", "at least 1"]),
        (lambda: VisionConfig(**VISION, max_patches=-1), ["max_patches -1", "0 reads all"]),
        (lambda: RunConfig(log_every_steps=0), ["log_every_steps 0", "at least 1"]),
        (lambda: RunConfig(keep_checkpoints=0), ["keep_checkpoints 0", "at least 1"]),
    ],
)
def test_contradictions_name_the_values_and_the_repair(build: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{error.value} should say {missing}"


@pytest.mark.parametrize("name", VISION)
def test_every_size_of_the_encoder_is_positive(name: str) -> None:
    VisionConfig(**VISION)
    with pytest.raises(ConfigError, match=f"{name} 0 in VisionConfig must be at least 1"):
        VisionConfig(**VISION | {name: 0})


def test_values_at_the_edge_are_taken() -> None:
    TextConfig(**TEXT | {"context_length": 2, "multimodal_depth": 0, "unimodal_depth": 1})
    OptimConfig(steps=1)
    OptimConfig(steps=2, warmup_steps=1, beta1=0.0, clip_norm=math.inf, weight_decay=0.0)
    LossConfig(1.0, 0.0)
    LossConfig(0.0, 1.0)
    model = recipes.tiny.tiny().model
    for temperature in (0.01, 1.0):
        dataclasses.replace(model, init_temperature=temperature)
    for temperature in (0.0, 1.01, math.nan):
        with pytest.raises(ConfigError, match=f"init_temperature {temperature}"):
            ModelConfig(model.vision, model.text, init_temperature=temperature)


def test_derived_sizes() -> None:
    model = recipes.tiny.tiny().model
    assert model.vision.grid == 4
    assert model.embed_dim == 48 == model.text.width
