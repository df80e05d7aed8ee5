"""The graph of neighbours: its rough embeddings still propose the right rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opencoca.errors import DataError
from opencoca.search import graph

pytest.importorskip("faiss")
ROWS, WIDTH, K = 4000, 64, 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(outlier: float, ranks: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Rows in clusters, in so many directions, one of whose dimensions may stand out, as published models' do; and
    queries beside them."""
    draws = np.random.default_rng(0)
    turned = draws.standard_normal((ranks, WIDTH)) if ranks < WIDTH else np.eye(WIDTH)
    centres = draws.standard_normal((40, ranks))
    rows = (centres[draws.integers(40, size=ROWS)] + draws.standard_normal((ROWS, ranks))) @ turned
    queries = (centres[draws.integers(40, size=50)] + draws.standard_normal((50, ranks))) @ turned
    rows[:, 3] += outlier
    return unit(rows), unit(queries)


@pytest.mark.parametrize(("outlier", "ranks"), [(0.0, WIDTH), (30.0, WIDTH), (0.0, 9)])
def test_the_nearest_rows_are_proposed(tmp_path: Path, outlier: float, ranks: int) -> None:
    rows, queries = embeddings(outlier, ranks)
    half = rows.astype(np.float16)
    assert graph.make([half[:1500], half[1500:]], WIDTH, tmp_path / "graph") == ROWS
    found = graph.opened(tmp_path / "graph", ROWS, WIDTH)
    hits = 0
    for query in queries:
        proposed = found.proposed(query, K)
        assert len(proposed) == 15 and (np.diff(proposed) > 0).all()
        hits += len(np.intersect1d(proposed, np.argsort(-(half.astype(np.float32) @ query))[:K]))
    assert hits / (len(queries) * K) >= 0.95


def test_directions_that_hold_nothing_are_left_out(tmp_path: Path) -> None:
    few, _ = embeddings(0.0, 9)
    every, _ = embeddings(0.0)
    assert graph._directions(few).shape == (16, WIDTH)
    assert graph._directions(every).shape == (WIDTH, WIDTH)
    kept = few @ graph._directions(few).T
    assert (kept**2).sum() / (few**2).sum() >= graph.KEPT


def test_no_more_rows_are_proposed_than_there_are(tmp_path: Path) -> None:
    rows, queries = embeddings(0.0)
    graph.make([rows[:7].astype(np.float16)], WIDTH, tmp_path / "graph")
    assert list(graph.opened(tmp_path / "graph", 7, WIDTH).proposed(queries[0], K)) == list(range(7))


def test_a_graph_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    rows, _ = embeddings(0.0)
    graph.make([rows[:7].astype(np.float16)], WIDTH, tmp_path / "graph")
    with pytest.raises(DataError, match="a graph of 7 x 64 embeddings, not of 8 x 64"):
        graph.opened(tmp_path / "graph", 8, WIDTH)


def test_where_it_cannot_be_read_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph.readable("graph-000004.faiss")
    assert not graph.readable("graph-000004.usearch")
    monkeypatch.setattr(graph.sys, "platform", "darwin")
    assert not graph.readable("graph-000004.faiss") and not graph.is_there()


def test_many_are_found_too(tmp_path: Path) -> None:
    rows, queries = embeddings(0.0)
    graph.make([rows.astype(np.float16)], WIDTH, tmp_path / "graph")
    found = graph.opened(tmp_path / "graph", ROWS, WIDTH)
    hits = 0
    for query in queries:
        proposed = found.proposed(query, 400)  # more than a search keeps in view otherwise
        assert len(proposed) == 600
        hits += len(np.intersect1d(proposed, np.argsort(-(rows @ query))[:400]))
    assert hits / (len(queries) * 400) >= 0.98
