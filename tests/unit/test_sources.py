"""Tables of captioned pictures: the right samples, nothing lost unsaid, nothing read that shouldn't be."""

from __future__ import annotations

import os

import pytest
from tests.captioned import BLUE, CSV, RED, WANTED, all_of, pictures

from opencoca.data.sources import open_source
from opencoca.errors import DataError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV),
        ("t.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("t.csv", CSV.replace("path,caption", "IMAGE , Alt-Text")),
        ("t.csv", "image_name| nr| comment\na.png| 0| a red circle\na.png| 1| red\nb.png| 0| blue, they say\n"),
        ("t.csv", "id;file_name;title;title_2\n1;a.png;a red circle;red\n2;b.png;blue, they say;\n"),
        ("t.tsv", 'text\tfilename\na red circle\ta.png\nred\ta.png\n"blue, they say"\tb.png\n'),
        ("t.jsonl", '{"img": "a.png", "text": ["a red circle", "red"]}\n\n{"img": "b.png", "text": "blue, they say"}'),
        ("t.json", '[{"img": "a.png", "text": ["a red circle", "red"]}, {"img": "b.png", "text": "blue, they say"}]'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a red circle"}\n{"file_name": "a.png", "text": "red"}\n'
         '{"file_name": "b.png", "text": "blue, they say"}'),
        ("t.csv", 'path,raw\na.png,"[""a red circle"", ""red""]"\nb.png,"blue, they say"\n'),
    ],
)  # fmt: skip
def test_tables(tmp_path, name, content):
    (pictures(tmp_path) / name).write_text(content, newline="")
    source = open_source(tmp_path / name, "train")
    assert all_of(source) == WANTED and source.skipped == []
    assert source[0].picture == RED and source[0].attributes["picture"] != source[1].attributes["picture"]
    assert set(source.columns) == {"picture", "caption"}
    if name.startswith("metadata"):  # a folder that holds one table is that table
        assert all_of(open_source(tmp_path)) == WANTED


def test_splits_of_a_column(tmp_path):
    content = "path,caption,split\na.png,a,train\nb.png,b,validation\nc.png,c,dev\na.png,a2,train\n"
    (pictures(tmp_path) / "t.csv").write_text(content)
    assert all_of(open_source(tmp_path / "t.csv", "train")) == {"a.png": ("a", "a2")}
    assert all_of(open_source(tmp_path / "t.csv", "val")) == {"b.png": ("b",), "c.png": ("c",)}
    assert open_source(tmp_path, "valid").splits == ("train", "val") and len(open_source(tmp_path)) == 3
    with pytest.raises(DataError, match="has no split 'test'; its splits are: train, val"):
        open_source(tmp_path, "test")


def test_splits_of_names(tmp_path):
    for split in ("train", "validation"):
        (pictures(tmp_path) / f"{split}.csv").write_text(f"path,caption\na.png,in {split}\n")
    assert all_of(open_source(tmp_path, "val")) == {"a.png": ("in validation",)}
    both = open_source(tmp_path)
    assert all_of(both) == {"train/a.png": ("in train",), "val/a.png": ("in validation",)}
    assert both.splits == ("train", "val") and both.shards == [range(1), range(1, 2)]
    with pytest.raises(DataError, match="no split 'test'; its splits are: train, val"):
        open_source(tmp_path, "test")
    with pytest.raises(DataError, match="no split 'train'; its splits are: val"):  # or training would see it twice
        open_source(tmp_path / "validation.csv", "train")


def test_data_without_splits_are_all_for_training(tmp_path):
    (pictures(tmp_path) / "t.csv").write_text("path,caption\na.png,a\n")
    assert len(open_source(tmp_path, "train")) == 1
    with pytest.raises(DataError, match=r"tells no splits.*make 'val' by `coca data import`"):
        open_source(tmp_path, "val")


def test_unfit_rows_are_skipped_by_their_line(tmp_path):
    rows = ["a.png,good", "b.png", "b.png,x,y", "c.png,  ", "../a.png,up", "https://x.org/a.png,web", "pipe:id,run"]
    rows += [f"{tmp_path / 'c.png'},absolute", "x\\..\\a.png,up", ",none", "c.png,\u200b", f"c.png,{'long' * 9999}"]
    (pictures(tmp_path) / "t.csv").write_bytes(("path,caption\n" + "\n".join(rows)).encode() + b"\nb.png,\xff\n")
    source = open_source(tmp_path)
    assert all_of(source) == {"a.png": ("good",), str(tmp_path / "c.png"): ("absolute",)}
    reasons = {name.rpartition(" ")[2]: reason for name, reason in source.skipped}
    assert list(reasons) == ["3", "4", "5", "6", "7", "8", "10", "11", "12", "13", "14"]
    for line, part in {
        "3": "1 cells, the header 2", "4": "3 cells, the header 2", "5": "caption is empty", "6": "leads out",
        "7": "URL or a command", "8": "URL or a command", "10": "leads out", "11": "names no picture",
        "12": "caption is empty", "13": "39996 characters", "14": "isn't UTF-8",
    }.items():  # fmt: skip
        assert part in reasons[line]


def test_a_table_that_breaks_off_names_the_line(tmp_path):
    (pictures(tmp_path) / "t.csv").write_text('path,caption\na.png,good\nb.png,"never closed\nc.png,lost\n')
    with pytest.raises(DataError, match=r"t.csv line 3 isn't CSV"):
        open_source(tmp_path)
    source = open_source(tmp_path, on_damage="count")
    assert all_of(source) == {"a.png": ("good",)} and "line 3" in source.skipped[0][1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "x,y\n1,2\n", r"no column of pictures \(its columns: x, y\); call it path"),
        ("t.csv", "path,y\n1,2\n", "no column of captions"),
        ("t.csv", "", "no pictures with captions"),
        ("t.csv", "path,caption\na.png,\n", "none of 1 could be used; the first: .*t.csv line 2: its caption is empty"),
        ("t.jsonl", "{\n[]\n", r"none of 2 could be used; the first: .*line 1: it isn't JSON \(line 1"),
        ("t.jsonl", "[" * 99999, "isn't JSON that can be read"),
        ("t.json", '{"a": 1}', "isn't COCO's or Karpathy's json"),
        ("t.json", '{"images": [', "can't be used: it isn't JSON"),
        ("t.json", '{"images": []}', "there is no list of them"),
        ("t.xml", "<a/>", "is none of what is known"),
        ("t.tar.gz", "x", "is a compressed tar"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_repair(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        open_source(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("pipe:echo hi", "not a place that data is read from"),
        ("simplecache::s3://a/b.csv", "not a place"),
        ("memory://t.csv::memory://u.csv", "not a place"),
        ("reference://x", "not a place"),
        ("https://example.org/t.csv", "download it first, or allow it"),
        ("nothing/here.csv", "does not exist"),
        ("nothing/*.tar", "matches no file"),
        ("x{5..1}.tar", "give a rising range"),
        ("", "no place for data"),
    ],
)
def test_places_that_are_not_read(location, message):
    with pytest.raises(DataError, match=message):
        open_source(location)


def test_a_missing_picture_is_an_error_when_it_is_read(tmp_path):
    (pictures(tmp_path) / "t.csv").write_text("path,caption\ngone.png,gone\na.png,a\npipe.png,p\n")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    assert source[1].caption == "a"
    with pytest.raises(DataError, match=r"gone.png does not exist"):
        source[0]
    with pytest.raises(DataError, match="not a plain file"):  # opening it must not wait for a writer
        source[2]


def test_labels_in_a_table(tmp_path):
    (pictures(tmp_path) / "t.csv").write_text("path,labels\na.png,cat;animal\nb.png,dog\nc.png,\n")
    source = open_source(tmp_path)
    assert all_of(source) == {
        "a.png": ("a photo of the cat, animal", "a photo of the animal, cat"),
        "b.png": ("a photo of the dog",),
    }
    assert source.skipped == [(f"{tmp_path / 't.csv'} line 4", "it has no caption")]


def test_fsspec_urls(tmp_path):
    fs = pytest.importorskip("fsspec").filesystem("memory")
    fs.pipe({"/set/a.png": RED, "/set/b.png": BLUE, "/set/t.csv": f"{CSV}/etc/passwd,out\n".encode()})
    source = open_source("memory://set", "train")
    assert all_of(source) == WANTED and source[0].picture == RED
    assert "is absolute" in source.skipped[0][1]
    fs.pipe({"/classes/cat/a.png": RED, "/classes/dog/b.png": BLUE})
    assert all_of(open_source("memory://classes")) == {
        "cat/a.png": ("a photo of the cat",), "dog/b.png": ("a photo of the dog",)
    }  # fmt: skip
    fs.rm("/set/a.png")
    with pytest.raises(DataError, match=r"a.png does not exist"):
        source[0]
