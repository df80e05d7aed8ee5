"""OpenCLIP's CoCa checkpoints to ours and back, bit for bit: one table of links between the two layouts' names.

What is peculiar about that layout is in our configuration (`recipes.open_clip.layout`), so the model is the same class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from opencoca import weights
from opencoca.config import Config, ModelConfig, PixelConfig
from opencoca.config_tree import build_tree
from opencoca.errors import CheckpointError, ConfigError
from opencoca.model.coca import CoCa
from opencoca.recipes import open_clip as recipes

IMAGE_SIZE_PX, VOCAB_SIZE = 224, 49408


class Link(NamedTuple):
    """Tensors that hold the same numbers: ours, stacked by rows, are theirs, stacked by rows, in another form."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Literal["same", "transposed", "flattened", "scalar"] = "same"


def from_open_clip(model_cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> CoCa:
    """The model that OpenCLIP's `model_cfg` describes, with the weights of `state`, float32 and in evaluation mode.

    Weights keep their memory where the layouts allow it, so a memory-mapped file isn't copied.

    Raises: ConfigError for an architecture that isn't this one; CheckpointError where names, shapes or dtypes differ.
    """
    config = model_config(model_cfg)
    with torch.device("meta"):
        model = CoCa(config)
    own = model.state_dict()
    differing = weights.differences(state, _to_theirs(config, own))
    if differing:
        raise CheckpointError(
            f"the weights don't fit the model_cfg: {differing}; use the configuration published with them"
        )
    model.load_state_dict(linked(_links(config), state, own), assign=True)
    return model.eval()


def linked(links: Iterable[Link], state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our float32 tensors of their `state`; where one of theirs is several of ours, `own` has the lengths of those."""
    ours: dict[str, Tensor] = {}
    for link in links:
        stacked = _stack([_ours(state[name], link.form) for name in link.theirs]).float()
        parts = [stacked] if len(link.ours) == 1 else stacked.split([len(own[name]) for name in link.ours])
        ours |= zip(link.ours, parts, strict=True)
    return ours


def to_open_clip(model: CoCa) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """OpenCLIP's `model_cfg` and state of a model of that layout; the inverse of `from_open_clip`.

    Raises: ConfigError for a model of another layout, which OpenCLIP can't run.
    """
    config = model.config
    if (config.text.cls_place, config.text.cross_attention, config.pooler.arrangement) != ("at_end", "after", "shared"):
        raise ConfigError(
            "this model isn't of OpenCLIP's layout (cls_place at_end, cross_attention after, pooler shared), which "
            "can't hold it; keep the model folder, or train with recipe open_clip.vit_b_32"
        )
    if config.heads:
        names = ", ".join(head.name for head in config.heads)
        raise ConfigError(f"OpenCLIP's CoCa has no heads for tasks ({names}); keep the model folder")
    if config.pair_bias:
        raise ConfigError("OpenCLIP's CoCa has no bias of the sigmoid loss (pair_bias); keep the model folder")
    activation = _activation(config)
    if activation not in ("gelu", "quick_gelu"):
        raise ConfigError(
            f"OpenCLIP's CoCa computes gelu or quick_gelu in both towers, and this model has {activation}; keep the "
            "model folder"
        )
    if config.vision.registers or config.vision.qk_norm or config.text.qk_norm:
        raise ConfigError(
            f"OpenCLIP's layout has neither registers ({config.vision.registers} here) nor qk_norm "
            f"({config.vision.qk_norm} in vision, {config.text.qk_norm} in text); keep the model folder"
        )
    return model_cfg(config), _to_theirs(config, model.state_dict())


def without_training_options(config: ModelConfig) -> ModelConfig:
    """The same model where nothing is left out or masked in training, which OpenCLIP's layout has no words for."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, train_patches=0),
        text=dataclasses.replace(config.text, parallel_share=0.0, token_drop=0.0),
        pooler=dataclasses.replace(config.pooler, train_queries=0),
    )


def config_from_open_clip(open_clip_config: Mapping[str, Any], name: str = "open_clip") -> Config:
    """Our whole configuration of an `open_clip_config.json`: the model, its preprocessing, how captions are made.

    Raises: ConfigError for an architecture or preprocessing that isn't CoCa's.
    """
    whole = _object(open_clip_config, "open_clip_config.json")
    model = model_config(_object(whole.get("model_cfg", whole), "model_cfg"))
    return recipes.settings(name, model, _pixels(_object(whole.get("preprocess_cfg", {}), "preprocess_cfg")))


def model_config(model_cfg: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of OpenCLIP's `model_cfg`.

    Raises: ConfigError that names the field which says that this isn't a CoCa of the published layout.
    """
    known = {"embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "quick_gelu"}
    _refuse_unknown("model_cfg", model_cfg, known)
    if "multimodal_cfg" not in model_cfg:
        raise ConfigError("model_cfg has no multimodal_cfg: this is a CLIP and not a CoCa; it can't caption")
    vision, text, multimodal = (_section(model_cfg, name) for name in ("vision_cfg", "text_cfg", "multimodal_cfg"))
    _require(bool(vision.get("attentional_pool")), "vision_cfg.attentional_pool", False, "an attentional pooler")
    _require(bool(text.get("embed_cls")), "text_cfg.embed_cls", False, "a [CLS] token")
    embed_dim, width = model_cfg.get("embed_dim"), text.get("width", 512)
    _require(embed_dim == width, "embed_dim", embed_dim, f"the text width, {width}")
    for name, default in (("width", 512), ("heads", 8), ("vocab_size", VOCAB_SIZE), ("mlp_ratio", 4)):
        ours, theirs = text.get(name, default), multimodal.get(name, default)
        _require(ours == theirs, f"multimodal_cfg.{name}", theirs, f"as in text_cfg, {ours}")
    vision_width = _number(vision, "vision_cfg.width", 768)
    text_width = _number(text, "text_cfg.width", 512)
    quick = model_cfg.get("quick_gelu")
    return recipes.layout(
        activation="quick_gelu" if quick else "gelu",
        image_size_px=_number(vision, "vision_cfg.image_size", IMAGE_SIZE_PX),
        patch_size_px=_number(vision, "vision_cfg.patch_size", 16),
        vision_width=vision_width,
        vision_depth=_number(vision, "vision_cfg.layers", 12),
        vision_heads=vision_width // _number(vision, "vision_cfg.head_width", 64),
        vision_mlp_width=int(vision_width * _ratio(vision, "vision_cfg.mlp_ratio")),
        text_width=text_width,
        text_depth=_number(text, "text_cfg.layers", 12),
        multimodal_depth=_number(multimodal, "multimodal_cfg.layers", 12),
        text_heads=_number(text, "text_cfg.heads", 8),
        text_mlp_width=int(text_width * _ratio(text, "text_cfg.mlp_ratio")),
        num_queries=_number(vision, "vision_cfg.attn_pooler_queries", 256) - 1,
        pooler_heads=_number(vision, "vision_cfg.attn_pooler_heads", 8),
        vocab_size=_number(text, "text_cfg.vocab_size", VOCAB_SIZE),
        context_length=_number(text, "text_cfg.context_length", 77),
    )


def model_cfg(config: ModelConfig) -> dict[str, Any]:
    """OpenCLIP's `model_cfg` of our configuration, which must be of that layout."""
    vision, text = config.vision, config.text
    shared = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "mlp_ratio": text.mlp_width / text.width,
    }
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": vision.image_size_px,
            "layers": vision.depth,
            "width": vision.width,
            "head_width": vision.width // vision.num_heads,
            "mlp_ratio": vision.mlp_width / vision.width,
            "patch_size": vision.patch_size_px,
            "attentional_pool": True,
            "attn_pooler_queries": config.pooler.num_queries + 1,
            "attn_pooler_heads": config.pooler.num_heads or text.num_heads,
            "output_tokens": True,
        },
        "text_cfg": shared | {"layers": text.unimodal_depth, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": shared | {"layers": text.multimodal_depth},
        "custom_text": True,
        **({"quick_gelu": True} if _activation(config) == "quick_gelu" else {}),
    }


def _activation(config: ModelConfig) -> str:
    """The activation of both towers, or of each where they differ."""
    vision, text = config.vision.activation, config.text.activation
    return vision if vision == text else f"{vision} and {text}"


def model_cfg_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `model_cfg` that the shapes of a lone weights file tell; heads are 64 wide and 8 pool, as in all published.

    Raises: CheckpointError where the file doesn't hold an OpenCLIP CoCa.
    """
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vocab_size, text_width = state["text.token_embedding.weight"].shape
        queries, context = len(state["visual.attn_pool.query"]), len(state["text.positional_embedding"]) - 1
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"these weights aren't an OpenCLIP CoCa (no usable {error}); give a model folder, or a file of that layout"
        ) from error

    def depth(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    shared = {"context_length": context, "vocab_size": vocab_size, "width": text_width, "heads": text_width // 64}
    vision = {"image_size": grid * patch, "patch_size": patch, "width": width, "attn_pooler_queries": queries}
    return {
        "embed_dim": text_width,
        "vision_cfg": vision | {"layers": depth("visual.transformer.resblocks."), "attentional_pool": True},
        "text_cfg": shared | {"layers": depth("text.transformer.resblocks."), "embed_cls": True},
        "multimodal_cfg": shared | {"layers": depth("text_decoder.resblocks.")},
    }


def _links(config: ModelConfig) -> Iterator[Link]:
    yield Link(("log_scale",), ("logit_scale",), "scalar")
    yield Link(("encoder.patch.weight",), ("visual.conv1.weight",), "flattened")
    yield Link(("encoder.class_D",), ("visual.class_embedding",))
    yield Link(("encoder.positions_PD",), ("visual.positional_embedding",))
    yield from pair_links("encoder.norm_input", "visual.ln_pre")
    for i in range(config.vision.depth):
        yield from block_links(f"encoder.blocks.{i}", f"visual.transformer.resblocks.{i}")
    pooler, attention = "generative_pooler", "generative_pooler.attention"
    yield Link((f"{pooler}.queries_QD",), ("visual.attn_pool.query",))
    yield from pair_links(f"{pooler}.norm_queries", "visual.attn_pool.ln_q")
    yield from pair_links(f"{pooler}.norm_context", "visual.attn_pool.ln_k")
    yield from pair_links(f"{pooler}.norm_out", "visual.ln_post")
    theirs = "visual.attn_pool.attn"
    yield Link((f"{attention}.q.weight",), (f"{theirs}.q_proj_weight",))
    yield Link((f"{attention}.kv.weight",), (f"{theirs}.k_proj_weight", f"{theirs}.v_proj_weight"))
    yield Link((f"{attention}.q.bias", f"{attention}.kv.bias"), (f"{theirs}.in_proj_bias",))
    yield from pair_links(f"{attention}.out", f"{theirs}.out_proj")
    yield Link(("image_projection.weight",), ("visual.proj",), "transposed")
    yield Link(("unimodal.cls_D",), ("text.cls_emb",))
    yield Link(("unimodal.tokens.weight",), ("text.token_embedding.weight",))
    yield Link(("unimodal.positions_TD",), ("text.positional_embedding",))
    for i in range(config.text.unimodal_depth):
        yield from block_links(f"unimodal.blocks.{i}", f"text.transformer.resblocks.{i}")
    yield from pair_links("unimodal.norm_cls", "text.ln_final")
    yield Link(("text_projection.weight",), ("text.text_projection",), "transposed")
    for i in range(config.text.multimodal_depth):
        yield from block_links(f"multimodal.blocks.{i}", f"text_decoder.resblocks.{i}")
        ours, theirs = f"multimodal.picture_blocks.{i}", f"text_decoder.cross_attn.{i}"
        yield from pair_links(f"{ours}.norm_cross", f"{theirs}.ln_1")
        yield from pair_links(f"{ours}.norm_picture", f"{theirs}.ln_1_kv")
        yield from _attention(f"{ours}.cross_attention", f"{theirs}.attn")
        yield from _mlp(ours, theirs)
    yield from pair_links("multimodal.norm_out", "text_decoder.ln_final")
    yield Link(("head.weight",), ("text_decoder.text_projection",), "transposed")


def block_links(ours: str, theirs: str) -> Iterator[Link]:
    """The links of one transformer block, which CLIP's towers have too."""
    yield from pair_links(f"{ours}.norm_self", f"{theirs}.ln_1")
    yield from _attention(f"{ours}.self_attention", f"{theirs}.attn")
    yield from _mlp(ours, theirs)


def _attention(ours: str, theirs: str) -> Iterator[Link]:
    for kind in ("weight", "bias"):
        yield Link((f"{ours}.q.{kind}", f"{ours}.kv.{kind}"), (f"{theirs}.in_proj_{kind}",))
    yield from pair_links(f"{ours}.out", f"{theirs}.out_proj")


def _mlp(ours: str, theirs: str) -> Iterator[Link]:
    yield from pair_links(f"{ours}.norm_mlp", f"{theirs}.ln_2")
    yield from pair_links(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc")
    yield from pair_links(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj")


def pair_links(ours: str, theirs: str) -> Iterator[Link]:
    """The links of a weight and a bias."""
    for kind in ("weight", "bias"):
        yield Link((f"{ours}.{kind}",), (f"{theirs}.{kind}",))


def _stack(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    if tensors[0].is_meta:  # of which torch.cat would import a compiler, for 1.3 s
        return tensors[0].new_empty(sum(map(len, tensors)), *tensors[0].shape[1:])
    return torch.cat(tensors)


def _ours(tensor: Tensor, form: str) -> Tensor:
    if form == "transposed":
        return tensor.T.contiguous()
    if form == "flattened":
        return tensor.flatten(1)
    return tensor.reshape(1) if form == "scalar" else tensor


def _to_theirs(config: ModelConfig, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    patch = config.vision.patch_size_px
    for link in _links(config):
        stacked = _stack([own[name] for name in link.ours])
        if link.form == "transposed":
            stacked = stacked.T.contiguous()
        elif link.form == "flattened":
            stacked = stacked.unflatten(1, (3, patch, patch))
        elif link.form == "scalar":
            stacked = stacked[0]
        parts = [stacked] if len(link.theirs) == 1 else stacked.chunk(len(link.theirs))
        state |= zip(link.theirs, parts, strict=True)
    return state


def _pixels(preprocess_cfg: Mapping[str, Any]) -> PixelConfig:
    """Our preprocessing of OpenCLIP's `preprocess_cfg`, of which every field has a default."""
    known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    _refuse_unknown("preprocess_cfg", preprocess_cfg, known)
    _require(preprocess_cfg.get("mode", "RGB") == "RGB", "preprocess_cfg.mode", preprocess_cfg.get("mode"), "RGB")
    mode, resample = preprocess_cfg.get("resize_mode", "shortest"), preprocess_cfg.get("interpolation", "bicubic")
    fits = {"shortest": "crop", "longest": "pad", "squash": "squash"}
    _require(isinstance(mode, str) and mode in fits, "preprocess_cfg.resize_mode", mode, f"one of {', '.join(fits)}")
    _require(resample in ("bicubic", "bilinear"), "preprocess_cfg.interpolation", resample, "bicubic or bilinear")
    fill = preprocess_cfg.get("fill_color", 0)
    is_level = isinstance(fill, int) and not isinstance(fill, bool) and 0 <= fill <= 255
    _require(is_level, "preprocess_cfg.fill_color", fill, "a level from 0 to 255")
    values = {
        "mean": preprocess_cfg.get("mean", recipes.CLIP_MEAN),
        "std": preprocess_cfg.get("std", recipes.CLIP_STD),
        "fit": fits[mode],
        "resample": resample,
        "fill": fill,
    }
    return build_tree(PixelConfig, values | {"indexed": "nearest"}, "preprocess_cfg")


def _section(model_cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = _object(model_cfg.get(name), f"model_cfg.{name}")
    _refuse_unknown(name, section, _KNOWN[name])
    return section


def _refuse_unknown(where: str, section: Mapping[str, Any], known: set[str]) -> None:
    unknown = {name: value for name, value in section.items() if name not in known and value not in (None, False, 0)}
    if unknown:
        raise ConfigError(
            f"{where} has fields that this layout doesn't: {unknown}; only OpenCLIP's plain CoCa (ViT, its own text "
            "tower) can be read"
        )


_TOWER = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "proj_type", "pool_type"}
_KNOWN = {
    "vision_cfg": {
        *("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "attentional_pool"),
        *("attn_pooler_queries", "attn_pooler_heads", "output_tokens", "patch_dropout", "pos_embed_type", "pool_type"),
        *("timm_pool", "timm_proj"),  # written with their defaults, without a timm_model_name
    },
    "text_cfg": _TOWER
    | {"embed_cls", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "hf_proj_type"}
    | {"eos_id", "hf_model_pretrained", "hf_pooler_type"},
    "multimodal_cfg": _TOWER | {"dim_head", "n_queries", "attn_pooler_heads"},
}


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}; this layout has {wanted}. Is it a plain CoCa?")


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {str(value)[:60]!r}, not an object; restore open_clip_config.json")
    return value


def _number(section: Mapping[str, Any], name: str, default: int) -> int:
    value = section.get(name.partition(".")[2], default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; only one whole number above 0 can be read")
    return value


def _ratio(section: Mapping[str, Any], name: str) -> float:
    value = section.get(name.partition(".")[2], 4)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1000:
        raise ConfigError(f"{name} is {value!r}; only a number above 0 can be read")
    return value
