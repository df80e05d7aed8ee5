"""Exact nearest neighbours of a query among memory-mapped float16 rows: a rough look at all, then an exact one at few.

The rough look reads a sketch of the rows, int8 with a scale each, and so half of their bytes; its product with the
query runs on the processor's integer units. Each row's rounding error has a known length, so that by the inequality of
Cauchy and Schwarz the true score lies within a known distance of the rough one. Every row whose score could be among
the best k is then compared in float64 on its float16 values. So nothing is lost: this is no approximation.

Rows that have no sketch are turned to float32 in pieces that fit in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 32_768  # rows looked at before the bar is raised; torch runs what follows a product of so few in one thread
COLUMNS = 4  # of the rough product, two of them used: the integer units take 4 as quickly as 1
TILE = 4096  # rows that are turned to float32 at once
SKETCHED = 4096  # fewer rows are quicker without a sketch
LEAST = -3.0  # below every score of unit-norm rows and queries, and above what marks a row as ruled out
SLACK = 1e-5  # more than what float32 rounds away, and what float16 rounds unit vectors by


class Sketch(NamedTuple):
    """Rows as scale x int8: int8 [I,E], scale float32 [I]; the length of what that leaves out, float32 [I], and the
    largest such length."""

    values: Tensor
    scale: Tensor
    error: Tensor
    worst: float


class Rows(NamedTuple):
    """Unit-norm rows float16 [I,E], and their sketch or None."""

    vectors: Tensor
    sketch: Sketch | None


def nearest(parts: Sequence[Rows], query: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers int64 [K] and scores float32 [K] of the rows nearest to a query float32 [E], the best first.

    Rows are numbered through all parts. Equal scores are ordered by row; K is k, or fewer where fewer rows are kept.

    Args: keep, bool [I], rules rows out.
    """
    query_E = torch.from_numpy(np.array(query, dtype=np.float32))
    keep_I = None if keep is None else torch.from_numpy(np.ascontiguousarray(keep))
    bar = torch.empty(0)  # the k best lower bounds so far: a row whose upper bound is below the last is out
    rows: list[Tensor] = []
    uppers: list[Tensor] = []
    first = 0
    for part in parts:
        looks = _sketched(part.sketch, query_E) if part.sketch else _tiled(part.vectors, query_E)
        for start, scores, error, worst in looks:
            if keep_I is not None:
                scores.masked_fill_(~keep_I[first + start : first + start + len(scores)], -torch.inf)
            least = float(bar[-1]) if len(bar) == k else -torch.inf
            found = (scores >= max(least - worst, LEAST)).nonzero()[:, 0]
            lower, upper = scores[found] - error[found], scores[found] + error[found]
            bar = torch.cat((bar, lower[lower > least]))
            bar = bar.topk(min(k, len(bar))).values  # in descending order
            rows.append(found[upper >= least] + (first + start))
            uppers.append(upper[upper >= least])
        first += len(part.vectors)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    candidates, upper = torch.cat(rows), torch.cat(uppers)
    if len(bar) == k:
        candidates = candidates[upper >= bar[-1]]
    return _best(parts, query, candidates.numpy(), k)


def rescored(parts: Sequence[Rows], query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` among these rows (ascending) alone."""
    return _best(parts, query, rows, k)


def behind(parts: Sequence[Rows], first: int) -> list[Rows]:
    """The rows from number `first` on."""
    found = []
    for vectors, sketch in parts:
        if first < len(vectors):
            cut = slice(first, None)
            some = sketch and Sketch(sketch.values[cut], sketch.scale[cut], sketch.error[cut], sketch.worst)
            found.append(Rows(vectors[cut], some))
        first = max(first - len(vectors), 0)
    return found


def sketch_of(vectors: Tensor) -> Sketch:
    """The sketch of unit-norm rows [I,E]."""
    values = torch.empty(vectors.shape, dtype=torch.int8)
    scale, error = torch.empty(len(vectors)), torch.empty(len(vectors))
    for start in range(0, len(vectors), TILE):
        rows = vectors[start : start + TILE].float()
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=1e-12)
        whole = (rows / scales[:, None]).round()
        values[start : start + TILE] = whole.to(torch.int8)
        scale[start : start + TILE] = scales
        error[start : start + TILE] = (rows - whole * scales[:, None]).norm(dim=1)
    return Sketch(values, scale, error, float(error.max()) if len(error) else 0.0)


def sketch_bytes(sketch: Sketch) -> Iterator[memoryview]:
    """The sketch as it lies in a file: scales, errors, values."""
    for tensor in (sketch.scale, sketch.error, sketch.values):
        yield tensor.numpy().reshape(-1).view(np.uint8).data


def map_vectors(file: Path, rows: int, width: int) -> Tensor:
    """The float16 [I,E] of a file, read when they are used."""
    if not rows:
        return torch.empty(0, width, dtype=torch.float16)
    return torch.from_numpy(np.memmap(file, np.float16, "c", shape=(rows, width)))


def map_sketch(file: Path, rows: int, width: int) -> Sketch:
    """The sketch of a file, read when it is used."""
    content = np.memmap(file, np.uint8, "c")
    scale, error = (torch.from_numpy(content[4 * rows * i : 4 * rows * (i + 1)].view(np.float32)) for i in range(2))
    values = torch.from_numpy(content[8 * rows :].view(np.int8).reshape(rows, width))
    return Sketch(values, scale, error, float(error.max()))


def _sketched(sketch: Sketch, query_E: Tensor) -> Iterator[tuple[int, Tensor, Tensor, float]]:
    """First row, rough scores [R], how far they may be off [R], and at most, of one block after the other.

    The query is the sum of two int8 vectors, one 254 times finer than the other, so that its own rounding is no matter.
    """
    length = float(query_E.norm())
    coarse = max(float(query_E.abs().max()) / 127, 1e-12)
    first_E = (query_E / coarse).round()
    rest_E = query_E - first_E * coarse
    fine = coarse / 254
    second_E = (rest_E / fine).round().clamp(-127, 127)
    left = float((rest_E - second_E * fine).norm())
    columns = torch.zeros(len(query_E), COLUMNS, dtype=torch.int8)
    columns[:, 0], columns[:, 1] = first_E.to(torch.int8), second_E.to(torch.int8)
    times, plus, slack = length + left, left + SLACK * length, SLACK * length
    for start in range(0, len(sketch.values), BLOCK):
        part = slice(start, start + BLOCK)
        products = torch._int_mm(sketch.values[part], columns)  # pyright: ignore[reportPrivateImportUsage]
        scores = products[:, 0].float().mul_(coarse).add_(products[:, 1].float(), alpha=fine).mul_(sketch.scale[part])
        yield start, scores, sketch.error[part] * times + plus, sketch.worst * times + plus + slack


def _tiled(vectors: Tensor, query_E: Tensor) -> Iterator[tuple[int, Tensor, Tensor, float]]:
    worst = SLACK * float(query_E.norm())
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        scores = torch.empty(len(block))
        for i in range(0, len(block), TILE):
            torch.mv(block[i : i + TILE].float(), query_E, out=scores[i : i + TILE])
        yield start, scores, torch.full((len(block),), worst), 2 * worst


def _best(parts: Sequence[Rows], query: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of the candidates (row numbers through all parts, ascending), by their exact scores.

    Scores are computed in float64 and rounded, so that equal rows tie. In NumPy, whose calls cost less than torch's:
    where a graph proposes a few rows they are what a search waits for.
    """
    query_E = query.astype(np.float64)
    if len(parts) == 1:
        scores = _products(parts[0], candidates, query_E)
    else:
        edges = np.cumsum([0, *(len(part.vectors) for part in parts)])
        runs = np.split(candidates, candidates.searchsorted(edges[1:-1]))
        of_parts = zip(parts, runs, edges[:-1], strict=True)
        scores = np.concatenate([_products(part, run - first, query_E) for part, run, first in of_parts])
    order = (-scores).argsort(kind="stable")[:k]
    return candidates[order], scores[order]


def _products(part: Rows, rows: np.ndarray, query_E: np.ndarray) -> np.ndarray:
    return (part.vectors.numpy().take(rows, axis=0).astype(np.float64) @ query_E).astype(np.float32)
