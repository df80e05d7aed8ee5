"""Indexes of what a bulk run wrote: the same answers as from pictures, in our files and in LanceDB."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.support import samples

from opencoca.cli.main import main
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk
from opencoca.jobs.bulk_index import copy_to_lance, index_bulk
from opencoca.jobs.bulk_input import open_input
from opencoca.jobs.bulk_output import Place, file_of
from opencoca.jobs.bulk_shard import Task
from opencoca.search import lance, manifest
from opencoca.search.filters import Filters
from opencoca.search.index import Index
from opencoca.search.lance import Rows
from opencoca.search.manifest import Manifest
from opencoca.search.store import Store
from opencoca.search.table import Row
from opencoca.search.update import update

pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures in two folders, two of them copies."""
    for i, sample in enumerate([*samples()[:28], samples()[3], samples()[3]]):
        path = tmp_path / "pictures" / ("left" if i % 2 else "it's") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.picture)
    return tmp_path / "pictures"


@pytest.fixture
def described(pictures: Path, tmp_path: Path, predictor: Predictor) -> Path:
    return describe(pictures, tmp_path / "described", predictor)


def describe(pictures: Path, out: Path, predictor: Predictor, do: tuple[str, ...] = ("embed", "caption")) -> Path:
    task = Task("tiny", predictor.fingerprint(), do, generation={"beams": 1}, batch_size=8)
    found = open_input(str(pictures), per_shard=7)
    bulk.run(found, Place(str(out)), task, model_name="tiny", predictor=predictor)
    return out


def queries(index: Index) -> list[np.ndarray]:
    return [query.astype(np.float32) for query in index.backend.embeds()]


def found(index: Index, query: np.ndarray, k: int = 5, filters: Filters | None = None) -> list[tuple[str, float, str]]:
    return [(str(hit.path), hit.score, hit.caption) for hit in index.search(query, k, filters)]


def test_an_index_of_bulk_output_answers_as_one_of_the_pictures(
    pictures: Path, described: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(pictures, predictor, "tiny", index=tmp_path / "direct", captions=True)
    direct = Index.open(pictures, predictor, tmp_path / "direct")
    monkeypatch.setattr(Predictor, "encode_squares", None)  # no picture passes through the model
    made = index_bulk(described, tmp_path / "index", predictor)
    assert (made.files, made.rows, made.bulk) == (30, 28, True)
    index = Index.open(described, predictor, tmp_path / "index")
    assert len(index) == 30
    for query in queries(direct):  # ids differ (natural order), so the order among equal scores may
        want, got = found(direct, query, 30), found(index, query, 30)
        assert [score for _, score, _ in got] == pytest.approx([score for _, score, _ in want], abs=2e-3)
        assert {path for path, _, _ in got} == {path for path, _, _ in want}
    assert {(p, c) for p, _, c in found(index, queries(index)[0], 30)} == {
        (p, c) for p, _, c in found(direct, queries(index)[0], 30)
    }
    assert index.thumbnail(1, 16)


def test_what_does_not_fit_is_refused(described: Path, tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(DataError, match="not any more what it was"):
        index_bulk(described, tmp_path / "index", tiny.predictor(seed=1))
    file = described / file_of("part-000001")
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"part-000001.parquet is damaged or missing; run `coca bulk` again"):
        index_bulk(described, tmp_path / "index", predictor)
    assert not (tmp_path / "index" / "manifest.json").exists()
    (described / "manifest.json").unlink()
    with pytest.raises(DataError, match="no finished bulk output"):
        index_bulk(described, tmp_path / "index", predictor)


def test_embeddings_are_needed(pictures: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = describe(pictures, tmp_path / "out", predictor, ("caption",))
    with pytest.raises(DataError, match="holds no embeddings"):
        index_bulk(out, tmp_path / "index", predictor)


def test_the_commands_describe_index_and_search(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, out = str(tiny.save_model(tmp_path / "model")), str(tmp_path / "out")
    (pictures / "torn.png").write_bytes(b"\x89PNG")
    words = ["bulk", str(pictures), "--out", out, "--model", model, "--beams", "1", "--per-shard", "20"]
    assert main(words) == 3
    said = capsys.readouterr()
    assert "pictures\t30\nbad\t1\nshards\t2\nmade_now\t2" in said.out and "skipped torn.png: it is " in said.err
    assert main(words) == 3 and "made_now\t0" in capsys.readouterr().out
    assert main(["search", out, "red", "--top", "3"]) == 2
    assert "coca index --from-bulk" in capsys.readouterr().err
    assert main(["index", "--from-bulk", out]) == 0
    assert capsys.readouterr().out.startswith("30 pictures from ")
    assert main(["search", out, "red", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(Path(line.split("\t")[0]).is_file() for line in lines)
    assert main([*words, "--do", "classify"]) == 2
    assert "--labels" in capsys.readouterr().err
    assert main([*words, "--workers", "2"]) == 2
    assert "--runner ray" in capsys.readouterr().err
    assert main(["index", str(pictures), "--ivf-pq"]) == 2
    assert "--backend lance" in capsys.readouterr().err


# --- LanceDB ----------------------------------------------------------------------------------------------------------


def test_lance_gives_the_answers_of_the_exact_search(described: Path, tmp_path: Path, predictor: Predictor) -> None:
    pytest.importorskip("lancedb")
    index_bulk(described, tmp_path / "files", predictor)
    index_bulk(described, tmp_path / "lance", predictor, url=str(tmp_path / "table"))
    files, table = (Index.open(described, predictor, tmp_path / name) for name in ("files", "lance"))
    assert isinstance(table.backend, lance.Lance) and isinstance(files.backend, Store)
    np.testing.assert_array_equal(files.backend.ids(), table.backend.ids())
    np.testing.assert_array_equal(files.backend.embeds(), table.backend.embeds())
    ids = [7, 3, 12]
    assert files.backend.pictures(ids) == table.backend.pictures(ids)
    np.testing.assert_array_equal(files.backend.embeds(ids), table.backend.embeds(ids))
    some = files.backend.pictures([1])[0]
    for filters in (
        None,
        Filters(folder="it's"),
        Filters(min_bytes=some.bytes),
        Filters(max_bytes=some.bytes - 1, folder="left"),
        Filters(after=some.date.date()),
        Filters(before=some.date.date().replace(year=2001)),
    ):
        for k in (1, 4, 40):
            for query in queries(files)[::5]:
                assert found(files, query, k, filters) == found(table, query, k, filters)
    with pytest.raises(DataError, match="has no picture 99"):
        table.backend.pictures([99])


def test_lance_orders_many_equal_rows_as_the_exact_search(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((900, 16)).astype(np.float32)
    vectors[100:800] = vectors[100]  # far more than are proposed at first
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    rows = [Row(i + 1, f"{i}", 0, 1, 0, None, None) for i in range(900)]
    made = Manifest("x", "m", "m", 16)
    facts = lance.write(str(tmp_path), made, [Rows(rows[::-1], vectors[::-1])], lambda: vectors)
    table = lance.opened(tmp_path, made, facts)
    ids, scores = table.nearest(vectors[100].astype(np.float32), 10, Filters())
    assert ids.tolist() == list(range(101, 111)) and len(set(scores.tolist())) == 1


def test_a_quick_index_says_its_recall(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((5000, 32)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    rows = [Row(i + 1, f"{i}", 0, 1, 0, None, None) for i in range(5000)]
    made = Manifest("x", "m", "m", 32)
    words = vectors[:20].astype(np.float32)
    facts = lance.write(str(tmp_path / "a"), made, [Rows(rows, vectors)], lambda: words, ivf_pq=True)
    assert facts.kind == "ivf_pq" and 0.9 <= facts.recall <= 1.0
    table = lance.opened(tmp_path, made, facts)
    assert [table.nearest(word, 1, Filters())[0][0] for word in words] == list(range(1, 21))
    with pytest.raises(DataError, match="leave --ivf-pq out"):
        lance.write(str(tmp_path / "b"), made, [Rows(rows[:50], vectors[:50])], lambda: words, ivf_pq=True)


def test_a_damaged_table_is_refused(described: Path, tmp_path: Path, predictor: Predictor) -> None:
    pytest.importorskip("lancedb")
    made = index_bulk(described, tmp_path / "index", predictor, url=str(tmp_path / "table"))
    assert made.lance is not None
    draws = np.random.default_rng(0)
    for name in made.lance["files"]:
        file = tmp_path / "table" / "pictures.lance" / name
        good = file.read_bytes()
        for _ in range(5):
            bad = bytearray(good)
            bad[int(draws.integers(len(bad)))] ^= 1 << int(draws.integers(8))
            file.write_bytes(bad)
            with pytest.raises(DataError, match="damaged"):
                Index.open(described, predictor, tmp_path / "index")
        file.unlink()
        with pytest.raises(DataError, match="damaged"):
            Index.open(described, predictor, tmp_path / "index")
        file.write_bytes(good)
    assert len(Index.open(described, predictor, tmp_path / "index")) == 30


def test_a_copy_of_a_folders_index_is_used_while_it_is_new(
    pictures: Path, tmp_path: Path, predictor: Predictor
) -> None:
    pytest.importorskip("lancedb")
    place, url = tmp_path / "index", str(tmp_path / "table")
    update(pictures, predictor, "tiny", index=place)
    made = copy_to_lance(pictures, place, predictor, url)
    again = copy_to_lance(pictures, place, predictor, url)  # nothing to do
    assert made.lance and again.lance and again.lance["version"] == made.lance["version"]
    files, table = Store.open(pictures, place), Index.open(pictures, predictor, place)
    assert files is not None and isinstance(table.backend, lance.Lance)
    exact = Index(files, predictor, pictures, table._level)
    for query in queries(exact)[::7]:
        assert found(table, query, 9) == found(exact, query, 9)
    tiny.save_picture(pictures / "new.png", 5)
    update(pictures, predictor, "tiny", index=place)
    newer = Index.open(pictures, predictor, place)
    assert isinstance(newer.backend, Store) and len(newer) == 31
    copy_to_lance(pictures, place, predictor, url)
    assert isinstance(Index.open(pictures, predictor, place).backend, lance.Lance)


def test_without_lancedb_the_extra_is_named(
    described: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = index_bulk(described, tmp_path / "index", predictor)
    facts = lance.Table(str(tmp_path / "table"), 1, 30, "flat", 1.0, "", {})
    manifest.write(
        tmp_path / "index", dataclasses.replace(made, lance=dataclasses.asdict(facts), table=None, vectors=[])
    )
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(DataError, match=r"pip install 'opencoca\[distributed\]'"):
        Index.open(described, predictor, tmp_path / "index")
