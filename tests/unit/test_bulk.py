"""Bulk runs: what a shard's file holds, that nothing is lost or made twice, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.support import png, samples

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk, bulk_output
from opencoca.jobs.bulk_input import Input, open_input
from opencoca.jobs.bulk_output import Place, file_of
from opencoca.jobs.bulk_shard import Task

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=4)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of five pictures each, without captions; the second holds a torn one."""
    for number in range(3):
        members = [(f"{number}{i}", sample.picture) for i, sample in enumerate(samples()[5 * number : 5 * number + 5])]
        if number == 1:
            members[2] = (members[2][0], members[2][1][:40])
        write_tar(tmp_path / "tars" / f"{number:05d}.tar", members)
    return tmp_path / "tars"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, picture in members:
            entry = tarfile.TarInfo(f"{key}.png")
            entry.size = len(picture)
            tar.addfile(entry, io.BytesIO(picture))


def task_of(predictor: Predictor, *do: str, **changes: Any) -> Task:
    options: dict[str, Any] = {"generation": {"beams": 1, "max_tokens": 8, "temperature": 0.0}, "batch_size": 4}
    return Task("tiny", predictor.fingerprint(), do or ("embed",), **{**options, **changes})


def run(found: Input | Path, out: Path, predictor: Predictor, task: Task | None = None, **options: Any) -> bulk.Report:
    found = found if isinstance(found, Input) else open_input(str(found))
    options = {"max_bad": 0.5, **options}
    return bulk.run(
        found, Place(str(out)), task or task_of(predictor), model_name="tiny", predictor=predictor, **options
    )


def contents(out: Path) -> dict[str, bytes]:
    """All files of an output, but for the lock and what is this machine's alone: times of the input's files."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".lock":
            facts = json.loads(path.read_bytes()) if path.suffix == ".json" else {}
            if "stamp" in facts:
                del facts["stamp"], facts["digest"]
            name = path.relative_to(out).as_posix()
            found[name] = json.dumps(facts).encode() if facts else path.read_bytes()
    return found


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


def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_done(
    tars: Path, tmp_path: Path, predictor: Predictor
) -> None:
    from opencoca.jobs.data_index import index

    write_tar(tars / "00001.tar", [("whole", samples()[0].picture)])
    for tar in tars.glob("*.tar"):  # an index wants captions
        with tarfile.open(tar, "a") as file:
            for name in file.getnames():
                entry = tarfile.TarInfo(name.replace("png", "txt"))
                entry.size = 1
                file.addfile(entry, io.BytesIO(b"x"))
    index(str(tars))
    content = bytearray((tars / "00001.tar").read_bytes())
    content[600] ^= 1  # a byte of the picture
    (tars / "00001.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 3 shards can't be read, the others are done .*00001.*sha256"):
        run(tars, tmp_path / "out", predictor)
    content[600] ^= 1
    (tars / "00001.tar").write_bytes(content)
    assert run(tars, tmp_path / "out", predictor).done == 1


def test_a_damaged_tar_gives_what_is_whole_and_names_the_damage(
    tars: Path, tmp_path: Path, predictor: Predictor
) -> None:
    content = (tars / "00002.tar").read_bytes()
    (tars / "00002.tar").write_bytes(content[:4000])
    report = run(tars, tmp_path / "out", predictor)
    record = Place(str(tmp_path / "out")).record("00002")
    assert record.rows < 5 and record.bad and " ends " in record.bad[-1][1]
    assert report.bad == 1 + len(record.bad)


def prepared(folder: Path) -> Path:
    from tests.support import write_shards

    return write_shards(folder)


def loose(folder: Path) -> Path:
    for i, sample in enumerate(samples()[:7]):
        (folder / "a" / "b").mkdir(parents=True, exist_ok=True)
        (folder / ("a/b" if i % 2 else "a") / f"{i}.png").write_bytes(sample.picture)
    (folder / "top.png").write_bytes(b"no picture")
    return folder


def table(folder: Path) -> Path:
    loose(folder)
    (folder / "captions.csv").write_text("file_name,caption\na/0.png,red\na/b/1.png,blue\na/2.png,\n")
    return folder / "captions.csv"


def arrow_table(folder: Path) -> Path:
    import pyarrow as pa

    folder.mkdir()
    rows = {"image": [{"bytes": s.picture, "path": s.key} for s in samples()[:6]], "caption": ["x"] * 6}
    parquet.write_table(pa.table(rows), folder / "rows.parquet", row_group_size=4)
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("made", "split", "shards", "rows", "bad"),
    [
        (prepared, None, ["train-000000", "train-000001", "train-000002", "val-000000"], 72, 0),
        (prepared, "val", ["val-000000"], 12, 0),
        (loose, None, ["part-000000", "part-000001", "part-000002"], 7, 1),
        (table, None, ["part-000000"], 2, 1),
        (arrow_table, None, ["part-000000", "part-000001", "part-000002"], 6, 0),
    ],
)
def test_every_form_of_data_becomes_shards(
    made: Callable[[Path], Path],
    split: str | None,
    shards: list[str],
    rows: int,
    bad: int,
    tmp_path: Path,
    predictor: Predictor,
) -> None:
    found = open_input(str(made(tmp_path / "data")), split, per_shard=3)
    assert sorted(shard.name for shard in found.shards) == shards
    report = run(found, tmp_path / "out", predictor)
    assert (report.rows, report.bad) == (rows, bad)
    keys = [
        k
        for s in found.shards
        for k in parquet.read_table(tmp_path / "out" / file_of(s.name)).column("key").to_pylist()
    ]
    assert len(set(keys)) == rows
    assert run(found, tmp_path / "out", predictor).done == 0


def test_a_changed_file_of_a_folder_is_noticed(tmp_path: Path, predictor: Predictor) -> None:
    folder = loose(tmp_path / "data")
    run(open_input(str(folder), per_shard=3), tmp_path / "out", predictor)
    (folder / "a" / "0.png").write_bytes(samples()[50].picture)
    with pytest.raises(DataError, match="the shard part-000000 changed"):
        run(open_input(str(folder), per_shard=3), tmp_path / "out", predictor)


def test_urls_are_read_and_written(tars: Path, tmp_path: Path, predictor: Predictor) -> None:
    import fsspec

    run(tars, tmp_path / "here", predictor)
    memory = fsspec.filesystem("memory")
    for tar in sorted(tars.glob("*.tar")):
        memory.pipe_file(f"/bulk/in/{tar.name}", tar.read_bytes())
    try:
        found = open_input("memory://bulk/in")
        place = Place("memory://bulk/out")
        for done in (3, 0):
            report = bulk.run(found, place, task_of(predictor), model_name="tiny", predictor=predictor)
            assert report.done == done
        for name in ("00000", "00001", "00002"):
            assert place.read(file_of(name)) == (tmp_path / "here" / file_of(name)).read_bytes()
    finally:
        memory.rm("/bulk", recursive=True)
    with pytest.raises(DataError, match="can't be written in one step"):
        Place("sftp://host/out")


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


def test_a_picture_without_colour_is_still_a_row(tmp_path: Path, predictor: Predictor) -> None:
    write_tar(tmp_path / "t" / "0.tar", [("grey", png(np.zeros((4, 4), np.uint8)))])
    assert run(tmp_path / "t", tmp_path / "out", predictor).rows == 1
