"""Writing and reading model folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from opencoca.checkpoint.manifest import (
    CARD,
    CONFIG,
    MANIFEST,
    MODEL,
    ORIGIN,
    STATE,
    TOKENIZER,
    TRAINING,
    entry,
    sealed,
    verify,
)
from opencoca.checkpoint.pieces import Piece, Stored, part_name, part_names, whole, without_copies, write_pieces
from opencoca.checkpoint.runs import resolve, retired
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError, unwritable
from opencoca.files import fsync
from opencoca.model.coca import CoCa
from opencoca.model_card import Origin, model_card
from opencoca.weights import check

ALWAYS_DIGESTED_BYTES = 32 * 2**20  # up to here sha256 costs less than 0.1 s


class Checkpoint(NamedTuple):
    """A checked folder's contents; `training` is there if it was asked for, state and origin if the folder has them.

    digest: sha256 of the weights file, as the manifest has it (of several files: sha256 of their digests).
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    training: Mapping[str, Tensor] | None
    state: dict[str, Any] | None
    origin: Origin | None
    digest: str


# --- writing ----------------------------------------------------------------------------------------------------


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
    begin(folder)
    try:
        pieces = without_copies({name: whole(tensor) for name, tensor in weights.items()})
        moments = None if training is None else {name: whole(tensor) for name, tensor in training.items()}
        files = write_part(folder, pieces, moments)
        if training is None and card is None:
            counts = parameters_by_part({name: piece.tensor for name, piece in pieces.items()})
            card = model_card(config, folder.name, counts, origin, state)
        finish(folder, files, config, tokenizer, state, origin, card)
    except CheckpointError:
        abandon(folder)
        raise


def begin(folder: Path) -> None:
    """Makes the place where `folder` is written before it has its name.

    Raises: CheckpointError where that isn't possible.
    """
    with _one_line(folder):
        shutil.rmtree(_partial(folder), ignore_errors=True)
        _partial(folder).mkdir(parents=True)


def write_part(
    folder: Path,
    weights: Mapping[str, Piece],
    training: Mapping[str, Piece] | None = None,
    part: int = 0,
    parts: int = 1,
) -> dict[str, Any]:
    """Writes the tensor files of one of several processes, flushed to disk, and returns what the manifest says of them.

    Raises: CheckpointError where they can't be written.
    """
    partial, files = _partial(folder), {}
    if not partial.is_dir():
        raise CheckpointError(
            f"{partial}, which the first rank made, isn't there on rank {part}; "
            "name a --run folder that all machines of the run share"
        )
    with _one_line(folder):
        for file, pieces in ((MODEL, weights), (TRAINING, training)):
            if pieces is not None:
                path = partial / part_name(file, part, parts)
                write_pieces(path, without_copies(pieces), cut=parts > 1)
                fsync(path)
                files[path.name] = entry(path)
    return files


def finish(
    folder: Path,
    files: Mapping[str, Any],
    config: Config,
    tokenizer: Tokenizer,
    state: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
    card: str | None = None,
) -> None:
    """Writes what is left, the manifest last, and gives the folder its name. `files`: what all `write_part` returned.

    Raises: CheckpointError where it can't be written.
    """
    partial = _partial(folder)
    texts = {
        CONFIG: json.dumps(config.to_dict(), indent=2) + "\n",
        STATE: None if state is None else json.dumps(state, indent=2) + "\n",
        ORIGIN: None if origin is None else origin.to_json(),
        CARD: card,
    }
    with _one_line(folder):
        tokenizer.save(partial / TOKENIZER)
        for name, text in texts.items():
            if text is not None:
                (partial / name).write_text(text, encoding="utf-8")
        mode = (partial / CONFIG).stat().st_mode
        for name in files:  # safetensors lets nobody else read its files
            (partial / name).chmod(mode)
        small = [TOKENIZER, *(name for name, text in texts.items() if text is not None)]
        for name in small:
            fsync(partial / name)
        manifest = sealed({**files, **{name: entry(partial / name) for name in small}})
        (partial / MANIFEST).write_text(manifest, encoding="utf-8")
        fsync(partial / MANIFEST)
        fsync(partial)
        if folder.exists():
            shutil.rmtree(retired(folder), ignore_errors=True)
            folder.rename(retired(folder))  # until the next rename, `resolve` finds the older version there
        partial.rename(folder)
        fsync(folder.parent)
    shutil.rmtree(retired(folder), ignore_errors=True)


def abandon(folder: Path) -> None:
    """Removes what was written of a folder that can't be finished, and puts the older one back in its place."""
    if not folder.exists() and retired(folder).exists():
        with contextlib.suppress(OSError):
            retired(folder).rename(folder)
    shutil.rmtree(_partial(folder), ignore_errors=True)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".partial-{folder.name}")


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """What goes wrong in the block as a CheckpointError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise CheckpointError(f"{unwritable(folder, error)}; older checkpoints are untouched") from error


# --- reading ----------------------------------------------------------------------------------------------------


def load(folder: Path, training: bool = False, digests: bool = False) -> Checkpoint:
    """Reads and checks a model folder, or a run folder's latest checkpoint, written by one process or by many.

    Weights of one file are mapped, not read. With `training`, optimizer and state are needed and read too, and every
    file's digest is verified; else those of files above `ALWAYS_DIGESTED_BYTES` only with `digests`.

    Raises: CheckpointError naming the file and the repair where something is missing, foreign or damaged.
    """
    folder = resolve(folder)
    files = verify(folder, None if training or digests else ALWAYS_DIGESTED_BYTES)
    saved = opened(folder, files, training)
    assert isinstance(saved.weights, Stored)
    moments = saved.training.tensors() if isinstance(saved.training, Stored) else None
    return saved._replace(weights=saved.weights.tensors(), training=moments)


def opened(folder: Path, files: Mapping[str, Any], training: bool) -> Checkpoint:
    """What `load` returns, of a folder with verified `files`; weights and training are `Stored`, so not read yet.

    Raises: CheckpointError as `load`.
    """
    for name in (CONFIG, TOKENIZER):
        if name not in files:
            raise CheckpointError(f"{folder} has no {name}; copy the folder again, whole")
    weights, moments = _tensor_files(folder, MODEL, files), _tensor_files(folder, TRAINING, files)
    if not weights:
        raise CheckpointError(f"{folder} has no {MODEL}; copy the folder again, whole")
    for name, found in ((TRAINING, moments), (STATE, STATE in files)) if training else ():
        if not found:
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
            Stored(folder, weights),
            Stored(folder, moments) if training else None,
            state,
            Origin.from_json(text, folder / ORIGIN) if text is not None else None,
            _digest([str(files[name]["sha256"]) for name in weights]),
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} can't be read ({error}); restore it from a copy or train again") from error


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


def _tensor_files(folder: Path, name: str, files: Mapping[str, Any]) -> list[str]:
    try:
        return part_names(name, files)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _digest(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
