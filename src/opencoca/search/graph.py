"""Above a million pictures: a graph of neighbours, whose finds are compared exactly. Needs usearch (extra `search`).

The graph only proposes: its proposals' scores are computed as everywhere, so that a picture has one score however it
was found. So its own embeddings may be rough, int8, half the bytes of float16. What it may miss is what it doesn't
propose; `EXPANSION` is set so that text queries among picture embeddings keep a recall of 0.98 and more
(`benchmarks/search.py`). Rows that came after the graph was made, and searches with filters, are looked at exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opencoca.errors import DataError

WORTH_IT = 1_000_000  # rows from which on a graph is made by itself
CONNECTIVITY, EXPANSION_ADD = 16, 256
EXPANSION = 64  # rows that a search keeps in view
PROPOSED = 2  # times as many rows as are wanted are compared exactly
WIDEST = 6.0  # standard deviations of a unit vector's entries; what lies beyond is cut off


class Graph(NamedTuple):
    """The graph of the first `rows` rows."""

    index: Any
    rows: int

    def proposed(self, query: np.ndarray, k: int) -> np.ndarray:
        """Rows int64 that may be among the k nearest to a float32 [E], ascending."""
        self.index.expansion_search = max(EXPANSION, PROPOSED * k)
        found = self.index.search(_rough(query), min(PROPOSED * k, self.rows), threads=1)
        return np.sort(found.keys.astype(np.int64))


def is_there() -> bool:
    """Whether usearch is installed."""
    try:
        import usearch.index  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def make(vectors: list[np.ndarray], width: int, file: Path) -> int:
    """Writes the graph of all rows, float16 [I,E] in pieces, and says how many rows it has.

    Raises: DataError where usearch isn't installed.
    """
    index = _empty(width)
    first = 0
    for piece in vectors:
        for start in range(0, len(piece), 65_536):
            rows = _rough(piece[start : start + 65_536].astype(np.float32))
            index.add(np.arange(first, first + len(rows)), rows)
            first += len(rows)
    index.save(str(file))
    return first


def opened(file: Path, rows: int, width: int) -> Graph:
    """The graph of a file, read when it is used.

    Raises: DataError where usearch isn't installed.
    """
    index = _empty(width)
    index.view(str(file))
    return Graph(index, rows)


def _rough(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors float32 [...,E] as int8, all by one scale, which keeps the order of their products."""
    scale = 127 / WIDEST * vectors.shape[-1] ** 0.5
    return np.rint(vectors * scale).clip(-127, 127).astype(np.int8)


def _empty(width: int) -> Any:
    try:
        from usearch.index import Index  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("the index has a graph, which needs usearch: pip install 'opencoca[search]'") from error
    return Index(ndim=width, metric="ip", dtype="i8", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD)
