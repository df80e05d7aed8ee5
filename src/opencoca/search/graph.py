"""Above a million pictures: a graph of neighbours, whose finds are compared exactly. Needs FAISS (extra `search`).

The graph only proposes: its proposals' scores are computed as everywhere, so that a picture has one score however it
was found. So its own embeddings may be rough. They keep the principal directions that hold 99.9% of the embeddings'
squared length, a byte each: a model's embeddings need far fewer directions than they have (the shipped one's 256 need
64), and a search waits for memory more than for arithmetic. What it may miss is what it doesn't propose; `EXPANSION`
is set so that text queries among picture embeddings keep a recall of 0.98 and more (`benchmarks/search.py`). Rows that
came after the graph was made, and searches with filters, are looked at exactly.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opencoca.errors import DataError

WORTH_IT = 1_000_000  # rows from which on a graph is made by itself
SUFFIX = "faiss"
LINKS, EXPANSION_ADD = 16, 256
EXPANSION = 64  # rows that a search keeps in view
KEPT, MULTIPLE = 0.999, 16  # of the squared length; directions are kept by sixteens
SAMPLE = 65_536  # rows that the directions and their ranges are learnt from
PIECE = 16_384  # rows added at once: until the next, Ctrl-C waits


class Graph(NamedTuple):
    """The graph of the first `rows` rows."""

    index: Any
    rows: int

    def proposed(self, query: np.ndarray, k: int) -> np.ndarray:
        """Rows int64 that may be among the k nearest to a float32 [E], ascending: half as many again."""
        found = self._nearest(np.ascontiguousarray(query, np.float32), min(k + (k + 1) // 2, self.rows))
        found.sort()
        return found if found[0] >= 0 else found[found >= 0]  # -1 where it found fewer

    def _nearest(self, query: np.ndarray, wanted: int) -> np.ndarray:
        """FAISS's search without the checks and copies of its wrapper, a tenth of what a search takes."""
        if query.shape != (self.index.d,):  # it would read beyond the end
            raise ValueError(f"a query of shape {query.shape} for a graph of {self.index.d} numbers a row")
        faiss, rows, scores = _faiss(), np.empty(wanted, np.int64), np.empty(wanted, np.float32)
        pointer = faiss.swig_ptr
        wider = None
        if 2 * wanted > EXPANSION:  # many are asked for: more than these have to be kept in view
            looks = faiss.SearchParametersHNSW(efSearch=2 * wanted)
            wider = faiss.SearchParametersPreTransform(index_params=looks)
        self.index.search_c(1, pointer(query), wanted, pointer(scores), pointer(rows), wider)
        return rows


def is_there() -> bool:
    """Whether a graph can be made and read here: not on macOS, where FAISS's OpenMP and torch's crash together."""
    return sys.platform != "darwin" and importlib.util.find_spec("faiss") is not None


def readable(name: str) -> bool:
    """Whether a graph's file can be read here. Where not (those of usearch are of early versions), search is exact."""
    return name.endswith(SUFFIX) and is_there()


def make(vectors: list[np.ndarray], width: int, file: Path) -> int:
    """Writes the graph of all rows, float16 [I,E] in pieces, and says how many rows it has."""
    faiss = _faiss()

    sample = np.concatenate([part[:: 1 + sum(map(len, vectors)) // SAMPLE] for part in vectors]).astype(np.float32)
    directions = _directions(sample)
    turned = faiss.LinearTransform(width, len(directions), False)
    faiss.copy_array_to_vector(directions.ravel(), turned.A)
    turned.is_trained = True
    rough = faiss.IndexHNSWSQ(len(directions), faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT)
    rough.hnsw.efConstruction = EXPANSION_ADD
    index = faiss.IndexPreTransform(turned, rough)
    index.train(sample)
    for part in vectors:
        for start in range(0, len(part), PIECE):
            index.add(part[start : start + PIECE].astype(np.float32))
    faiss.write_index(index, str(file))
    return int(index.ntotal)


def opened(file: Path, rows: int, width: int, expansion: int = EXPANSION) -> Graph:
    """The graph of a file, read when it is used.

    Raises: DataError for a graph of other embeddings.
    """
    faiss = _faiss()

    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    if (index.d, index.ntotal) != (width, rows):
        raise DataError(f"{file.name} is a graph of {index.ntotal} x {index.d} embeddings, not of {rows} x {width}")
    faiss.downcast_index(index.index).hnsw.efSearch = expansion
    return Graph(index, rows)


@functools.cache
def _faiss() -> Any:
    return importlib.import_module("faiss")  # whose type stubs know only the base classes


def _directions(sample: np.ndarray) -> np.ndarray:
    """The principal directions float32 [D,E] of rows float32 [S,E] that hold `KEPT` of their squared length."""
    lengths, columns = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
    held = np.cumsum(lengths[::-1]) / max(float(lengths.sum()), 1e-12)
    wanted = int(held.searchsorted(KEPT)) + 1
    wanted = min(-(-wanted // MULTIPLE) * MULTIPLE, sample.shape[1])
    return np.ascontiguousarray(columns[:, ::-1][:, :wanted].T, np.float32)
