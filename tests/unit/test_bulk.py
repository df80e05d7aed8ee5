"""Bulk runs: what a shard's file holds, that nothing is lost or made twice, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import bulk_runs, tiny
from tests.bulk_runs import contents, prepared, run, task_of, write_tar
from tests.support import samples

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk_output
from opencoca.jobs.bulk_output import Place, file_of

predictor = bulk_runs.predictor
tars = bulk_runs.tars
parquet = pytest.importorskip("pyarrow.parquet")


def test_a_shard_holds_what_the_predictor_makes_and_names_what_is_bad(
    tars: Path, tmp_path: Path, predictor: Predictor
) -> None:
    labels = ("red square", "blue circle", "bar")
    task = task_of(predictor, "caption", "embed", "classify", labels=labels)
    report = run(tars, tmp_path / "out", predictor, task)
    assert (report.rows, report.bad, report.shards, report.done) == (14, 1, 3, 3)
    place = Place(str(tmp_path / "out"))
    ((key, reason),) = place.record("00001").bad
    assert key == "00001/12" and reason.startswith("it is ") and "; " in reason
    table = parquet.read_table(tmp_path / "out" / file_of("00001"))
    assert table.column("key").to_pylist() == [f"00001/{key}" for key in ("10", "11", "13", "14")]
    pictures = [samples()[i].picture for i in (5, 6, 8, 9)]
    expected = predictor.embed_images(pictures)
    embeds = np.stack(table.column("embedding").to_numpy())
    assert embeds.dtype == np.float16
    np.testing.assert_array_equal(embeds, expected.numpy().astype(np.float16))
    captions = [some[0] for some in predictor.captions(pictures, beams=1, max_tokens=8)]
    assert table.column("caption").to_pylist() == [one.text for one in captions]
    np.testing.assert_allclose(table.column("log_prob").to_numpy(), [one.log_prob for one in captions], rtol=1e-5)
    probabilities = predictor.classify(pictures, labels)
    assert [row[0] for row in table.column("labels").to_pylist()] == [labels[i] for i in probabilities.argmax(dim=1)]
    np.testing.assert_allclose(
        np.stack(table.column("probabilities").to_numpy())[:, 0], probabilities.max(dim=1).values, rtol=1e-5
    )
    assert [record.rows for record in place.manifest()] == [5, 4, 5]


def test_a_kill_at_any_write_leaves_nothing_lost_twice_or_torn(
    tars: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    run(tars, tmp_path / "whole", predictor)
    whole = contents(tmp_path / "whole")
    replace, at = os.replace, 0
    for at in range(100):
        out, count = tmp_path / f"killed-{at}", iter(range(at))

        def dying(source: Any, target: Any, count: Any = count) -> None:
            if next(count, None) is None:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                run(tars, out, predictor)
            except Killed:
                pass
            else:
                break
        records = {path.stem for path in (out / "shards").glob("*.json")} if (out / "shards").exists() else set()
        report = run(tars, out, predictor)
        assert report.done == 3 - len(records) and not report.renewed
        assert contents(out) == whole
    assert at == 8  # bulk.json, three files, three records, the manifest


def test_a_rerun_does_only_what_is_missing_changed_or_damaged(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    run(tars, out, predictor)
    whole = contents(out)
    os.utime(tars / "00000.tar", (1, 1))
    assert run(tars, out, predictor).done == 0  # touched, not changed
    damaged = out / file_of("00002")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    report = run(tars, out, predictor)
    assert (report.done, report.renewed) == (1, ["00002"]) and contents(out) == whole
    write_tar(tars / "00001.tar", [("new", samples()[40].picture)])
    with pytest.raises(DataError, match=r"shard 00001 changed since .* --redo"):
        run(tars, out, predictor)
    assert contents(out) == whole
    report = run(tars, out, predictor, redo=True)
    assert (report.done, report.rows, report.bad) == (1, 11, 0)
    write_tar(tars / "00003.tar", [("more", samples()[41].picture)])
    assert run(tars, out, predictor).done == 1
    (tars / "00000.tar").unlink()
    with pytest.raises(DataError, match="holds the shard 00000, which the input has not"):
        run(tars, out, predictor)


def test_another_model_and_other_options_are_refused_with_the_repair(
    tars: Path, tmp_path: Path, predictor: Predictor
) -> None:
    out = tmp_path / "out"
    run(tars, out, predictor)
    other = tiny.predictor(seed=1, batch_size=4)
    with pytest.raises(DataError, match=r"made by the model tiny .* give that one by --model"):
        run(tars, out, other)
    with pytest.raises(DataError, match=r"made with do \['embed'\], and now it is \['caption', 'embed'\]"):
        run(tars, out, predictor, task_of(predictor, "embed", "caption"))
    (out / "bulk.json").unlink()
    with pytest.raises(DataError, match=r"shard 00000 of .* was made by another model or with other options"):
        run(tars, out, other)
    assert run(tars, out, predictor).done == 0
    with pytest.raises(DataError, match="isn't the same on every machine"):
        run(tars, tmp_path / "new", other, task_of(predictor))


def test_bad_pictures_are_counted_and_too_many_stop_the_run(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"1 of 15 pictures are bad .* more than --max-bad 0.05"):
        run(tars, tmp_path / "out", predictor, max_bad=0.05)
    assert not (tmp_path / "out" / "manifest.json").exists()
    report = run(tars, tmp_path / "out", predictor, max_bad=0.1)
    assert (report.done, report.rows, report.bad) == (0, 14, 1)


def test_a_folder_with_something_else_is_left_alone(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    shards = prepared(tmp_path / "shards")
    before = contents(shards)
    with pytest.raises(DataError, match=r"isn't empty \(it holds train-000000.tar\); name another --out"):
        run(tars, shards, predictor)
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"isn't empty \(it holds manifest.json\); name another --out"):
        run(tars, shards, predictor)
    assert contents(shards)["manifest.json"] == before["manifest.json"] and not (shards / ".lock").exists()


def test_two_runs_at_once_are_refused(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    from opencoca.search.writer import lock

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("a+") as file:
        lock(file.fileno())
        with pytest.raises(DataError, match="another run writes to"):
            run(tars, out, predictor)
    assert run(tars, out, predictor).done == 3


def same_json(one: bytes, other: bytes) -> bool:
    """A blank that became a line's end, say, is no damage."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_damage_to_what_a_run_remembers_is_noticed(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    run(tars, out, predictor)
    draws = np.random.default_rng(0)
    for name in ("bulk.json", "manifest.json", "shards/00001.json"):
        good = (out / name).read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            bad[int(draws.integers(len(bad)))] ^= 1 << int(draws.integers(8))
            (out / name).write_bytes(bad)
            place = Place(str(out))
            read = {"bulk.json": place.settings, "manifest.json": place.manifest}.get(name, place.records)
            if not same_json(bad, good):
                with pytest.raises(DataError, match=r"damaged|OpenCoCa reads"):
                    read()
        (out / name).write_bytes(good)
    assert bulk_output.Place(str(out)).manifest()


def test_left_overs_of_killed_writers_are_removed(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / ".partial-1-abc-00000.parquet").write_bytes(b"half")
    run(tars, out, predictor)
    assert not list(out.rglob(".partial-*"))
    shutil.rmtree(out)
