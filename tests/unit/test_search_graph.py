"""The graph of neighbours: its rough embeddings still propose the right rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opencoca.search import graph

pytest.importorskip("usearch")
ROWS, WIDTH, K = 4000, 64, 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(outlier: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows in clusters, one of whose dimensions may stand out, as published models' do; and queries beside them."""
    draws = np.random.default_rng(0)
    centres = draws.standard_normal((40, WIDTH))
    rows = centres[draws.integers(40, size=ROWS)] + draws.standard_normal((ROWS, WIDTH))
    queries = centres[draws.integers(40, size=50)] + draws.standard_normal((50, WIDTH))
    rows[:, 3] += outlier
    return unit(rows), unit(queries)


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_the_nearest_rows_are_proposed(tmp_path: Path, outlier: float) -> None:
    rows, queries = embeddings(outlier)
    half = rows.astype(np.float16)
    assert graph.make([half[:1500], half[1500:]], WIDTH, tmp_path / "graph") == ROWS
    found = graph.opened(tmp_path / "graph", ROWS, WIDTH)
    hits = 0
    for query in queries:
        proposed = found.proposed(query, K)
        assert len(proposed) == graph.PROPOSED * K and (np.diff(proposed) > 0).all()
        hits += len(np.intersect1d(proposed, np.argsort(-(half.astype(np.float32) @ query))[:K]))
    assert hits / (len(queries) * K) >= 0.95


def test_no_more_rows_are_proposed_than_there_are(tmp_path: Path) -> None:
    rows, queries = embeddings(0.0)
    graph.make([rows[:7].astype(np.float16)], WIDTH, tmp_path / "graph")
    assert list(graph.opened(tmp_path / "graph", 7, WIDTH).proposed(queries[0], K)) == list(range(7))
