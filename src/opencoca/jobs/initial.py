"""Where the weights of a new run come from, unless they are drawn: another model, or the towers of published ones.

A run that has a checkpoint goes on from there and needs none of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from opencoca import checkpoint, loading, weights
from opencoca.config import Config, ModelConfig
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError
from opencoca.interop.towers import Tower, read_tower
from opencoca.loading import Opened
from opencoca.model.coca import CoCa
from opencoca.train.state import Start

_FREE = (  # no weight's shape, or that of the masks alone
    *("vision.image_size_px", "vision.max_patches", "vision.train_patches", "init_temperature"),
    *("text.parallel_share", "text.token_drop", "pooler.train_queries"),
)
MASKS = "multimodal.mask_TD"  # read by the training that made them, and by nothing else


def with_tokenizer_of(name: str | Path, config: Config) -> Config:
    """The configuration, with that model's tokenizer in place of a new one, which couldn't go with its weights."""
    if config.data.tokenizer != "train":
        return config
    tokenizer = _tokenizer_of(loading.open_model(name))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))


def from_model(name: str | Path, config: Config, tokenizer: Tokenizer | None = None) -> Start:
    """What puts another model's weights into a new one: those that it ships, its moving average where it has one.

    `name` is any that `coca` takes for a model: a run or model folder, a weights file, "hf:org/name". The picture size
    may be another one (the paper trains at 288 px and then at 576): positions are interpolated. All else of
    `config.model` must be the same but for what training leaves out, and so must `tokenizer`, the new run's, where it
    is given. Masks for parallel prediction are drawn where the other model has none, and dropped where this one hasn't.

    Raises: CheckpointError or ConfigError that names what is missing or doesn't fit, and the repair.
    """
    opened = loading.open_model(name)
    if tokenizer is not None and tokenizer.fingerprint != opened.tokenizer.fingerprint:
        repair = f"--set data.tokenizer={_tokenizer_of(opened)}"
        raise ConfigError(f"{opened.path} was trained with another tokenizer than this run's; {repair}")
    _refuse_other_model(opened.path, opened.config.model, config.model)
    resized = weights.resized_positions(dict(opened.model.named_parameters()), config.model)
    found = {name: tensor.detach() for name, tensor in resized.items() if name != MASKS}

    def prepare(model: CoCa) -> None:
        masks = model.multimodal.mask_TD
        own = {} if masks is None else {MASKS: resized.get(MASKS, masks).detach()}
        checkpoint.load_weights(model, found | own, opened.path)

    return Start(str(name), prepare)


def from_towers(
    vision: Path | None, text: Path | None, config: Config, say: Callable[[str], None] = lambda note: None
) -> Start:
    """What puts the towers of published CLIP or SigLIP weights into a new model: its encoder, its unimodal decoder.

    Paths are weights files, or folders with a configuration beside them. What differs from the model that a tower comes
    from goes to `say`, line by line. `config.model` must have the tokenizer's vocabulary already.

    Raises: CheckpointError or ConfigError that names what doesn't fit, and the repair.
    """
    towers: dict[str, Tower] = {}
    if vision is not None:
        towers[f"image tower {vision}"] = tower = read_tower(vision, "vision", config.model)
        if (tower.mean, tower.std) != (config.pixels.mean, config.pixels.std):
            wanted = [f"pixels.{part}={list(getattr(tower, part))}".replace(" ", "") for part in ("mean", "std")]
            tower.notes.append(f"it was trained on pictures normalised otherwise: --set {' '.join(wanted)}")
    if text is not None:
        towers[f"text tower {text}"] = read_tower(text, "text", config.model)
    for name, tower in towers.items():
        for note in tower.notes:
            say(f"{name}: {note}")

    def prepare(model: CoCa) -> None:
        for name, tower in towers.items():
            _put(model, tower.weights, name)

    return Start(", ".join(towers), prepare)


@torch.no_grad()
def _put(model: CoCa, part: Mapping[str, Tensor], source: str) -> None:
    """Copies some of a model's weights into it."""
    own = dict(model.named_parameters())
    wrong = [name for name, tensor in part.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(f"{source} doesn't fit the model: {', '.join(wrong[:3])}; start from its own recipe")
    for name, tensor in part.items():
        own[name].copy_(tensor)


def _tokenizer_of(opened: Opened) -> str:
    """A model's tokenizer, as `data.tokenizer` names it."""
    kept = opened.path / checkpoint.TOKENIZER
    return str(kept) if kept.is_file() else "clip"


def _refuse_other_model(source: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    before, now = _flat(theirs), _flat(ours)
    other = {name: value for name, value in before.items() if name not in _FREE and now[name] != value}
    if other:
        differs = ", ".join(f"model.{name} {value} instead of {now[name]}" for name, value in other.items())
        raise ConfigError(f"{source} is another model than the recipe's: {differs}; take its recipe, or --set these")


def _flat(config: ModelConfig) -> dict[str, object]:
    """The fields of a model's configuration under dotted names."""
    flat: dict[str, object] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat
