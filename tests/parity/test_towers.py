"""Published towers: what transformers 4.49.0 and open_clip 3.3.0 compute for tiny random ones, ours do too.

The golden values are of torch 2.15 on a CPU, fp32 (tests/parity/make_towers.py). The worst case measured here stands
beside each tolerance; outputs are up to 10.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opencoca.config import ModelConfig, PoolerConfig, TextConfig, VisionConfig
from opencoca.errors import CheckpointError, ConfigError
from opencoca.interop.towers import Kind, read_tower
from opencoca.model.coca import CoCa
from opencoca.model.init import build

DATA = Path(__file__).parent / "data" / "towers"
CLIP = ModelConfig(
    vision=VisionConfig(16, 4, width=16, depth=2, num_heads=2, mlp_width=32, class_token=True, norm_input=True),
    text=TextConfig(30, 9, width=18, unimodal_depth=2, multimodal_depth=1, num_heads=3, mlp_width=30),
    pooler=PoolerConfig(num_queries=3),
)
SIGLIP = dataclasses.replace(
    CLIP, vision=dataclasses.replace(CLIP.vision, class_token=False, norm_input=False, patch_bias=True)
)
OPEN_CLIP = dataclasses.replace(CLIP, text=dataclasses.replace(CLIP.text, mlp_width=36))
CONFIGS = {"clip": CLIP, "open_clip": OPEN_CLIP, "siglip": SIGLIP}


@functools.cache
def cases() -> dict[str, Tensor]:
    return load_file(DATA / "cases.safetensors")


def changed(config: ModelConfig, part: str, **fields) -> ModelConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})


def started(config: ModelConfig, weights: dict[str, Tensor]) -> CoCa:
    """A fresh model with the tower's weights in it."""
    model = build(config)
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model.eval()


def text_outputs(model: CoCa) -> Tensor:
    ids = cases()["ids"]
    return model.unimodal.norm_cls(model.unimodal(ids, torch.ones_like(ids, dtype=torch.bool))[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_clips_image_tower_is_our_encoder(name: str) -> None:
    tower = read_tower(DATA / name, "vision", CONFIGS[name])
    assert (tower.notes, tower.std[0]) == ([], 0.26862954)
    found = started(CONFIGS[name], tower.weights).encoder(cases()["pixels"])
    torch.testing.assert_close(found, cases()[f"{name}.vision"], rtol=0, atol=1e-5)  # worst 3.8e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_clips_text_tower_is_our_unimodal_decoder(name: str) -> None:
    tower = read_tower(DATA / name, "text", CONFIGS[name])
    assert tower.notes == []
    found = text_outputs(started(CONFIGS[name], tower.weights))
    torch.testing.assert_close(found, cases()[f"{name}.text"], rtol=0, atol=1e-5)  # worst 0


@torch.no_grad()
@pytest.mark.parametrize("arrangement", ["cascade", "parallel"])
def test_siglips_image_tower_is_our_encoder_and_the_poolers_norm(arrangement: str) -> None:
    config = changed(SIGLIP, "pooler", arrangement=arrangement)
    tower = read_tower(DATA / "siglip", "vision", config)
    assert tower.std == tower.mean == (0.5, 0.5, 0.5)
    assert len(tower.notes) == 1 and "--set model.vision.activation=gelu_tanh" in tower.notes[0]
    model = started(config, tower.weights)
    tokens = model.encoder(cases()["pixels"])
    found = model.generative_pooler.norm_context(tokens)
    torch.testing.assert_close(found, cases()["siglip.vision_exact_gelu"], rtol=0, atol=1e-5)  # worst 9.5e-7
    difference = (found - cases()["siglip.vision"]).abs().max()
    assert 1e-5 < difference < 5e-3  # measured 5e-4: its GELU is tanh's, its norms' epsilon 1e-6
    if arrangement == "parallel":
        assert torch.equal(model.contrastive_pooler.norm_context(tokens), found)


@torch.no_grad()
def test_names_of_a_text_tower_inside_a_larger_model(tmp_path: Path) -> None:
    """OpenCLIP's other class keeps texts under "text."."""
    shutil.copytree(DATA / "open_clip", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "open_clip_model.safetensors"
    state = load_file(file)
    save_file({n if n.startswith(("visual.", "logit")) else f"text.{n}": t for n, t in state.items()}, file)
    here, there = (read_tower(folder, "text", OPEN_CLIP).weights for folder in (tmp_path, DATA / "open_clip"))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


@torch.no_grad()
@pytest.mark.parametrize(("name", "grid"), [("clip", 6), ("siglip", 3)])
def test_another_picture_size_is_the_interpolation_at_run_time(name: str, grid: int) -> None:
    config = changed(CONFIGS[name], "vision", image_size_px=4 * grid)
    tower = read_tower(DATA / name, "vision", config)
    assert any(f"{grid}x{grid}" in note for note in tower.notes)
    pixels = torch.randn(2, 3, 4 * grid, 4 * grid, generator=torch.Generator().manual_seed(0))
    trained = started(CONFIGS[name], read_tower(DATA / name, "vision", CONFIGS[name]).weights)
    found = started(config, tower.weights).encoder(pixels)
    torch.testing.assert_close(found, trained.encoder(pixels), rtol=0, atol=1e-6)


def test_fewer_layers_are_the_first_ones() -> None:
    config = changed(CLIP, "text", unimodal_depth=1)
    tower, whole = (read_tower(DATA / "clip", "text", c) for c in (config, CLIP))
    assert "first 1 of its 2" in tower.notes[0]
    rest = {n for n in whole.weights if n.startswith(("unimodal.blocks.1.", "unimodal.norm_cls."))}
    assert set(tower.weights) == set(whole.weights) - rest
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in tower.weights.items())


def test_a_bias_that_clip_lacks_begins_at_zero() -> None:
    config = changed(CLIP, "vision", patch_bias=True)
    assert torch.equal(read_tower(DATA / "clip", "vision", config).weights["encoder.patch.bias"], torch.zeros(16))
    config = changed(CLIP, "vision", patch_bias=False)
    assert "encoder.patch.bias" not in read_tower(DATA / "clip", "vision", config).weights


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_lone_file_says_what_it_does_not_tell(tmp_path: Path, kind: Kind) -> None:
    file = shutil.copy(DATA / "clip" / "model.safetensors", tmp_path / "some.safetensors")
    tower, known = (read_tower(path, kind, CLIP) for path in (Path(file), DATA / "clip"))
    assert all(torch.equal(tensor, known.weights[name]) for name, tensor in tower.weights.items())
    assert ["QuickGELU" in tower.notes[0], "heads" in tower.notes[1]] == [True, True]


def refused(kind: Kind, path: Path, config: ModelConfig) -> str:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        read_tower(path, kind, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_sizes_are_refused_with_the_settings_that_fit() -> None:
    wrong = changed(
        CLIP,
        "vision",
        patch_size_px=8,
        width=24,
        depth=3,
        num_heads=3,
        mlp_width=48,
        class_token=False,
        norm_input=False,
    )
    for part, config in (("vision", wrong), ("text", changed(CLIP, "text", width=24, context_length=20, num_heads=2))):
        message = refused(part, DATA / "clip", config)
        settings = [setting.partition("=") for setting in message.partition("--set ")[2].split()]
        fields = {name.removeprefix(f"model.{part}."): json.loads(value) for name, _, value in settings}
        config = changed(config, part, **fields)
        assert read_tower(DATA / "clip", part, config).weights
    message = refused("text", DATA / "clip", changed(CLIP, "text", vocab_size=31))
    assert "vocab_size 30 instead of 31" in message and message.endswith("--set data.tokenizer=clip")
    assert "patch_bias" in refused("vision", DATA / "siglip", changed(SIGLIP, "vision", patch_bias=False))
    assert "class_token" in refused("vision", DATA / "siglip", CLIP)


def test_an_unknown_activation_or_another_direction_is_refused(tmp_path: Path) -> None:
    assert "both directions" in refused("text", DATA / "siglip", SIGLIP)
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    assert "relu" in refused("text", tmp_path / "clip", CLIP)
    described = tmp_path / "open_clip" / "open_clip_config.json"
    config = json.loads(described.read_text())
    bidirectional = config["model_cfg"] | {"text_cfg": config["model_cfg"]["text_cfg"] | {"no_causal_mask": True}}
    described.write_text(json.dumps({"model_cfg": bidirectional}))
    assert "both directions" in refused("text", tmp_path / "open_clip", OPEN_CLIP)
    described.write_text("[1]")
    assert "not an object" in refused("text", tmp_path / "open_clip", OPEN_CLIP)


def test_files_that_hold_no_such_tower_are_refused(tmp_path: Path) -> None:
    state = load_file(DATA / "open_clip" / "open_clip_model.safetensors")

    def file(name: str, tensors: dict[str, Tensor]) -> Path:
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    assert "none of model.safetensors" in refused("vision", tmp_path, OPEN_CLIP)
    timm = file("timm.safetensors", {"visual.trunk.cls_token": torch.ones(2)})
    assert "instead of timm" in refused("vision", timm, OPEN_CLIP)
    other = file("other.safetensors", {"a.b": torch.ones(2)})
    assert "holds no text tower" in refused("text", other, OPEN_CLIP)
    scaled = state | {"visual.transformer.resblocks.1.ls_1.gamma": torch.ones(16)}
    assert "ls_1.gamma" in refused("vision", file("scaled.safetensors", scaled), OPEN_CLIP)
    cut = {name: tensor for name, tensor in state.items() if not name.endswith("resblocks.1.ln_2.bias")}
    assert "ln_2.bias" in refused("vision", file("cut.safetensors", cut), OPEN_CLIP)
    odd = state | {"visual.positional_embedding": torch.ones(16, 16)}
    assert "no square grid" in refused("vision", file("odd.safetensors", odd), OPEN_CLIP)
    flat = state | {"visual.conv1.weight": torch.ones(16, 48)}
    assert "conv1.weight" in refused("vision", file("flat.safetensors", flat), OPEN_CLIP)
    narrow = state | {"visual.ln_pre.weight": torch.ones(15)}
    assert "norm_input.weight is [15], not [16]" in refused("vision", file("narrow.safetensors", narrow), OPEN_CLIP)
