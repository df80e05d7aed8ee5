"""What bulk runs read: tars, folders, tables and URLs, and what of them is damaged."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests import bulk_runs
from tests.bulk_runs import prepared, run, task_of, write_tar
from tests.support import png, samples

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk
from opencoca.jobs.bulk_input import open_input
from opencoca.jobs.bulk_output import Place, file_of

predictor = bulk_runs.predictor
tars = bulk_runs.tars
parquet = pytest.importorskip("pyarrow.parquet")


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


def test_a_picture_without_colour_is_still_a_row(tmp_path: Path, predictor: Predictor) -> None:
    write_tar(tmp_path / "t" / "0.tar", [("grey", png(np.zeros((4, 4), np.uint8)))])
    assert run(tmp_path / "t", tmp_path / "out", predictor).rows == 1
