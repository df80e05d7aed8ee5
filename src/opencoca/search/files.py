"""The picture files below a folder: which there are, what tells their states apart, what they contain."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from opencoca.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
CHUNK_BYTES = 1 << 20


class Seen(NamedTuple):
    """A file below the folder (its path there, with `/`), and the quick check of whether it changed."""

    path: str
    modified_ns: int
    bytes: int


class Listing(NamedTuple):
    """The picture files of a folder in natural order, and what was left out, each with its reason."""

    files: list[Seen]
    skipped: list[tuple[str, str]]


def listed(folder: Path) -> Listing:
    """The picture files below `folder`, by their suffix; hidden files and folders are left out.

    Links to folders aren't followed. A link to a file is followed to a file below the folder only: what an index shows
    its readers must be what its owner put into the folder.
    """
    root = folder.resolve()
    files: list[Seen] = []
    skipped: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        name = _below(Path(error.filename or folder), folder)
        skipped.append((name, f"can't be read ({error.strerror}); change its permissions"))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        for name in sorted(names, key=natural):
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            path = Path(parent, name)
            try:
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    if not path.resolve().is_relative_to(root):
                        skipped.append((_below(path, folder), "is a link that leads out of the folder; copy the file"))
                        continue
                    status = path.stat()
            except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
                reason = getattr(error, "strerror", None) or error
                skipped.append((_below(path, folder), f"can't be opened ({reason}); check where it leads"))
                continue
            if stat.S_ISREG(status.st_mode):
                files.append(Seen(_below(path, folder), status.st_mtime_ns, status.st_size))
    return Listing(files, skipped)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key by which numbers count as numbers and capitals as small letters."""
    pieces = re.split(r"([0-9]+)", name.casefold())  # text, digits, text, ..., text
    return [(int(piece), "") if index % 2 else (-1, piece) for index, piece in enumerate(pieces)], name


def contents_digest(path: Path) -> bytes:
    """sha256 of a file's contents: the same for a file that was moved."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def inside(folder: Path, file: Path) -> Path:
    """The file, if it still lies below the folder.

    Raises: DataError where it leads out of the folder, by `..` or by a link that was put there since.
    """
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{file} leads out of {folder}; bring the index up to date: coca index {folder}")
    return file


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
