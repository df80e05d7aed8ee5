"""A run's checkpoints: where they stand, which is the latest, which are removed."""

from __future__ import annotations

import re
import shutil
import zlib
from pathlib import Path

from opencoca.checkpoint.manifest import MANIFEST, verify
from opencoca.errors import CheckpointError
from opencoca.files import write_atomically


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
    text = pointer.read_text(encoding="utf-8", errors="replace").strip()
    name, _, checksum = text.partition(" ")  # a name alone is what a person writes, and what was written before
    named = re.fullmatch(r"step-\d{1,20}", name) and checksum in ("", _checksum(name))
    folder = standing(pointer.parent / name) if named else None
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            f"{pointer} names {text[:40]!r}, which isn't there; write the name of another checkpoint into it"
        )
    return folder


def standing(folder: Path) -> Path:
    """`folder`, or its older version where a kill came while `save` replaced it."""
    return retired(folder) if not folder.exists() and retired(folder).is_dir() else folder


def retired(folder: Path) -> Path:
    """The name that a folder's older version has while it is replaced."""
    return folder.with_name(f".retired-{folder.name}")


def mark_latest(folder: Path, keep: int) -> None:
    """Points `latest` at a verified folder, then removes older checkpoints beyond the newest `keep`, and leftovers."""
    verify(folder)
    move_latest(folder, keep)


def move_latest(folder: Path, keep: int) -> None:
    """`mark_latest` for a folder that is known to be whole."""
    write_atomically(folder.parent / "latest", f"{folder.name} {_checksum(folder.name)}\n")
    for leftover in folder.parent.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    for leftover in folder.parent.glob(".retired-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    older = sorted(path for path in folder.parent.glob("step-*") if path.name < folder.name)
    for path in older[: max(0, len(older) - (keep - 1))]:
        shutil.rmtree(path)


def _checksum(name: str) -> str:
    """Tells a name from another checkpoint's that differs by one damaged digit."""
    return f"{zlib.crc32(name.encode()):08x}"
