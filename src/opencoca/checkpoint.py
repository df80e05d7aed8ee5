"""Atomic save and verified load. One folder format for models and training checkpoints.

    model.safetensors      the weights to use (the moving average, where the run keeps one)
    training.safetensors   optimizer moments and raw weights (checkpoints only)
    config.json            the resolved configuration
    tokenizer.json         the vocabulary
    state.json             step, position in the data, metrics (checkpoints; models converted from one)
    origin.json            where a model that was not trained here came from, its licence (optional)
    README.md              the model card (models only)
    manifest.json          format version, size and sha256 of every other file; written last

A folder is written under a temporary name, flushed to disk, and renamed: it is there whole or not at all. While a
folder is replaced, its older version stands beside it as `.retired-NAME` until the new one has its name. Nothing is
ever unpickled. Version 1 had neither origin nor card, and fewer fields in its configuration, whose defaults mean what
it meant. A run folder holds `checkpoints/step-00000200/` and `checkpoints/latest`, which names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError
from opencoca.model.coca import CoCa
from opencoca.model_card import Origin, model_card
from opencoca.weights import check

FORMAT, VERSION = "opencoca-model", 2
MODEL, TRAINING, CONFIG, TOKENIZER, STATE, ORIGIN, CARD, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "config.json",
    "tokenizer.json",
    "state.json",
    "origin.json",
    "README.md",
    "manifest.json",
)
ALWAYS_DIGESTED_BYTES = 32 * 2**20  # up to here sha256 costs less than 0.1 s


class Checkpoint(NamedTuple):
    """A checked folder's contents; `training` is there if it was asked for, state and origin if the folder has them.

    digest: sha256 of the weights file, as the manifest has it.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    training: dict[str, Tensor] | None
    state: dict[str, Any] | None
    origin: Origin | None
    digest: str


def save(
    folder: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
    card: str | None = None,
) -> None:
    """Writes `folder` whole or not at all; an older folder of that name is replaced.

    A model without `training` gets a card: the one given, or one made of what is known.

    Raises: CheckpointError where it can't be written; what stood there still does.
    """
    partial, retired = folder.with_name(f".partial-{folder.name}"), _retired(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        savable = _savable(weights)
        save_file(savable, partial / MODEL)
        (partial / CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        tokenizer.save(partial / TOKENIZER)
        if training is not None:
            save_file(_savable(training), partial / TRAINING)
        if state is not None:
            (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        if origin is not None:
            (partial / ORIGIN).write_text(origin.to_json())
        if training is None:
            made = card or model_card(config, folder.name, parameters_by_part(savable), origin, state)
            (partial / CARD).write_text(made, encoding="utf-8")
        mode = (partial / CONFIG).stat().st_mode
        for path in partial.glob("*.safetensors"):  # safetensors lets nobody else read its files
            path.chmod(mode)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in sorted(partial.iterdir())
        }
        manifest = {"format": FORMAT, "version": VERSION, "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in partial.iterdir():
            fsync(path)
        fsync(partial)
        if folder.exists():
            shutil.rmtree(retired, ignore_errors=True)
            folder.rename(retired)  # until the next rename, `resolve` finds the older version there
        partial.rename(folder)
        fsync(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        if not folder.exists() and retired.exists():
            with contextlib.suppress(OSError):
                retired.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder} could not be written ({getattr(error, 'strerror', None) or error}); free some space or name "
            "another folder, older checkpoints are untouched"
        ) from error
    shutil.rmtree(retired, ignore_errors=True)


def load(folder: Path, training: bool = False, digests: bool = False) -> Checkpoint:
    """Reads and checks a model folder, or a run folder's latest checkpoint.

    Weights are mapped from the file, not read. With `training`, optimizer and state are needed and read too, and every
    file's digest is verified; else those of files above `ALWAYS_DIGESTED_BYTES` only with `digests`.

    Raises: CheckpointError naming the file and the repair where something is missing, foreign or damaged.
    """
    folder = resolve(folder)
    files = verify(folder, None if training or digests else ALWAYS_DIGESTED_BYTES)
    for name in (MODEL, CONFIG, TOKENIZER):
        if name not in files:
            raise CheckpointError(f"{folder} has no {name}; copy the folder again, whole")
    for name in (TRAINING, STATE) if training else ():
        if name not in files:
            raise CheckpointError(f"{folder} has no {name}; it can be used for inference but not resumed from")
    try:
        config = Config.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        state = json.loads((folder / STATE).read_text(encoding="utf-8")) if STATE in files else None
        if STATE in files and not isinstance(state, dict):
            raise ValueError(f"{STATE} holds no object")
        text = (folder / ORIGIN).read_text(encoding="utf-8") if ORIGIN in files else None
        return Checkpoint(
            folder,
            config,
            Tokenizer.load(folder / TOKENIZER),
            load_file(folder / MODEL),
            load_file(folder / TRAINING) if training else None,
            state,
            Origin.from_json(text, folder / ORIGIN) if text is not None else None,
            str(files[MODEL]["sha256"]),
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder} can't be read ({error}); restore it from a copy or train again") from error


def verify(folder: Path, digest_up_to: int | None = None) -> dict[str, Any]:
    """The manifest's file table, after checking every file's size and digest against it.

    `digest_up_to`: of larger files (in bytes) only the size is checked; None takes every file's digest.

    Raises: CheckpointError naming the file that is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise KeyError("format")
        version = int(manifest["version"])
        if version < 1:
            raise ValueError("version")
        if version > VERSION:  # before anything else is read: a newer manifest may look otherwise
            raise CheckpointError(
                f"{folder} has format version {version}, this is {VERSION}: upgrade with pip install -U opencoca"
            )
        files = manifest["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it isn't a whole OpenCoCa model folder") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(
            f"{folder / MANIFEST} isn't an OpenCoCa manifest; restore the folder from a copy"
        ) from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
            raise CheckpointError(
                f"{folder / MANIFEST} names {name!r}, which is no file of a model; restore it from a copy"
            )
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}; copy the folder again, whole")
        digested = digest_up_to is None or size <= digest_up_to
        if path.stat().st_size != size or (digested and file_digest(path) != digest):
            raise CheckpointError(
                f"{path} isn't the file that was saved (size or sha256 differs from {MANIFEST}): it is damaged or "
                "comes from another model; restore it from a copy"
            )
    return files


def resolve(folder: Path) -> Path:
    """The model folder that `folder` means: itself, or a run folder's latest checkpoint.

    Raises: CheckpointError where it is neither.
    """
    folder = standing(folder)
    if (folder / MANIFEST).is_file():
        return folder
    latest = latest_checkpoint(folder)
    if latest is not None:
        return latest
    if not folder.exists():
        raise CheckpointError(f"{folder} doesn't exist; train a model with `coca quickstart` or name its folder")
    raise CheckpointError(
        f"{folder} holds no model: neither {MANIFEST} nor checkpoints/latest; train one with `coca quickstart`"
    )


def load_weights(model: CoCa, weights: Mapping[str, Tensor], source: object) -> None:
    """Copies weights into the model, checking every name, shape and dtype.

    Raises: CheckpointError that lists what differs.
    """
    check(model, weights, source)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def parameters_by_part(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers each part of the model holds; a tied head counts where its weights are."""
    parts: dict[str, int] = {}
    for name, tensor in weights.items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + tensor.numel()
    return parts


# --- run folders ------------------------------------------------------------------------------------------------


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands in a run folder."""
    return run / "checkpoints" / f"step-{step:08d}"


def latest_checkpoint(run: Path) -> Path | None:
    """The folder that `checkpoints/latest` names, or None where there is no such file.

    Raises: CheckpointError where it names a folder that isn't there.
    """
    pointer = run / "checkpoints" / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    folder = standing(pointer.parent / name) if re.fullmatch(r"step-\d{1,20}", name) else None
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            f"{pointer} names {name[:40]!r}, which isn't there; write the name of another checkpoint into it"
        )
    return folder


def standing(folder: Path) -> Path:
    """`folder`, or its older version where a kill came while `save` replaced it."""
    return _retired(folder) if not folder.exists() and _retired(folder).is_dir() else folder


def _retired(folder: Path) -> Path:
    return folder.with_name(f".retired-{folder.name}")


def mark_latest(folder: Path, keep: int) -> None:
    """Points `latest` at a verified folder, then removes older checkpoints beyond the newest `keep`, and leftovers."""
    verify(folder)
    write_atomically(folder.parent / "latest", folder.name + "\n")
    for leftover in (*folder.parent.glob(".partial-step-*"), *folder.parent.glob(".retired-step-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    older = sorted(path for path in folder.parent.glob("step-*") if path.name < folder.name)
    for path in older[: max(0, len(older) - (keep - 1))]:
        shutil.rmtree(path)


# --- files ------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    fsync(partial)
    os.replace(partial, path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flushes a file or folder to disk (folders where the system allows it)."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors; safetensors refuses two names for one memory, so the second (a tied head) is left out."""
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.detach().to("cpu").contiguous()
    return kept
