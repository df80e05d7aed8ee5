"""Where the index of a folder is. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from opencoca.errors import DataError
from opencoca.search import manifest

HERE = ".opencoca"
CACHE_REPAIR = "search without an index by --no-cache, or keep it beside the pictures: coca index {folder} --here"


def index_folder(folder: Path) -> Path:
    """Where the index of a folder is: beside its pictures if there is one, else in the user's cache.

    Raises: DataError for a user without a home folder.
    """
    here = folder / HERE
    return here if (here / manifest.NAME).exists() else cached(folder)


def cached(folder: Path) -> Path:
    """The place in the user's cache for the index of a folder.

    Raises: DataError for a user without a home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        parent = Path(root) if root else Path.home() / ".cache"
    except RuntimeError as error:
        raise DataError(
            f"there is no home folder to keep an index in; keep it beside the pictures: coca index {folder} --here"
        ) from error
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return parent / "opencoca" / "indexes" / name
