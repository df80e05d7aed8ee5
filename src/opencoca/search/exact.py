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

BLOCK = 65_536  # rows that are looked at before the bar is raised
TILE = 4096  # rows that are turned to float32 at once
SKETCHED = 4096  # fewer rows are quicker without a sketch
SLACK = 1e-5  # more than what float32 rounds away, and what float16 rounds unit vectors by


class Sketch(NamedTuple):
    """Rows as scale x int8: int8 [I,E], scale float32 [I], and the length of what that leaves out, float32 [I]."""

    values: Tensor
    scale: Tensor
    error: Tensor


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
    bar = torch.full((0,), -torch.inf)
    rows: list[Tensor] = []
    uppers: list[Tensor] = []
    exact: list[tuple[Tensor, int]] = []
    first = 0
    for vectors, sketch in parts:
        looks = _sketched(sketch, query_E) if sketch else _tiled(vectors, query_E)
        for start, scores, error in looks:
            if keep_I is not None:
                scores = scores.masked_fill(~keep_I[first + start : first + start + len(scores)], -torch.inf)
            lower = scores - error
            least = bar[-1] if len(bar) == k else torch.tensor(-torch.inf)
            better = lower[lower > least] if len(bar) == k else lower
            if len(better):
                bar = torch.cat((bar, better)).topk(min(k, len(bar) + len(better))).values
                least = bar[-1] if len(bar) == k else least
            upper = scores + error
            found = ((upper >= least) & (upper > -torch.inf)).nonzero()[:, 0]
            rows.append(found + (first + start))
            uppers.append(upper[found])
        exact.append((vectors, first))
        first += len(vectors)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    candidates, upper = torch.cat(rows), torch.cat(uppers)
    if len(bar) == k:
        candidates = candidates[upper >= bar[-1]]
    scores = torch.cat([_rescored(vectors, query_E, candidates, start) for vectors, start in exact])
    order = np.lexsort((candidates.numpy(), -scores.numpy()))[:k]
    return candidates.numpy()[order], scores.numpy()[order]


def scores_of_all(parts: Sequence[Rows], query: np.ndarray) -> np.ndarray:
    """Scores float32 [I] of all rows, for uses that need every one."""
    query_E = torch.from_numpy(np.array(query, dtype=np.float32))
    scores = [scores for vectors, _ in parts for _, scores, _ in _tiled(vectors, query_E)]
    return torch.cat(scores).numpy() if scores else np.empty(0, np.float32)


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
    return Sketch(values, scale, error)


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
    return Sketch(torch.from_numpy(content[8 * rows :].view(np.int8).reshape(rows, width)), scale, error)


def _sketched(sketch: Sketch, query_E: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First row, rough scores [R] and how far they may be off [R], of one block after the other.

    The query is the sum of two int8 vectors, one 254 times finer than the other, so that its own rounding is no matter.
    """
    length = float(query_E.norm())
    coarse = max(float(query_E.abs().max()) / 127, 1e-12)
    first_E = (query_E / coarse).round()
    rest_E = query_E - first_E * coarse
    fine = coarse / 254
    second_E = (rest_E / fine).round().clamp(-127, 127)
    left = float((rest_E - second_E * fine).norm())
    columns = torch.zeros(len(query_E), 8, dtype=torch.int8)  # the integer units take 8 columns as quickly as 1
    columns[:, 0], columns[:, 1] = first_E.to(torch.int8), second_E.to(torch.int8)
    for start in range(0, len(sketch.values), BLOCK):
        part = slice(start, start + BLOCK)
        products = torch._int_mm(sketch.values[part], columns)  # pyright: ignore[reportPrivateImportUsage]
        scores = products[:, 0].float().mul_(coarse).add_(products[:, 1].float(), alpha=fine).mul_(sketch.scale[part])
        error = sketch.error[part] * (length + left) + (left + SLACK * length)
        yield start, scores, error


def _tiled(vectors: Tensor, query_E: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    error = torch.tensor(SLACK * float(query_E.norm()))
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        scores = torch.empty(len(block))
        for i in range(0, len(block), TILE):
            rows = block[i : i + TILE]
            torch.mv(rows.float(), query_E, out=scores[i : i + TILE])
        yield start, scores, error


def _rescored(vectors: Tensor, query_E: Tensor, candidates: Tensor, first: int) -> Tensor:
    """Scores of the candidates that lie in this part, computed in float64 and rounded, so that equal rows tie."""
    rows = candidates[(candidates >= first) & (candidates < first + len(vectors))] - first
    return (vectors[rows].double() @ query_E.double()).float()
