"""Captioned pictures as COCO, Karpathy, folders, shards and Parquet have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.captioned import BLUE, GREEN, RED, WANTED, all_of, pictures
from tests.support import write_shards

from opencoca.data.sources import open_source
from opencoca.errors import DataError


def coco(folder: Path, **changes) -> Path:
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
    annotations = [{"image_id": 7, "caption": c} for c in ("a red circle", "red")]
    content = {"images": images, "annotations": [*annotations, {"image_id": 8, "caption": "blue, they say"}]}
    path = folder / "annotations" / "captions_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize("place", [".", "annotations", "train2017", "images", "annotations/images"])
def test_coco_finds_its_pictures_in_the_usual_places(tmp_path, place):
    path = coco(tmp_path)
    pictures(tmp_path / place)
    assert all_of(open_source(path, "train")) == WANTED == all_of(open_source(tmp_path, "train"))
    pictures(tmp_path / "elsewhere", a=GREEN)
    assert open_source(path, pictures=str(tmp_path / "elsewhere"))[0].picture == GREEN


def test_damaged_coco_is_skipped_by_number(tmp_path):
    images = [{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}, {"id": [], "file_name": "c.png"}, 5]
    images += [{"id": 9, "file_name": "../c.png"}, {"id": 10, "file_name": "c.png"}]
    annotations = [{"image_id": 7, "caption": "red"}, {"image_id": 99, "caption": "x"}, {"caption": "x"}, None]
    annotations += [{"image_id": 7, "caption": 3}, {"image_id": 9, "caption": "up"}]
    pictures(tmp_path)
    source = open_source(coco(tmp_path, images=images, annotations=annotations))
    assert all_of(source) == {"a.png": ("red",)}
    assert [name for name, _ in source.skipped] == [
        "image 1", "image 2", "image 3", "annotation 1", "annotation 2", "annotation 3", "image c.png",
        "annotation 4", "annotation 5",
    ]  # fmt: skip


def test_karpathy(tmp_path):
    def image(name, split, *raw):
        return {"filename": name, "filepath": "val2014", "split": split, "sentences": [{"raw": text} for text in raw]}

    listed = [image("a.png", "train", "a", "a2"), image("b.png", "restval", "b"), image("c.png", "val", "c")]
    (pictures(tmp_path / "val2014").parent / "dataset_coco.json").write_text(json.dumps({"images": [*listed, {}]}))
    train = {"val2014/a.png": ("a", "a2"), "val2014/b.png": ("b",)}
    assert all_of(open_source(tmp_path, "train")) == train  # as everyone trains on it
    assert list(all_of(open_source(tmp_path, "restval"))) == ["val2014/b.png"]
    assert all_of(open_source(tmp_path, "val")) == {"val2014/c.png": ("c",)}
    source = open_source(tmp_path)
    assert len(source) == 3 and source.splits == ("train", "restval", "val")
    assert source.skipped == [("image 3", "it has no filename")]
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(tmp_path, "test")


def test_sidecars(tmp_path):
    pictures(tmp_path, **{"sub/d": RED, "sub/e": BLUE, ".hidden": RED})
    (tmp_path / "a.txt").write_text("a red circle\n\nred\n")
    (tmp_path / "sub/d.txt").write_text("deep")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text(" \n")
    source = open_source(tmp_path, "train")
    assert all_of(source) == {"a.png": ("a red circle", "red"), "sub/d.png": ("deep",)}
    assert [name for name, _ in source.skipped] == ["b.png", "c.png", "sub/e.png"]


def test_class_folders_give_every_order_of_the_names(tmp_path):
    pictures(tmp_path, **{"animal/001.tabby_cat/x": RED, "animal/dog/y": BLUE})
    source = open_source(tmp_path, "train")
    assert all_of(source) == {
        "animal/001.tabby_cat/x.png": ("a photo of the animal, tabby cat", "a photo of the tabby cat, animal"),
        "animal/dog/y.png": ("a photo of the animal, dog", "a photo of the dog, animal"),
    }
    assert len(source.skipped) == 3  # those in no folder


def test_folders_that_are_splits(tmp_path):
    for split in ("train", "val2017"):
        pictures(tmp_path / split / "cat")
    assert all_of(open_source(tmp_path, "val")) == {f"cat/{x}.png": ("a photo of the cat",) for x in "abc"}
    assert len(open_source(tmp_path)) == 6
    pictures(tmp_path / "bus")  # now train is a vehicle
    assert open_source(tmp_path, "train").keys == [
        f"{c}{x}.png" for c in ("bus/", "train/cat/", "val2017/cat/") for x in "abc"
    ]


def test_prepared_shards(tmp_path):
    source = open_source(write_shards(tmp_path), "val")
    assert len(all_of(source)) == 12 and source.splits == ("train", "val") and source.shards == [range(12)]
    assert len(open_source(tmp_path, "train").shards) == 3
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".unfinished").touch()
    with pytest.raises(DataError, match="never finished"):
        open_source(tmp_path)


def test_parquet_with_bytes_and_with_paths(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {
        "image": [
            {"bytes": RED, "path": "x.png"},
            {"bytes": None, "path": "b.png"},
            {"bytes": GREEN, "path": None},
            None,
        ],
        "text": [["a", "a2"], ["b"], [" "], ["d"]],
        "split": ["train", "validation", "train", "validation"],
    }
    folder = pictures(tmp_path / "bytes")
    parquet.write_table(arrow.table(rows), folder / "t-00000-of-00001.parquet", row_group_size=2)
    source = open_source(folder)
    name = "t-00000-of-00001"
    assert source.keys == [f"{name}:0", f"{name}:1", f"{name}:3"] and source.shards == [range(2), range(2, 3)]
    assert (source[0].picture, source[0].captions, source[0].attributes["path"]) == (RED, ("a", "a2"), "x.png")
    assert source[1].picture == BLUE and source.splits == ("train", "val")
    assert source.skipped == [(f"{folder / name}.parquet row 2", "its caption is empty")]
    with pytest.raises(DataError, match=r"the picture of .*:3 is empty"):
        source[2]
    assert all_of(open_source(folder, "train")) == {f"{name}:0": ("a", "a2")}

    folder = pictures(tmp_path / "paths")
    parquet.write_table(
        arrow.table({"path": ["a.png", "b.png", "a.png"], "caption": ["a", "b", "a2"]}), folder / "t.parquet"
    )
    assert all_of(open_source(folder)) == {"a.png": ("a", "a2"), "b.png": ("b",)}
    (folder / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        open_source(folder)
