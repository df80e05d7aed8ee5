"""The manifest of an index folder: which files make up the index, their digests, and who made it.

An index is a manifest and the files that it names, which are written once and never changed:

    manifest.json            this; replaced in one step, so that an index is the old one or the new one
    vectors-<n>.f16          embeddings, float16 [I,E], row after row
    sketch-<n>.i8            the same, roughly, for a quick first look (see `exact.py`)
    table-<n>.sqlite         paths, digests, captions and dates
    lock                     held by the one process that may write

Files that no manifest names are left-overs of a killed writer; the next writer removes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opencoca.errors import DataError
from opencoca.files import file_digest, write_atomically

VERSION = 2
NAME = "manifest.json"
PARTS = re.compile(r"(vectors|sketch|table|graph)-[0-9]{6,12}\.(f16|i8|sqlite|faiss|usearch)")


@dataclass(frozen=True)
class Part:
    """A file of the index: its name, size and sha256, and how many rows it holds."""

    name: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What an index is made of.

    folder: what is indexed. model: the fingerprint; model_name: how the user named it, or where it lay. next_part:
    number of the next file. level: see `cutoff.py`; None while nobody measured it. complete: False until an update has
    seen every file. files: how many readable pictures the last update found in the folder. lance: a table in LanceDB
    that holds the index (see `lance.Table`). bulk: the folder is an output of `coca bulk`, and not the pictures' own;
    pictures: the folder that then holds these, if one does.
    """

    folder: str
    model: str
    model_name: str
    width: int
    captions: bool = False
    complete: bool = False
    files: int = 0
    next_part: int = 1
    vectors: list[Part] = field(default_factory=list)
    sketches: dict[str, Part] = field(default_factory=dict)
    table: Part | None = None
    graph: Part | None = None
    level: float | None = None
    lance: dict[str, Any] | None = None
    bulk: bool = False
    pictures: str | None = None
    version: int = VERSION

    @property
    def parts(self) -> list[Part]:
        """All files that belong to the index."""
        single = [part for part in (self.table, self.graph) if part]
        return [*self.vectors, *self.sketches.values(), *single]

    @property
    def rows(self) -> int:
        """How many embeddings there are."""
        return sum(part.rows for part in self.vectors)

    def below(self, folder: Path) -> Path:
        """What the paths of the index of `folder` start from."""
        return Path(self.pictures) if self.pictures else folder


def read(index: Path, folder: Path, check: bool = True) -> Manifest | None:
    """The manifest of the index in the folder `index`, with every digest checked; None where there is no index.

    Raises: DataError for an index that is damaged, or of another version, with the repair.
    """
    try:
        content = (index / NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = _without_digest(content)
        version = found["version"]
        manifest = _manifest(found) if version == VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{NAME}: {error}") from error
    if manifest is None:
        raise DataError(
            f"the index of {folder} has version {version!r} and this OpenCoCa reads {VERSION}; make it anew: "
            f"coca index {folder} --anew"
        )
    if check:
        verify(index, folder, manifest)
    return manifest


def verify(index: Path, folder: Path, manifest: Manifest) -> None:
    """Compares every file with its size and digest.

    Raises: DataError for the first that differs.
    """

    def problem(part: Part) -> str | None:
        try:
            if (index / part.name).stat().st_size != part.bytes:
                return f"{part.name} has {(index / part.name).stat().st_size} bytes and not {part.bytes}"
            return None if file_digest(index / part.name) == part.sha256 else f"{part.name}: its digest is wrong"
        except FileNotFoundError:
            return f"{part.name} is missing"

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(problem, manifest.parts):
            if found:
                raise damaged(folder, found)


def names_in_use(index: Path) -> set[str]:
    """The files that the manifest on disk names, as far as it can be read."""
    try:
        return {part.name for part in _manifest(_without_digest((index / NAME).read_bytes())).parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def write(index: Path, manifest: Manifest) -> None:
    """Makes `manifest` the one of the index, in one step."""
    content: dict[str, Any] = asdict(manifest)
    write_atomically(index / NAME, json.dumps(content | {"digest": _digest(content)}, indent=1) + "\n")


def damaged(folder: Path, what: str) -> DataError:
    """The refusal of a damaged index."""
    return DataError(f"the index of {folder} is damaged ({what}); make it anew: coca index {folder} --anew")


def _without_digest(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if found.pop("digest") != _digest(found):
        raise ValueError("its digest is wrong")
    return found


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(found: dict[str, Any]) -> Manifest:
    found["vectors"] = [_part(part) for part in found["vectors"]]
    found["sketches"] = {name: _part(part) for name, part in found["sketches"].items()}
    for name in ("table", "graph"):
        found[name] = _part(found[name]) if found[name] else None
    return Manifest(**found)


def _part(found: dict[str, Any]) -> Part:
    part = Part(**found)
    if not PARTS.fullmatch(part.name):
        raise ValueError(f"{part.name!r} is no file of an index")
    return part
