"""Models in OpenCLIP's folder layout, as the hub holds them, and lone weights files of that layout.

    open_clip_config.json        model_cfg and preprocess_cfg; where it is missing, the weights' shapes tell the model
    open_clip_model.safetensors  or open_clip_pytorch_model.bin
    tokenizer.json, or merges.txt and vocab.json   optional: CLIP's vocabulary ships with this package

What we write holds our whole configuration too, under "opencoca", which OpenCLIP leaves alone: the way back is exact.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from opencoca import checkpoint, weights
from opencoca.config import Config, PixelConfig
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError, unwritable
from opencoca.interop.open_clip import (
    config_from_open_clip,
    from_open_clip,
    model_cfg_from_state,
    to_open_clip,
    without_training_options,
)
from opencoca.model.coca import CoCa
from opencoca.model_card import Origin, model_card

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "merges.txt", "vocab.json")
_GUESSED_WIDTHS = 512  # from here on every published text and image tower has heads of 64


class Foreign(NamedTuple):
    """A model of that layout, in our words."""

    model: CoCa
    config: Config
    tokenizer: Tokenizer
    file: Path


def is_layout(folder: Path) -> bool:
    """Whether a folder holds a model of that layout."""
    return (folder / CONFIG_FILE).is_file() or any((folder / name).is_file() for name in WEIGHTS_FILES)


def read_folder(folder: Path) -> Foreign:
    """The model in a folder of that layout.

    Raises: CheckpointError or ConfigError that names the file and the repair.
    """
    file = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} has a {CONFIG_FILE} but none of {', '.join(WEIGHTS_FILES)}; add the weights")
    return read_file(file)


def read_file(file: Path) -> Foreign:
    """The model in one weights file; a configuration and a tokenizer that lie beside it are used.

    Raises: CheckpointError or ConfigError that names the file and the repair.
    """
    state = weights.read(file)
    described = _description(file, state)
    try:
        config = config_from_open_clip(described)
        if isinstance(described.get("opencoca"), dict):
            ours = Config.from_dict(described["opencoca"])
            if ours.model != config.model:
                raise ConfigError("its model_cfg and its opencoca part describe different models; restore the file")
            config = ours
        model = from_open_clip(described["model_cfg"], state)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{file}: {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a field of some other type
        raise CheckpointError(f"{file.parent / CONFIG_FILE} can't be understood ({error}); fetch it again") from error
    return Foreign(model, config, _tokenizer(file.parent, config), file)


def write_folder(
    folder: Path,
    model: CoCa,
    config: Config,
    tokenizer: Tokenizer,
    origin: Origin,
    state: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model as a folder of that layout, whole or not at all.

    Raises: ConfigError for a model that the layout can't hold; CheckpointError where it can't be written.
    """
    model_cfg, tensors = to_open_clip(model)
    described = {
        "model_cfg": model_cfg,
        "preprocess_cfg": _preprocessing(config.pixels),
        "opencoca": dataclasses.replace(config, model=without_training_options(config.model)).to_dict(),
    }
    parameters = checkpoint.parameters_by_part(dict(model.named_parameters()))
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        stored = {name: tensor.contiguous() for name, tensor in weights.stored_as(tensors, dtype).items()}
        save_file(stored, partial / WEIGHTS_FILES[0], metadata={"format": "pt"})
        (partial / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")
        tokenizer.save(partial / checkpoint.TOKENIZER)
        card = model_card(config, folder.name, parameters, origin, state)
        (partial / checkpoint.CARD).write_text(card, encoding="utf-8")
        (partial / WEIGHTS_FILES[0]).chmod((partial / CONFIG_FILE).stat().st_mode)
        for path in partial.iterdir():
            checkpoint.fsync(path)
        partial.rename(folder)
        checkpoint.fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(unwritable(folder, error)) from error


def _description(file: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `open_clip_config.json` beside a weights file, or what the shapes tell."""
    path = file.parent / CONFIG_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} can't be read ({error}); fetch it again") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is no JSON object; fetch it again")
        return found if "model_cfg" in found else {"model_cfg": found}
    try:
        guessed = model_cfg_from_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    widths = (guessed["vision_cfg"]["width"], guessed["text_cfg"]["width"])
    if any(width < _GUESSED_WIDTHS or width % 64 for width in widths):
        raise CheckpointError(
            f"{file}: its shapes don't tell how many heads its towers of width {widths[0]} and {widths[1]} have; put "
            f"the {CONFIG_FILE} that was published with it into the same folder"
        )
    return {"model_cfg": guessed}


def _tokenizer(folder: Path, config: Config) -> Tokenizer:
    """The vocabulary beside the weights, ours or CLIP's, else CLIP's own; it must be the model's."""
    own = folder / checkpoint.TOKENIZER
    tokenizer = Tokenizer.load(own) if own.is_file() else ClipTokenizer.from_files(folder)
    if isinstance(tokenizer, ClipTokenizer) and tokenizer.fingerprint != ClipTokenizer.published().fingerprint:
        tokenizer = ClipTokenizer.from_files(folder)  # which refuses another vocabulary of the same size
    vocab_size = config.model.text.vocab_size
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} pieces and its model {vocab_size}: they belong to "
            f"different models; put the model's own {own.name} there"
        )
    return tokenizer


def _preprocessing(pixels: PixelConfig) -> dict[str, Any]:
    """`preprocess_cfg` in OpenCLIP's words."""
    return {
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "interpolation": pixels.resample,
        "resize_mode": {"crop": "shortest", "pad": "longest", "squash": "squash"}[pixels.fit],
        "fill_color": pixels.fill,
    }
