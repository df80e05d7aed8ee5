"""OpenAI's CLIP (QuickGELU) and SigLIP (GELU by tanh): our towers against blocks that are written out by hand here."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.test_open_clip import MODEL_CFG
from tests.parity.test_towers import CLIP, DATA, OPEN_CLIP, SIGLIP, cases, changed, refused, started, text_outputs
from torch import Tensor
from torch.nn import functional as F

from opencoca.config import Activation, ModelConfig
from opencoca.errors import ConfigError
from opencoca.interop.open_clip import from_open_clip, model_cfg, model_config, to_open_clip
from opencoca.interop.towers import Kind, read_tower
from opencoca.model.blocks import activated
from opencoca.model.init import build

CLOSE = {"rtol": 0, "atol": 1e-5}  # worst 3.8e-6, of outputs up to 10


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference(state: Mapping[str, Tensor], x: Tensor, heads: int, causal: bool, activation, epsilon: float) -> Tensor:
    """Two pre-norm blocks under OpenCLIP's names, attention head by head."""
    for i in range(2):
        own = {
            name.partition(f"transformer.resblocks.{i}.")[2]: tensor
            for name, tensor in state.items()
            if name.startswith(f"transformer.resblocks.{i}.")
        }

        def norm(x: Tensor, name: str, own: dict[str, Tensor] = own) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
            return scaled * own[f"{name}.weight"] + own[f"{name}.bias"]

        q, k, v = (norm(x, "ln_1") @ own["attn.in_proj_weight"].T + own["attn.in_proj_bias"]).chunk(3, dim=-1)
        width = q.shape[-1] // heads
        seen = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
            if causal:
                future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
                logits = logits.masked_fill(future, float("-inf"))
            seen.append(logits.softmax(-1) @ v[..., part])
        x = x + torch.cat(seen, -1) @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"]
        hidden = activation(norm(x, "ln_2") @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"])
        x = x + hidden @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    return x


def with_activation(config: ModelConfig, activation: Activation) -> ModelConfig:
    return changed(changed(config, "vision", activation=activation), "text", activation=activation)


def openai_folder(folder: Path) -> Path:
    """The tiny OpenCLIP tower, said to be trained with QuickGELU, as OpenAI's are."""
    shutil.copytree(DATA / "open_clip", folder)
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(("name", "by_hand"), [("quick_gelu", quick_gelu), ("gelu_tanh", gelu_tanh)])
def test_the_formulas(name: Activation, by_hand) -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(activated(x, name), by_hand(x), rtol=0, atol=1e-14)
    assert (activated(x, name) - F.gelu(x)).abs().max() > 1e-4, "they are no exact GELU"


@torch.no_grad()
def test_openais_towers(tmp_path: Path) -> None:
    folder, config = openai_folder(tmp_path / "openai"), with_activation(OPEN_CLIP, "quick_gelu")
    state = load_file(folder / "open_clip_model.safetensors")
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    texts = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}

    tower = read_tower(folder, "vision", config)
    assert tower.notes == []
    patches = F.conv2d(cases()["pixels"], visual["conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    first = visual["class_embedding"].expand(2, 1, -1)
    x = torch.cat((first, patches), 1) + visual["positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], visual["ln_pre.weight"], visual["ln_pre.bias"])
    expected = reference(visual, x, 2, False, quick_gelu, 1e-5)
    torch.testing.assert_close(started(config, tower.weights).encoder(cases()["pixels"]), expected, **CLOSE)
    assert (expected - cases()["open_clip.vision"]).abs().max() > 1e-2, "the exact GELU is another model"

    tower, ids = read_tower(folder, "text", config), cases()["ids"]
    x = texts["token_embedding.weight"][ids] + texts["positional_embedding"][: ids.shape[1]]
    x = reference(texts, x, 3, True, quick_gelu, 1e-5)
    expected = F.layer_norm(x, x.shape[-1:], texts["ln_final.weight"], texts["ln_final.bias"])
    torch.testing.assert_close(text_outputs(started(config, tower.weights)), expected, **CLOSE)


@torch.no_grad()
def test_siglips_image_tower() -> None:
    """What is left of the difference to SigLIP is the epsilon of its norms, 1e-6 where ours is 1e-5."""
    config = with_activation(SIGLIP, "gelu_tanh")
    tower = read_tower(DATA / "siglip", "vision", config)
    assert tower.notes == []
    model = started(config, tower.weights)
    found = model.generative_pooler.norm_context(model.encoder(cases()["pixels"]))
    rough = (found - cases()["siglip.vision"]).abs().max()
    exact = (cases()["siglip.vision_exact_gelu"] - cases()["siglip.vision"]).abs().max()
    assert rough < 2e-5 < 3e-4 < exact  # measured 6.4e-6 and 5e-4
    own = {n.replace("encoder.blocks", "blocks"): t for n, t in tower.weights.items()}
    theirs = {}
    for i in range(2):
        ours, name = f"blocks.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            theirs[f"{name}attn.in_proj_{kind}"] = torch.cat(
                [own[f"{ours}self_attention.{part}.{kind}"] for part in ("q", "kv")]
            )
            pairs = {"norm_self": "ln_1", "norm_mlp": "ln_2", "self_attention.out": "attn.out_proj"}
            pairs |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
            theirs |= {f"{name}{there}.{kind}": own[f"{ours}{here}.{kind}"] for here, there in pairs.items()}
    x = model.encoder.patch(F.unfold(cases()["pixels"], 4, stride=4).transpose(1, 2)) + model.encoder.positions_PD
    x = reference(theirs, x, 2, False, gelu_tanh, 1e-5)
    torch.testing.assert_close(model.encoder(cases()["pixels"]), x, **CLOSE)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_another_activation_is_refused_with_the_setting_that_fits(tmp_path: Path, kind: Kind) -> None:
    folder = openai_folder(tmp_path / "openai")
    assert refused(kind, folder, OPEN_CLIP).endswith(f"--set model.{kind}.activation=quick_gelu")
    said = refused(kind, DATA / "open_clip", changed(OPEN_CLIP, kind, activation="quick_gelu"))
    assert said.endswith(f"--set model.{kind}.activation=gelu")
    config = json.loads((DATA / "clip" / "config.json").read_text())
    del config[f"{kind}_config"]["hidden_act"]  # what OpenAI's lack: QuickGELU is the library's default
    shutil.copytree(DATA / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    assert refused(kind, tmp_path / "clip", CLIP).endswith(f"model.{kind}.activation=quick_gelu")


@torch.no_grad()
def test_an_open_clip_coca_with_quick_gelu_comes_and_goes() -> None:
    described = MODEL_CFG | {"quick_gelu": True}
    config, plain = model_config(described), model_config(MODEL_CFG)
    assert config == with_activation(plain, "quick_gelu") and config != plain
    back, state = to_open_clip(build(config))
    assert back["quick_gelu"] is True and "quick_gelu" not in model_cfg(plain)
    model, exact = from_open_clip(back, state), from_open_clip(model_cfg(plain), state)
    pixels = torch.randn(1, 3, config.vision.image_size_px, config.vision.image_size_px)
    assert not torch.allclose(model.encode_image(pixels).tokens, exact.encode_image(pixels).tokens)
    mixed = dataclasses.replace(plain, text=dataclasses.replace(plain.text, activation="gelu_tanh"))
    with pytest.raises(ConfigError, match="this model has gelu and gelu_tanh"):
        to_open_clip(build(mixed))
