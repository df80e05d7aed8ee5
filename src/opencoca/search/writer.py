"""The one process that may change an index: it writes new files, then makes them the index in one step."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from opencoca.errors import DataError
from opencoca.files import file_digest, replacing
from opencoca.search import exact, graph, manifest
from opencoca.search.manifest import Manifest, Part
from opencoca.search.table import Table

COPIED_ROWS = 65_536
MANY_PARTS = 8
HOLES = 0.1  # the share of rows without a file from which on a large index is written afresh
SMALL = 50_000  # rows up to which it is at once


class BusyError(DataError):
    """Another process is writing to the index."""


@contextlib.contextmanager
def only_writer(index: Path, folder: Path) -> Iterator[None]:
    """Holds the index folder's lock; the system frees it on a kill.

    Raises: BusyError where another process holds it.
    """
    index.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (index / "lock").open("a+") as file:
        try:
            lock(file.fileno())
        except OSError:
            raise BusyError(
                f"another process is indexing {folder}; wait for it, or search what is there: "
                f"coca search {folder} QUERY --no-update"
            ) from None
        yield


def is_locked(index: Path) -> bool:
    """True while another process writes to the index folder."""
    try:
        with (index / "lock").open("r+") as file:
            lock(file.fileno())
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


class Writer:
    """Changes to an index that become part of it with each `commit`; the caller holds the lock.

    `table` takes what is known of files and contents, `add` the embeddings of new rows.
    """

    def __init__(self, index: Path, folder: Path, found: Manifest) -> None:
        self.index, self.folder, self.manifest = index, folder, found
        self._pending: list[np.ndarray] = []
        self.rows = found.rows
        self._clean()
        numbers = [int(path.stem.rpartition("-")[2]) for path in index.iterdir() if manifest.PARTS.fullmatch(path.name)]
        self._next = max([found.next_part - 1, *numbers]) + 1
        self._work = index / f"work-{os.getpid()}.sqlite"
        self._work.unlink(missing_ok=True)
        if found.table:
            shutil.copyfile(index / found.table.name, self._work)
        with full_disk_named(self.index):
            self.table = Table.working(self._work, new=found.table is None)

    def close(self) -> None:
        """Drops what isn't committed."""
        self.table.close()
        self._work.unlink(missing_ok=True)

    def add(self, embeds: np.ndarray) -> int:
        """The row of the first of these unit-norm embeddings [B,E]; they are stored as float16."""
        first = self.rows
        self._pending.append(embeds.astype(np.float16))
        self.rows += len(embeds)
        return first

    def commit(self, **changes: object) -> Manifest:
        """Makes everything so far the index, with fields of the manifest changed."""
        vectors, sketches = list(self.manifest.vectors), dict(self.manifest.sketches)
        if self._pending:
            part, sketch = self._vectors(self._pending)
            vectors.append(part)
            if sketch:
                sketches[part.name] = sketch
        with full_disk_named(self.index):
            self.table.flush()
        table = self._table()
        changed = {"vectors": vectors, "sketches": sketches, "table": table, "next_part": self._next, **changes}
        found = dataclasses.replace(self.manifest, **changed)
        manifest.write(self.index, found)
        self.manifest, self._pending = found, []
        self._clean()
        return found

    def tidy(self) -> None:
        """Leaves out rows that no file has, and joins parts, where it is worth it. For the next `commit`."""
        self.table.forget_unused()
        used = self.table.contents()
        holes = self.rows - len(used)
        wanted = holes > (0 if self.rows <= SMALL else HOLES * self.rows)
        if not wanted and len(self.manifest.vectors) + bool(self._pending) <= MANY_PARTS:
            return
        sources = [
            exact.map_vectors(self.index / part.name, part.rows, self.manifest.width).numpy()
            for part in self.manifest.vectors
        ]
        part, sketch = self._vectors(_kept([*sources, *self._pending], used))
        with full_disk_named(self.index):
            self.table.renumber()
        sketches = {part.name: sketch} if sketch else {}
        self.manifest = dataclasses.replace(
            self.manifest,
            vectors=[part] if part.rows else [],
            sketches=sketches,
            graph=None if holes else self.manifest.graph,  # without holes every row keeps its number
        )
        self._pending, self.rows = [], len(used)

    def graph(self) -> Part:
        """A new graph of all committed rows. For the next `commit`."""
        vectors = [
            exact.map_vectors(self.index / part.name, part.rows, self.manifest.width).numpy()
            for part in self.manifest.vectors
        ]
        name = self._name("graph", graph.SUFFIX)
        with replacing(self.index / name) as partial:
            rows = graph.make(vectors, self.manifest.width, partial)
        return Part(name, (self.index / name).stat().st_size, file_digest(self.index / name), rows)

    def _vectors(self, pieces: Iterable[np.ndarray]) -> tuple[Part, Part | None]:
        part = self._part("vectors", "f16", (np.ascontiguousarray(piece).view(np.uint8).data for piece in pieces))
        rows = part.bytes // (2 * self.manifest.width)
        part = dataclasses.replace(part, rows=rows)
        if rows < exact.SKETCHED or not hasattr(torch, "_int_mm"):
            return part, None
        vectors = exact.map_vectors(self.index / part.name, rows, self.manifest.width)
        sketch = self._part("sketch", "i8", exact.sketch_bytes(exact.sketch_of(vectors)))
        return part, dataclasses.replace(sketch, rows=rows)

    def _table(self) -> Part:
        name = self._name("table", "sqlite")
        with replacing(self.index / name) as partial:
            shutil.copyfile(self._work, partial)
        return Part(name, (self.index / name).stat().st_size, file_digest(self.index / name), len(self.table))

    def _part(self, kind: str, suffix: str, pieces: Iterable[memoryview]) -> Part:
        name, digest, size = self._name(kind, suffix), hashlib.sha256(), 0
        with replacing(self.index / name) as partial, partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += piece.nbytes
        return Part(name, size, digest.hexdigest(), 0)

    def _name(self, kind: str, suffix: str) -> str:
        self._next += 1
        return f"{kind}-{self._next - 1:06d}.{suffix}"

    def _clean(self) -> None:
        """Removes what belongs to no manifest: older states, and what a killed writer left."""
        mine = {part.name for part in self.manifest.parts}
        standing = manifest.names_in_use(self.index)
        for path in self.index.iterdir():
            ours = manifest.PARTS.fullmatch(path.name) or path.name.startswith((".partial-", "work-"))
            if ours and path.name not in mine | standing and path != getattr(self, "_work", None):
                with contextlib.suppress(OSError):  # on Windows a reader may still have it open
                    path.unlink()


@contextlib.contextmanager
def full_disk_named(index: Path) -> Iterator[None]:
    """Says in one line that the table can't be written.

    Raises: DataError.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"the index in {index} can't be written ({error}); the old one stands; make room") from error


def _kept(pieces: Iterable[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    """The named rows (ascending) of pieces that follow each other, a block at a time."""
    first = 0
    for piece in pieces:
        here = rows[(rows >= first) & (rows < first + len(piece))] - first
        for start in range(0, len(here), COPIED_ROWS):
            yield piece[here[start : start + COPIED_ROWS]]
        first += len(piece)


def lock(handle: int) -> None:
    """Locks an open file until it is closed. Raises: OSError where another process has the lock."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
