"""The image and text towers of published CLIP and SigLIP weights, as a start for CoCa's encoder and unimodal decoder.

Read are OpenAI's and OpenCLIP's names (`visual.*`, `transformer.*`) and those of Hugging Face transformers
(`vision_model.*`, `text_model.*`), from safetensors or PyTorch files that hold nothing but weights.

What has no place in CoCa stays behind. Of images: the projection into CLIP's joint space, SigLIP's pooling head, and
CLIP's last norm, which was trained on the class token alone; SigLIP's last norm, which all patches pass, becomes the
pooler's norm of the encoder's tokens. Of texts: the projection; and the last norm where fewer layers are taken than
there are. Temperatures stay behind, since poolers, [CLS] and the multimodal half begin at random anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from opencoca import weights
from opencoca.config import Activation, ModelConfig, TextConfig, VisionConfig
from opencoca.errors import CheckpointError, ConfigError
from opencoca.interop.open_clip import Link, block_links, linked, pair_links
from opencoca.interop.open_clip_folder import CONFIG_FILE, WEIGHTS_FILES
from opencoca.model.coca import CoCa
from opencoca.recipes.open_clip import CLIP_MEAN, CLIP_STD

Kind = Literal["vision", "text"]
_FILES = ("model.safetensors", *WEIGHTS_FILES, "pytorch_model.bin")
_HALF = (0.5, 0.5, 0.5)
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_RENAMED = (  # transformers' names, as OpenCLIP calls the same tensors
    (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
)
_QUERY = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)")


class Tower(NamedTuple):
    """A published tower in our words.

    weights: by our names, float32, with the position table of the wanted grid. notes: what differs from the model they
    come from, one line each. mean, std: how the pictures were normalised that it was trained on.
    """

    weights: dict[str, Tensor]
    notes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class _Found(NamedTuple):
    """A tower as it is stored: OpenCLIP's names without prefix, and what the configuration beside the file says.

    siglip: texts are read in both directions, and all patches pass the last norm.
    """

    state: dict[str, Tensor]
    siglip: bool
    num_heads: int | None
    activation: str | None


def read_tower(path: Path, kind: Kind, config: ModelConfig) -> Tower:
    """The weights for `config`'s encoder ("vision") or unimodal decoder ("text") in a published file or folder.

    A text tower may have more layers than `config`: the first ones are taken. Another picture size is interpolated.

    Raises: CheckpointError for a file that is no such tower; ConfigError for one of other sizes or another activation,
        with the settings that fit, and for one whose direction of reading isn't ours.
    """
    file = _weights_file(path)
    found = _found(file, kind, weights.read(file))
    notes: list[str] = []
    if kind == "vision":
        theirs, links = _vision(file, found, config, notes), _vision_links(found, config)
    else:
        theirs, links = _text(file, found, config, notes), _text_links(found, config.text)
    _refuse_other_sizes(file, theirs, config.vision if kind == "vision" else config.text, kind)
    wanted = list(links)
    missing = [name for link in wanted for name in link.theirs if name not in found.state]
    if missing:
        raise CheckpointError(
            f"{file} lacks {len(missing)} tensors of its {kind} tower ({', '.join(missing[:3])}); fetch it again"
        )
    with torch.device("meta"):
        own = CoCa(config).state_dict()
    ours = linked(wanted, found.state, own)
    if kind == "vision":
        ours = weights.resized_positions(ours, config)
        if "encoder.patch.bias" not in ours and config.vision.patch_bias:
            ours["encoder.patch.bias"] = torch.zeros(config.vision.width)  # the same map as without
    else:
        ours["unimodal.positions_TD"] = ours["unimodal.positions_TD"][: config.text.context_length + 1]
    for name, tensor in ours.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{file}: {name} is {list(tensor.shape)}, not {list(own[name].shape)}; fetch it again"
            )
    return Tower(ours, notes, *((_HALF, _HALF) if found.siglip else (CLIP_MEAN, CLIP_STD)))


def _vision(file: Path, found: _Found, config: ModelConfig, notes: list[str]) -> dict[str, Any]:
    """The stored tower's `VisionConfig` fields; those that don't matter are missing."""
    state, ours = found.state, config.vision
    theirs = _activation(file, found, "vision", ours.activation, notes)
    kernel = _tensor(file, state, "conv1.weight", 4)
    theirs |= _sizes(file, state, kernel.shape[0], found.num_heads, ours, notes)
    theirs |= {"patch_size_px": kernel.shape[-1], "depth": _depth(state)}
    theirs |= {"class_token": "class_embedding" in state, "norm_input": "ln_pre.weight" in state}
    if "conv1.bias" in state:
        theirs["patch_bias"] = True
    positions = len(_tensor(file, state, "positional_embedding", 2)) - theirs["class_token"]
    if positions != ours.grid**2:
        notes.append(f"its positions of {positions} patches are interpolated to {ours.grid}x{ours.grid}")
    return theirs


def _text(file: Path, found: _Found, config: ModelConfig, notes: list[str]) -> dict[str, Any]:
    """The stored tower's `TextConfig` fields, as far as they fit the wanted depth and context or don't."""
    if found.siglip:
        raise ConfigError(
            f"{file} is a text tower that reads in both directions, as SigLIP's do, and CoCa's decoder reads in one; "
            "start texts from a CLIP, or at random"
        )
    state, ours = found.state, config.text
    theirs = _activation(file, found, "text", ours.activation, notes)
    vocab_size, width = _tensor(file, state, "token_embedding.weight", 2).shape
    theirs |= _sizes(file, state, width, found.num_heads, ours, notes)
    depth, room = _depth(state), len(_tensor(file, state, "positional_embedding", 2))
    theirs |= {"vocab_size": vocab_size, "unimodal_depth": min(depth, ours.unimodal_depth)}
    theirs["context_length"] = min(room - 1, ours.context_length)  # [CLS] takes a position too
    if depth > ours.unimodal_depth:
        notes.append(f"the first {ours.unimodal_depth} of its {depth} text layers are taken, without its last norm")
    return theirs


def _sizes(
    file: Path, state: Mapping[str, Tensor], width: int, num_heads: int | None, ours: Any, notes: list[str]
) -> dict[str, Any]:
    if num_heads is None:
        notes.append(
            f"the file doesn't say how many heads it has; they are taken to be {width / ours.num_heads:g} wide"
        )
    mlp_width = len(_tensor(file, state, "transformer.resblocks.0.mlp.c_fc.weight", 2))
    return {"width": width, "mlp_width": mlp_width, "num_heads": num_heads or ours.num_heads}


def _refuse_other_sizes(file: Path, theirs: dict[str, Any], ours: VisionConfig | TextConfig, kind: Kind) -> None:
    other = {name: value for name, value in theirs.items() if getattr(ours, name) != value}
    if other:
        differs = ", ".join(f"{name} {value} instead of {getattr(ours, name)}" for name, value in other.items())
        words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in other.items()}
        settings = [f"model.{kind}.{name}={word}" for name, word in words.items() if name != "vocab_size"]
        settings += ["data.tokenizer=clip"] if "vocab_size" in other else []
        raise ConfigError(f"{file} doesn't fit the recipe's {kind} tower: {differs}; --set {' '.join(settings)}")


def _vision_links(found: _Found, config: ModelConfig) -> Iterator[Link]:
    yield Link(("encoder.patch.weight",), ("conv1.weight",), "flattened")
    yield Link(("encoder.positions_PD",), ("positional_embedding",))
    if "conv1.bias" in found.state:
        yield Link(("encoder.patch.bias",), ("conv1.bias",))
    if "class_embedding" in found.state:
        yield Link(("encoder.class_D",), ("class_embedding",))
    if "ln_pre.weight" in found.state:
        yield from pair_links("encoder.norm_input", "ln_pre")
    for i in range(config.vision.depth):
        yield from block_links(f"encoder.blocks.{i}", f"transformer.resblocks.{i}")
    if found.siglip:
        yield from pair_links("generative_pooler.norm_context", "ln_post")
        if config.pooler.arrangement == "parallel":
            yield from pair_links("contrastive_pooler.norm_context", "ln_post")


def _text_links(found: _Found, config: TextConfig) -> Iterator[Link]:
    yield Link(("unimodal.tokens.weight",), ("token_embedding.weight",))
    yield Link(("unimodal.positions_TD",), ("positional_embedding",))
    for i in range(config.unimodal_depth):
        yield from block_links(f"unimodal.blocks.{i}", f"transformer.resblocks.{i}")
    if _depth(found.state) == config.unimodal_depth:
        yield from pair_links("unimodal.norm_cls", "ln_final")


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = next((path / name for name in _FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} has none of {', '.join(_FILES)}; add the weights, or name their file")
    return file


def _found(file: Path, kind: Kind, state: Mapping[str, Tensor]) -> _Found:
    """The tower under OpenCLIP's names, whichever library's names it is stored under.

    Raises: CheckpointError where the file holds no such tower.
    """
    prefix = {"vision": "vision_model.", "text": "text_model."}[kind]
    if any(name.startswith(f"{prefix}encoder.layers.") for name in state):
        siglip = f"{prefix}head.probe" in state or f"{prefix}head.weight" in state
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        return _Found(_as_open_clip(file, inner), siglip, *_transformers_facts(file, kind, siglip))
    if kind == "vision":
        prefix = "visual."
    else:
        prefix = "text." if any(name.startswith("text.transformer.") for name in state) else ""
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not prefix:
        inner = {name: tensor for name, tensor in inner.items() if not name.startswith("visual.")}
    if "transformer.resblocks.0.ln_1.weight" not in inner:
        timm = any(name.startswith("visual.trunk.") for name in state)
        raise CheckpointError(
            f"{file} holds no {kind} tower that can be read (names as in {', '.join(list(state)[:3])}); give CLIP or "
            f"SigLIP weights {'of transformers instead of timm' if timm else 'of OpenCLIP or transformers'}"
        )
    known = {name for link in block_links("ours", "transformer.resblocks.0") for name in link.theirs}
    blocks = {re.sub(r"^(transformer\.resblocks\.)\d+", r"\g<1>0", name) for name in inner if "resblocks." in name}
    if blocks - known:
        raise CheckpointError(
            f"{file} has layers that CLIP's don't ({', '.join(sorted(blocks - known)[:3])}); give a plain CLIP"
        )
    return _Found(inner, *_open_clip_facts(file, kind, len(_tensor(file, inner, "positional_embedding", 2)[0])))


def _as_open_clip(file: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under OpenCLIP's names, with query, key and value stacked."""
    renamed = {}
    for name, tensor in state.items():
        if query := _QUERY.fullmatch(name):
            rows = [_tensor(file, state, name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            renamed[f"transformer.resblocks.{query[1]}.attn.in_proj_{query[2]}"] = torch.cat(rows)
        for pattern, theirs in _RENAMED:
            if re.match(pattern, name):
                renamed[re.sub(f"^{pattern}", theirs, name)] = tensor
    return renamed


def _transformers_facts(file: Path, kind: Kind, siglip: bool) -> tuple[int | None, str | None]:
    """Heads and activation of config.json, which leaves out what is its library's default."""
    described = _json(file.parent / "config.json")
    if described is None:
        return None, None
    section = described.get(f"{kind}_config")
    section = section if isinstance(section, dict) else described
    usual_heads = 12 if kind == "vision" else 8
    usual = "gelu_pytorch_tanh" if siglip else "quick_gelu"
    return int(section.get("num_attention_heads", usual_heads)), str(section.get("hidden_act", usual))


def _open_clip_facts(file: Path, kind: Kind, width: int) -> tuple[bool, int | None, str | None]:
    """Whether texts are read in both directions, heads, and activation, of open_clip_config.json."""
    described = _json(file.parent / CONFIG_FILE)
    if described is None:
        return False, None, None
    model_cfg = described.get("model_cfg", described)
    section = model_cfg.get(f"{kind}_cfg", {})
    heads = width // section.get("head_width", 64) if kind == "vision" else section.get("heads", 8)
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    if (section.get("act_kwargs") or {}).get("approximate") == "tanh":
        activation = "gelu_pytorch_tanh"
    return bool(section.get("no_causal_mask")), int(heads), activation


def _activation(file: Path, found: _Found, kind: Kind, ours: Activation, notes: list[str]) -> dict[str, Any]:
    """The stored tower's `activation`, where it must be ours.

    GELU and its approximation by tanh are near enough for either to begin with the other's weights; that is noted.

    Raises: ConfigError for an activation that we don't have.
    """
    if found.activation is None:
        notes.append(
            f"the file doesn't say which activation it was trained with; this run computes {ours}, and OpenAI's own "
            f"weights want QuickGELU: --set model.{kind}.activation=quick_gelu"
        )
        return {}
    if found.activation not in _ACTIVATIONS:
        raise ConfigError(f"{file} was trained with {found.activation}; give weights of {', '.join(_ACTIVATIONS)}")
    theirs = _ACTIVATIONS[found.activation]
    if {theirs, ours} == {"gelu", "gelu_tanh"}:
        notes.append(
            f"it was trained with {found.activation}, which differs from {ours} by up to 0.0005: "
            f"--set model.{kind}.activation={theirs} computes the same"
        )
        return {}
    return {"activation": theirs}


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})


def _tensor(file: Path, state: Mapping[str, Tensor], name: str, dim: int | None = None) -> Tensor:
    if name not in state or (dim is not None and state[name].dim() != dim):
        raise CheckpointError(f"{file} has no usable {name}; give the whole weights of a CLIP or SigLIP ViT")
    return state[name]


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not an object; fetch it again")
    return found
