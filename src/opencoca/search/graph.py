"""Above a million pictures: a graph of neighbours, whose finds are compared exactly. Needs usearch (extra `search`).

The graph only proposes: its proposals' scores are computed as everywhere, so that a picture has one score however it
was found. What it may miss is what it doesn't propose; `EXPANSION` is set so that text queries among picture embeddings
keep a recall of 0.95 and more (`benchmarks/search.py`). Rows that came after the graph was made, and searches with
filters, are looked at exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opencoca.errors import DataError

WORTH_IT = 1_000_000  # rows from which on a graph is made by itself
CONNECTIVITY, EXPANSION_ADD = 32, 256
EXPANSION = 128  # rows that a search keeps in view
PROPOSED = 4  # times as many rows as are wanted are compared exactly


class Graph(NamedTuple):
    """The graph of the first `rows` rows."""

    index: Any
    rows: int

    def proposed(self, query: np.ndarray, k: int) -> np.ndarray:
        """Rows int64 that may be among the k nearest to a float32 [E], ascending."""
        self.index.expansion_search = max(EXPANSION, PROPOSED * k)
        found = self.index.search(query.astype(np.float16), min(PROPOSED * k, self.rows))
        return np.sort(np.asarray(found.keys, np.int64).reshape(-1))


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
            rows = np.ascontiguousarray(piece[start : start + 65_536])
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


def _empty(width: int) -> Any:
    try:
        from usearch.index import Index  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("the index has a graph, which needs usearch: pip install 'opencoca[search]'") from error
    return Index(ndim=width, metric="ip", dtype="f16", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD)
