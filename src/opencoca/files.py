"""Files that are there whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what stands there at the end of the block is flushed to disk and becomes `path`.

    Nobody else uses the path that is given, so two writers can't mix their bytes: the later one's file stays. After an
    error nothing is left of it, and `path` is what it was.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{secrets.token_hex(3)}-{path.name}")
    try:
        yield partial
        fsync(partial)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename, error.filename2 = str(path), None  # nobody knows the other name
        raise
    fsync(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8 with its own newlines, whole or not at all, and makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if isinstance(content, str):
            partial.write_text(content, encoding="utf-8", newline="")
        else:
            partial.write_bytes(content)


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
