"""The picture files that the words of a command line mean."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from opencoca.errors import DataError
from opencoca.search.files import SUFFIXES, natural

STANDARD_INPUT = Path("-")


class Skipped(NamedTuple):
    """A file or folder that was left out; `what` goes on from its name: "is empty; copy it again"."""

    path: Path
    what: str


class Found(NamedTuple):
    """Picture files, each once, and the folders that gave none."""

    paths: list[Path]
    skipped: list[Skipped]


def find(names: Sequence[Path]) -> Found:
    """The pictures that `names` mean: files of any suffix, folders, patterns that the shell left alone, and `-`.

    Names keep their order. A folder stands for the files in it and in its subfolders that have a picture's suffix,
    in natural order (`2.png` before `10.png`); hidden files and folders are left out. `-` stands for the files and
    folders that standard input lists, one a line or with a NUL behind each; a listed file that isn't there is found
    missing when it is read, so that it doesn't stop the others.

    Raises: DataError for a name that isn't there, a pattern that matches nothing, or no picture at all.
    """
    paths: dict[Path, None] = {}
    skipped: list[Skipped] = []
    for name in _meant(names):
        if is_there(name) and name.is_dir():
            paths |= dict.fromkeys(_walk(name, skipped))
        else:
            paths[name] = None
    if not paths:
        raise DataError(f"{skipped[0].path} {skipped[0].what}")
    return Found(list(paths), skipped)


def _meant(names: Sequence[Path]) -> Iterator[Path]:
    for name in names:
        if name == STANDARD_INPUT:
            yield from _listed(sys.stdin.buffer.read())
        else:
            yield from _without_patterns(name)


def _listed(content: bytes) -> list[Path]:
    """The paths of a list: with a NUL behind each, as `find -print0` writes them, else one a line."""
    pieces = content.split(b"\0") if b"\0" in content else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    paths = [Path(os.fsdecode(piece)) for piece in pieces if piece]
    if not paths:
        raise DataError("standard input lists no picture; write one path a line, as in: ls *.jpg | coca caption -")
    return paths


def is_there(name: Path) -> bool:
    """True for a file or folder; False for what can't be one, as a name that is too long."""
    try:
        return name.exists()
    except OSError:
        return False


def _without_patterns(name: Path) -> Iterator[Path]:
    try:
        name.stat()
    except FileNotFoundError as error:
        is_pattern = glob.has_magic(str(name))
        matches = glob.glob(str(name), recursive=True) if is_pattern else []
        if not matches:
            what = "matches no file; check the pattern" if is_pattern else "does not exist; check the path"
            raise DataError(f"{name} {what}") from error
        yield from map(Path, sorted(matches, key=natural))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name} can't be opened ({reason}); check the path and its permissions") from error
    else:
        yield name


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    found = False
    unreadable: list[Skipped] = []

    def unreadable_folder(error: OSError) -> None:
        what = f"can't be read ({error.strerror}); change its permissions"
        unreadable.append(Skipped(Path(error.filename or folder), what))

    for parent, folders, files in os.walk(folder, onerror=unreadable_folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        for name in sorted(files, key=natural):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and not _is_special(path):
                found = True
                yield path
    skipped += unreadable
    if not found and not unreadable:
        kinds = "JPEG, PNG, WEBP, GIF, BMP, TIFF, HEIC or AVIF files"
        skipped.append(
            Skipped(folder, f"holds no pictures ({kinds}, in subfolders too); name another folder or a file")
        )


def _is_special(path: Path) -> bool:
    """True for a pipe or device that happens to be called like a picture."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a broken link: reading it will say so
        return False
    return not stat.S_ISREG(mode)
