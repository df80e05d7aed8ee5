"""Weights files: read without running what is in them, checked name by name, put into a model without a copy."""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opencoca.config import ModelConfig
from opencoca.errors import CheckpointError
from opencoca.model.coca import CoCa
from opencoca.model.vit import resized_grid

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what floating-point weights may be stored as
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training checkpoints keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # what data-parallel and compiled models put in front of every name
_LFS_POINTER = b"version https://git-lfs"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, mapped into memory where its format allows it.

    Safetensors and PyTorch's own files are told apart by their content. The latter are unpickled with
    `weights_only=True`, which builds tensors and containers and runs nothing.

    Raises: CheckpointError for a file that is damaged, or holds anything else than named tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); check the path and its permissions") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`")
    zipped = zipfile.is_zipfile(path)
    if zipped or start[:1] == b"\x80":
        return _named_tensors(_unpickled(path, zipped), path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no whole weights file, neither safetensors nor PyTorch's ({_one_line(error)}); "
            "it is damaged, cut short or something else: fetch it again"
        ) from error


def model_with(config: ModelConfig, weights: Mapping[str, Tensor], source: object) -> CoCa:
    """A CoCa in evaluation mode that holds `weights` themselves where they are float32, else float32 copies.

    Nothing is initialised, and weights mapped from a file are read when they are first used.

    Raises: CheckpointError, naming `source`, that lists what doesn't fit.
    """
    with torch.device("meta"):
        model = CoCa(config)
    check(model, weights, source)
    own = model.state_dict()
    assigned = {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
    tied = {"head.weight": assigned["unimodal.tokens.weight"]} if config.text.tie_output else {}
    model.load_state_dict(assigned | tied, assign=True)
    if config.text.tie_output:
        model.head.weight = model.unimodal.tokens.weight
    return model.eval()


def check(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Compares names, shapes and types of `weights` with the model's own; float16 and bfloat16 pass for float32.

    Raises: CheckpointError, naming `source`, that lists what differs.
    """
    optional = {"head.weight"} if isinstance(model, CoCa) and model.config.text.tie_output else set()
    differing = differences(weights, model.state_dict(), optional)
    if differing:
        raise CheckpointError(
            f"{source} doesn't fit its configuration: {differing}; restore the file that was saved with it"
        )


def differences(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> str:
    """What differs in names, shapes and types, in words; nothing if the weights fit. Any float passes for another."""
    both = sorted(set(wanted) & set(weights))
    found = {
        "missing": sorted(set(wanted) - set(weights) - set(optional)),
        "foreign": sorted(set(weights) - set(wanted)),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in both
            if weights[name].shape != wanted[name].shape
        ],
        "of another type": [
            f"{name} {_name(weights[name].dtype)} instead of {_name(wanted[name].dtype)}"
            for name in both
            if weights[name].dtype not in (DTYPES if wanted[name].is_floating_point() else (wanted[name].dtype,))
        ],
    }
    return ", ".join(_count(what, names) for what, names in found.items() if names)


def resized_positions(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a model for the picture size of `config`: its table of patch positions is interpolated.

    The result computes what the model itself does for pictures of that size. Nothing else changes, and nothing at all
    where the size is the same.

    Raises: CheckpointError where the table is of no square grid.
    """
    name, vision = "encoder.positions_PD", config.vision
    table = weights.get(name)
    if table is None:
        return dict(weights)
    before, first = len(table) - vision.class_token, int(vision.class_token)  # the class token's position comes first
    grid = math.isqrt(max(0, before))
    if table.dim() != 2 or grid == 0 or grid**2 != before:
        raise CheckpointError(
            f"{name} has shape {list(table.shape)}, which is no square grid of patches"
            f"{' behind a class token' if first else ''}; set model.vision.class_token as in the model they are from"
        )
    patches_PD = resized_grid(table[first:], (grid, grid), (vision.grid, vision.grid))
    return dict(weights) | {name: torch.cat((table[:first], patches_PD))}


def stored_as(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights with matrices in `dtype`; vectors (norms, biases, the temperature) are few and stay float32."""
    return {
        name: tensor.to(dtype if tensor.dim() > 1 else torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def _unpickled(path: Path, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # it comments on pickles of other programs, and we refuse them
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path} holds more than weights{what}, and such a file could run anything, so it isn't read; "
            "save its state_dict alone, or as safetensors"
        ) from error
    except Exception as error:  # damaged files raise nearly every kind there is
        raise CheckpointError(
            f"{path} is a PyTorch file that can't be read ({_one_line(error)}); it is damaged or cut short: "
            "fetch it again"
        ) from error


def _named_tensors(found: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(found, Mapping) and (
        inner := next((n for n in _WRAPPERS if isinstance(found.get(n), Mapping)), "")
    ):
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{path} holds no weights but {type(found).__name__}; save the model's state_dict")
    others = [str(name) for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} holds no plain state_dict: {_count('that are no tensors', others)}; save the model's state_dict"
        )
    tensors: dict[str, Tensor] = dict(found)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


def _count(what: str, names: Iterable[str]) -> str:
    names = list(names)
    shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
