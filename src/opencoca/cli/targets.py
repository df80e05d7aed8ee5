"""The files and folders that options name to be written: refused in a line where they can't be, before any work."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from opencoca.errors import DataError, unwritable
from opencoca.files import write_atomically


@contextlib.contextmanager
def writing(path: Path, instead: str = "") -> Iterator[None]:
    """Names `path` where the block can't write it; `instead` is the repair (see `errors.unwritable`).

    Raises: DataError for an OSError of the block.
    """
    try:
        yield
    except BrokenPipeError:  # of our own output
        raise
    except OSError as error:
        raise DataError(unwritable(path, error, instead)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file that an option names, whole or not at all.

    Raises: DataError where it can't be written.
    """
    with writing(path):
        write_atomically(path, content)


def check_file(path: Path) -> None:
    """Finds out whether `write_file` could write `path`, and leaves nothing behind.

    Raises: DataError where it couldn't.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file")
    check_folder(path.parent, named=path)


def check_folder(folder: Path, *, named: Path | None = None, instead: str = "") -> None:
    """Finds out whether files can be written into a folder, which may be yet to be made, and leaves nothing behind.

    named: what the message names (default: the folder).
    Raises: DataError where they couldn't.
    """
    with writing(named or folder, instead):
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        probe = there / f".partial-{os.getpid()}-{secrets.token_hex(3)}"
        probe.touch(exist_ok=False)
        probe.unlink()
