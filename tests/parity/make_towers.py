"""Makes tests/parity/data/towers: tiny CLIP and SigLIP models with random weights, as their own libraries save them.

    benchmarks/peer_environment.sh FOLDER; FOLDER/bin/python tests/parity/make_towers.py

Each folder holds what a published model's does. `cases.safetensors` holds inputs, and what the libraries compute in
fp32 on a CPU: the image tower's tokens behind the last layer (SigLIP: and its norm), the text tower's behind its norm.
"""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

FOLDER = Path(__file__).parent / "data" / "towers"
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 4}
TEXT = {"hidden_size": 18, "intermediate_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT |= {"vocab_size": 30, "max_position_embeddings": 10, "bos_token_id": 28, "eos_token_id": 29}
OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 10, "vocab_size": 30, "width": 18, "heads": 3, "layers": 2, "mlp_ratio": 2.0},
}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Values that leave no bias, norm or position at what it would be by default."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.2 * drawn if is_norm else 0.3 * drawn)


@torch.no_grad()
def main() -> None:
    """Writes all files."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    ids = torch.randint(0, 28, (2, 9), generator=generator)
    cases = {"pixels": pixels, "ids": ids}

    exact = {"hidden_act": "gelu"}
    clip = CLIPModel(CLIPConfig(vision_config=VISION | exact, text_config=TEXT | exact, projection_dim=8))
    randomise(clip.eval(), 1)
    clip.save_pretrained(FOLDER / "clip")
    cases["clip.vision"] = clip.vision_model(pixels).last_hidden_state
    cases["clip.text"] = clip.text_model(ids).last_hidden_state

    siglip = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT | {"num_hidden_layers": 1})).eval()
    randomise(siglip, 2)
    siglip.save_pretrained(FOLDER / "siglip")
    cases["siglip.vision"] = siglip.vision_model(pixels).last_hidden_state
    ours = VISION | exact | {"layer_norm_eps": 1e-5}  # so that everything else can be compared closely
    as_ours = SiglipModel(SiglipConfig(vision_config=ours, text_config=TEXT | {"num_hidden_layers": 1})).eval()
    as_ours.load_state_dict(siglip.state_dict())
    cases["siglip.vision_exact_gelu"] = as_ours.vision_model(pixels).last_hidden_state

    other = CLIP(**{**OPEN_CLIP, "vision_cfg": open_clip.CLIPVisionCfg(**OPEN_CLIP["vision_cfg"])})
    randomise(other.eval(), 3)
    (FOLDER / "open_clip").mkdir(parents=True, exist_ok=True)
    save_file(other.state_dict(), FOLDER / "open_clip" / "open_clip_model.safetensors")
    (FOLDER / "open_clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}, indent=2) + "\n")
    seen = []
    other.visual.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    other.encode_image(pixels)
    cases["open_clip.vision"] = seen[0]
    x = other.token_embedding(ids) + other.positional_embedding[: ids.shape[1]]
    x = other.transformer(x, attn_mask=other.attn_mask[: ids.shape[1], : ids.shape[1]])
    cases["open_clip.text"] = other.ln_final(x)
    save_file({name: tensor.contiguous() for name, tensor in cases.items()}, FOLDER / "cases.safetensors")
    for file in FOLDER.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
