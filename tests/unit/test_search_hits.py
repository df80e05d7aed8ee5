"""What an index finds: in which order, within which bounds, and why."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from tests import indexes, tiny
from tests.indexes import make, names

from opencoca.errors import DataError
from opencoca.search import graph
from opencoca.search.filters import Filters, day
from opencoca.search.graph import Graph
from opencoca.search.index import Index
from opencoca.search.store import Store

predictor = indexes.predictor
folder = indexes.folder
place = indexes.place


def test_hits_are_ordered_by_cosine_similarity(predictor, folder, place):
    hits = make(folder, predictor, place).search("red circle", 3)
    paths = sorted(folder.iterdir())
    scores = predictor.embed_images(paths) @ predictor.embed_texts("red circle")[0]
    best = scores.argsort(descending=True)[:3].tolist()
    assert [hit.path for hit in hits] == [paths[row] for row in best]
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-3)
    assert hits[0].good == (hits[0].score >= Store.open(folder, place).manifest.level)


def test_filters_by_day_size_and_folder(predictor, folder, place):
    tiny.save_picture(folder / "a" / "deep" / "x.png", 80, size=(60, 60))
    tiny.save_picture(folder / "ab" / "y.png", 81)
    os.utime(folder / "0.png", (1_577_880_000, 1_577_880_000))  # 2020-01-01 at noon
    index = make(folder, predictor, place)
    assert names(index, filters=Filters(before=day("2020-01-01"))) == ["0.png"]
    assert "0.png" not in names(index, filters=Filters(after=day("2020-01-02")))
    assert names(index, filters=Filters(min_bytes=5000)) == ["x.png"]
    assert "x.png" not in names(index, filters=Filters(max_bytes=5000))
    assert names(index, filters=Filters(folder="a")) == ["x.png"]
    assert names(index, filters=Filters(folder="none")) == []
    assert names(index, 1, filters=Filters(folder="ab")) == ["y.png"]  # though others are nearer


def test_the_day_is_when_the_camera_says(predictor, folder, place):
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2011:05:06 07:08:09"
    Image.new("RGB", (20, 20), "red").save(folder / "old.jpg", exif=exif)
    index = make(folder, predictor, place)
    [hit] = index.search("red", filters=Filters(before=day("2011-05-06"), after=day("2011-05-06")))
    assert hit.path.name == "old.jpg"
    assert str(index.picture(hit.id).date) == "2011-05-06 07:08:09"


def test_arithmetic_of_words_and_pictures(predictor, folder, place):
    index = make(folder, predictor, place)
    hits = index.search("red")
    one = next(hit for hit in hits if hit.path.name == "3.png")
    assert names(index, 1, f"id:{one.id}") == ["3.png"]
    query = index.embed('"red circle" + three.png - night', pictures=lambda name: folder / "3.png")
    text, night = predictor.embed_texts(["red circle", "night"])
    picture = predictor.embed_images(folder / "3.png")[0]
    want = torch.nn.functional.normalize(text + picture - night, dim=0).numpy()
    np.testing.assert_allclose(query.embed, want, atol=1e-5)
    assert query.words == {"red", "circle"}
    assert names(index, query=predictor.embed_images(folder / "2.png")[0])[0] == "2.png"
    with pytest.raises(DataError, match="cancel each other out"):
        index.search("red - red")
    with pytest.raises(DataError, match="no picture 999"):
        index.search("id:999")
    np.testing.assert_allclose(index.embed("a.png").embed, predictor.embed_texts("a.png")[0], atol=1e-6)


def test_captions_can_decide_the_order_and_say_why(predictor, folder, place, monkeypatch):
    index = make(folder, predictor, place, captions=True)
    last = index.search("red circle")[-1]
    real = index.backend.pictures
    monkeypatch.setattr(
        index.backend,
        "pictures",
        lambda ids: [p._replace(caption="Red circles, many" if p.id == last.id else "a dog") for p in real(ids)],
    )
    assert index.search("red circle")[-1].id == last.id
    first = index.search("red circle", blend=0.9)[0]
    assert first.id == last.id
    assert first.why.startswith("its caption says red, circles,; similarity")
    assert index.search("red circle", 5, blend=0.0)[0].why.startswith("similarity")


def test_a_graph_proposes_and_scores_stay_exact(predictor, folder, place, monkeypatch):
    pytest.importorskip("faiss")
    want = [(hit.path.name, hit.score) for hit in make(folder, predictor, place).search("red circle")]
    monkeypatch.setattr(graph, "WORTH_IT", 4)
    index = make(folder, predictor, place, anew=True)
    assert [(hit.path.name, hit.score) for hit in index.search("red circle")] == want
    assert index.backend._graph.rows == 5
    monkeypatch.setattr(graph, "WORTH_IT", 1000)  # from here on the graph is behind
    tiny.save_picture(folder / "new.png", 60)
    tiny.save_picture(folder / "newer.png", 61)
    (folder / "0.png").unlink()
    assert sorted(names(make(folder, predictor, place))) == ["1.png", "2.png", "3.png", "4.png", "new.png", "newer.png"]


def test_without_the_library_a_graph_is_left_aside(predictor, folder, place, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(graph, "WORTH_IT", 4)
    index = make(folder, predictor, place)
    want = [(hit.path.name, hit.score) for hit in index.search("red circle")]
    assert index.backend._graph is not None
    monkeypatch.setattr(graph, "is_there", lambda: False)
    again = Index.open(folder, predictor, place)
    assert again.backend._graph is None
    assert [(hit.path.name, hit.score) for hit in again.search("red circle")] == want


def test_what_was_deleted_near_a_query_costs_no_hits(predictor, folder, place, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(graph, "WORTH_IT", 4)
    index = make(folder, predictor, place)
    hits = index.search("red circle")
    monkeypatch.setattr(Graph, "proposed", lambda self, query, k: np.arange(2))  # both are deleted
    index.backend._used = np.arange(5) >= 2  # as in a large index, which keeps the rows of deleted pictures
    rows, scores = index.backend._proposed(index.backend._graph, predictor.embed_texts("red circle")[0].numpy(), 2)
    assert (rows >= 2).all() and len(rows) == len(scores) == 2
    assert scores.max() <= max(hit.score for hit in hits) + 1e-6
