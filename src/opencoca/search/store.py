"""An index folder as a `Backend`: embeddings that are mapped into memory, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opencoca.errors import DataError
from opencoca.search import exact, graph, manifest
from opencoca.search.backend import Picture
from opencoca.search.filters import Filters
from opencoca.search.manifest import Manifest
from opencoca.search.places import index_folder
from opencoca.search.table import Table, readable


class Store:
    """One state of an index folder, for reading; a later update doesn't change it."""

    def __init__(self, index: Path, folder: Path, found: Manifest) -> None:
        self.index, self.folder, self.manifest = index, folder, found
        if found.table is None:
            raise manifest.damaged(folder, "no table")
        with readable(f"the index of {folder} is damaged; make it anew: coca index {folder} --anew"):
            self.table = Table.opened(index / found.table.name)
            self._ids, self._rows = self.table.places()
        self._parts = [self._part(part) for part in found.vectors]
        used = np.zeros(found.rows, bool)
        if len(self._rows) and not 0 <= self._rows.min() <= self._rows.max() < found.rows:
            raise manifest.damaged(folder, "its table names rows that aren't there")
        used[self._rows] = True
        self._used = None if used.all() else used
        self._graph = None
        if found.graph and graph.readable(found.graph.name):
            self._graph = graph.opened(index / found.graph.name, found.graph.rows, self.width)
        self._by_row = np.argsort(self._rows, kind="stable")  # files of one row lie side by side, by id

    @classmethod
    def open(cls, folder: Path, index: Path | None = None, check: bool = True) -> Store | None:
        """The index of a folder, with every digest checked; None where there is none.

        Raises: DataError for an index that is damaged or of another version, with the repair.
        """
        index = index or index_folder(folder)
        for attempt in range(3):  # an update may replace the files between our looks at them
            found = manifest.read(index, folder, check=False)
            if found is None:
                return None
            try:
                if check:
                    manifest.verify(index, folder, found)
                return cls(index, folder, found)
            except (DataError, FileNotFoundError) as error:
                if attempt == 2 or manifest.read(index, folder, check=False) == found:
                    if isinstance(error, DataError):
                        raise
                    raise manifest.damaged(folder, f"{error.filename} is missing") from error
        raise AssertionError("unreachable")

    @property
    def model(self) -> str:
        return self.manifest.model

    @property
    def width(self) -> int:
        return self.manifest.width

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> np.ndarray:
        return self._ids

    def nearest(self, query: np.ndarray, k: int, filters: Filters) -> tuple[np.ndarray, np.ndarray]:
        """Exact neighbours; see `Backend.nearest`."""
        keep, files = self._used, None
        if filters:
            files = np.zeros(len(self._ids), bool)
            files[np.searchsorted(self._ids, self.table.matching(filters))] = True
            keep = np.zeros(self.manifest.rows, bool)
            keep[self._rows[files]] = True
        if not len(self._ids) or k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if self._graph and not filters:
            rows, scores = self._proposed(self._graph, query, k)
        else:
            rows, scores = exact.nearest(self._parts, query, k, keep)
        return self._files_of(rows, scores, k, files)

    def _proposed(self, found: graph.Graph, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best of what the graph proposes and of the rows that came after it."""
        rows = found.proposed(query, k)
        if self._used is not None:
            rows = rows[self._used[rows]]
            if len(rows) < k:  # many of those near the query were deleted since
                return exact.nearest(self._parts, query, k, self._used)
        near = exact.rescored(self._parts, query, rows, k)
        if found.rows == self.manifest.rows:
            return near
        keep = None if self._used is None else self._used[found.rows :]
        later = exact.nearest(exact.behind(self._parts, found.rows), query, k, keep)
        rows, scores = np.concatenate((near[0], later[0] + found.rows)), np.concatenate((near[1], later[1]))
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def _files_of(
        self, rows: np.ndarray, scores: np.ndarray, k: int, files: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of the files with these contents: a picture may be there twice."""
        ordered = self._rows[self._by_row]
        first, last = np.searchsorted(ordered, rows, "left"), np.searchsorted(ordered, rows, "right")
        counts = last - first
        places = self._by_row[np.repeat(first - np.r_[0, np.cumsum(counts)[:-1]], counts) + np.arange(counts.sum())]
        scores = np.repeat(scores, counts)
        if files is not None:
            places, scores = places[files[places]], scores[files[places]]
        ids = self._ids[places]
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], scores[order]

    def pictures(self, ids: Sequence[int]) -> list[Picture]:
        rows = self.table.pictures([int(one) for one in ids])
        foreign = next((row.path for row in rows if row.path.startswith("/") or ".." in row.path.split("/")), None)
        if foreign is not None:
            raise manifest.damaged(self.folder, f"its table names {foreign!r}, which leads out of the folder")
        below = self.manifest.below(self.folder)
        return [Picture(row.id, below / row.path, row.caption or "", row.date, row.bytes) for row in rows]

    def embeds(self, ids: Sequence[int] | None = None) -> np.ndarray:
        wanted = self._rows if ids is None else self._rows[self._places(ids)]
        out = np.empty((len(wanted), self.width), np.float16)
        first = 0
        for part in self._parts:
            here = (wanted >= first) & (wanted < first + len(part.vectors))
            out[here] = part.vectors.numpy()[wanted[here] - first]
            first += len(part.vectors)
        return out

    def _places(self, ids: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(ids, np.int64)
        places = np.searchsorted(self._ids, wanted).clip(max=max(len(self._ids) - 1, 0))
        wrong = wanted[self._ids[places] != wanted] if len(self._ids) else wanted
        if len(wrong):
            raise DataError(f"the index has no picture {wrong[0]}; search again for those that it has")
        return places

    def _part(self, part: manifest.Part) -> exact.Rows:
        vectors = exact.map_vectors(self.index / part.name, part.rows, self.width)
        sketch = self.manifest.sketches.get(part.name)
        return exact.Rows(
            vectors, exact.map_sketch(self.index / sketch.name, part.rows, self.width) if sketch else None
        )
