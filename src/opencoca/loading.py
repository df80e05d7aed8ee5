"""Any name to a Predictor: a run, a model folder, OpenCLIP's layout, the hub, a pulled model, the one that ships."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opencoca import checkpoint, weights
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.infer.predictor import Predictor
from opencoca.interop import hub, open_clip_folder, pulled
from opencoca.model.coca import CoCa
from opencoca.model.lora import merged_weights
from opencoca.model_card import Origin

RUNS = Path("runs")
FINETUNED = "model"  # in a run folder, what a fine-tuning made of its last checkpoint


class Opened(NamedTuple):
    """A model on the CPU, before it becomes a Predictor, and what is known of it.

    path: its folder or weights file. sha256: of the weights file, where it is recorded. origin and state: None where
    nothing is recorded.
    """

    model: CoCa
    tokenizer: Tokenizer
    config: Config
    path: Path
    sha256: str | None
    origin: Origin | None
    state: dict[str, Any] | None


def load(name: str | Path | None = None, device: str | None = None) -> Predictor:
    """The model called `name`, ready for use.

    It may be a run folder (what a fine-tuning made of it, else its latest checkpoint), a model folder, a folder or
    weights file in OpenCLIP's layout, "hf:org/name" or "hf:org/name@revision", or the name of a pulled model. None
    takes the newest run or pulled model, else the one that ships with the package.

    Weights are frozen; to train them, call `coca.model.requires_grad_()` before anything is generated. On the CPU,
    float32 weights stay in their file and are read when they are first used; don't overwrite that file in place
    meanwhile (replacing it is fine). Digests of files above 32 MiB are not verified here but by `coca models verify`.

    Raises: CheckpointError or ConfigError that names what is missing or doesn't fit, and the repair.
    """
    opened = open_model(name)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(opened.model.to(chosen).requires_grad_(False), opened.tokenizer, opened.config)


def open_model(name: str | Path | None = None, digests: bool = False) -> Opened:
    """The model called `name`, as in `load`, on the CPU; with `digests`, all of a model folder's are verified.

    Raises: CheckpointError or ConfigError that names what is missing or doesn't fit, and the repair.
    """
    if name is None:
        return _open_path(newest(), digests)
    text, path = str(name), Path(name)
    if text.startswith(hub.PREFIX):
        wanted = hub.parse(text)
        known = pulled.find(wanted.repo)
        if known is not None and known.origin is not None and known.origin.source == str(wanted):
            return _open_path(known.folder, digests)
        fetched = hub.fetch(wanted)
        return _open_foreign(fetched.folder, fetched.origin, digests)
    known = pulled.find(text) if not path.exists() else None
    return _open_path(known.folder if known else path, digests)


def newest(runs: Path = RUNS) -> Path:
    """The folder of the newest run under `runs` or pulled model, else of the model that ships.

    Raises: CheckpointError where there is none.
    """
    usable = [entry for entry in pulled.entries() if not entry.problem]
    found = [(entry.folder.stat().st_mtime, entry.folder) for entry in usable if not entry.shipped]
    found += [(pointer.stat().st_mtime, pointer.parent.parent) for pointer in _pointers(runs)]
    if found:
        return max(found, key=lambda one: one[0])[1]
    shipped = [entry.folder for entry in usable if entry.shipped]
    return shipped[0] if shipped else newest_run(runs)


def newest_run(runs: Path = RUNS) -> Path:
    """The run folder under `runs` whose checkpoint is the newest.

    Raises: CheckpointError where there is none.
    """
    pointers = _pointers(runs)
    if not pointers:
        raise CheckpointError(
            f"there is no trained model under {runs}/; train one with `coca quickstart`, or name one with --model"
        )
    return max(pointers, key=lambda pointer: pointer.stat().st_mtime).parent.parent


def _pointers(runs: Path) -> list[Path]:
    return [pointer for pointer in runs.glob("*/checkpoints/latest") if pointer.is_file()]


def _open_path(path: Path, digests: bool) -> Opened:
    if path.name == checkpoint.MODEL and (path.parent / checkpoint.MANIFEST).is_file():
        path = path.parent
    if (path.suffix in weights.SUFFIXES and path.is_file()) or _is_foreign(path):
        return _open_foreign(path, Origin(path.resolve().name), digests)  # its whole path is nobody else's business
    if not path.exists() and not checkpoint.standing(path).exists():
        raise CheckpointError(_unknown(path))
    if (path / FINETUNED / checkpoint.MANIFEST).is_file():
        path = path / FINETUNED
    saved = checkpoint.load(path, digests=digests)
    source = saved.folder / checkpoint.MODEL
    plain = merged_weights(saved.weights, saved.config.optim.lora_alpha)
    model = weights.model_with(saved.config.model, plain, source)
    return Opened(model, saved.tokenizer, saved.config, saved.folder, saved.digest, saved.origin, saved.state)


def _is_foreign(folder: Path) -> bool:
    return open_clip_folder.is_layout(folder) and not (folder / checkpoint.MANIFEST).is_file()


def _open_foreign(path: Path, origin: Origin, digests: bool) -> Opened:
    read = open_clip_folder.read_folder if path.is_dir() else open_clip_folder.read_file
    found = read(path)
    if digests and origin.sha256 is None:
        origin = dataclasses.replace(origin, sha256=checkpoint.file_digest(found.file))
    return Opened(found.model, found.tokenizer, found.config, found.file, origin.sha256, origin, None)


def _unknown(path: Path) -> str:
    """One line for a name that means nothing."""
    names = [entry.name for entry in pulled.entries()]
    near = difflib.get_close_matches(str(path), [*names, *(n.rpartition("/")[2] for n in names)], n=1)
    hub_name = [one.name for one in pulled.KNOWN if str(path) in (one.name, one.name.rpartition("/")[2])]
    hint = f"; on the hub there is {hub.PREFIX}{hub_name[0]}" if hub_name else ""
    if near:
        hint = f"; the nearest is {near[0]}"
    return (
        f"{path} doesn't exist, and no pulled model has that name{hint}; train a model with `coca quickstart`, name "
        "its folder, or pull one with `coca models pull`"
    )
