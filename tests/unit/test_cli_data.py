"""`coca data`: what it finds, what it writes, and how it says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support import drawing, png
from tests.unit.test_tars import member, tar

from opencoca.cli.main import main
from opencoca.data.shards import ShardReader
from opencoca.data.sources import open_source
from opencoca.jobs.data_check import _kind

COLOURS = ("red", "green", "blue", "yellow", "black", "pink")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 pictures in a table, of which 24 differ; six captions more, and three rows that can't be used."""
    rows = ["file_name,caption"]
    for i in range(30):
        shape = ("square", "circle", "bar", "triangle", "square")[i // 6]
        (tmp_path / f"{i}.png").write_bytes(png(drawing(COLOURS[i % 6], shape)))
        rows += [f"{i}.png,a {COLOURS[i % 6]} {shape}"] + [f"{i}.png,another one"] * (i % 5 == 0)
    rows += ["gone.png,lost", "../0.png,up", "0.png,\u732b\u304c\u3044\u308b", "0.png,"]
    (tmp_path / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_check(folder, capsys):
    assert main(["data", "check", str(folder / "captions.csv"), "--context-length", "6", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["columns"] == {"picture": "file_name", "caption": "caption"}
    facts = report["splits"]["all"]
    assert {name: facts[name] for name in list(facts)[:5]} == {
        "samples": 31, "looked_at": 31, "captions": 37, "samples_with_several_captions": 6, "skipped": 2
    }  # fmt: skip
    assert facts["skipped_by_reason"] == {"its path '...' leads out of the folder": 1, "its caption is empty": 1}
    assert facts["unreadable"] == 1 and facts["pictures_there_twice"] == 6 and facts["captions_there_twice"] == 6 + 5
    assert facts["twice_for_example"] == ["24.png", "25.png", "26.png"] and facts["formats"] == {"png": 30}
    assert facts["captions_longer_than_context"] == 1 and facts["scripts"]["Kana (Japanese)"] == 1
    skipped = [entry["key"].rpartition("/")[2] for entry in report["skipped_samples"]]
    assert skipped == ["captions.csv line 39", "captions.csv line 41", "gone.png"]


def test_check_finds_what_training_and_validation_share(folder, capsys):
    lines = (folder / "captions.csv").read_text().splitlines()[1:20]
    rows = [f"{line},{'val' if i > 11 else 'train'}" for i, line in enumerate([*lines, "24.png,a red square"])]
    (folder / "captions.csv").write_text("\n".join(["file_name,caption,split", *rows]))
    assert main(["data", "check", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "train+val.pictures\t1\ntrain+val.captions\t2\n" in out
    assert "coca: warning: 1 pictures and 2 captions of val are in train, too (such as 24.png)" in err


def test_decode_finds_what_a_first_look_does_not(folder, capsys):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    assert main(["data", "check", str(folder), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["splits"]["all"]["unreadable"] == 1
    assert main(["data", "check", str(folder), "--decode", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["splits"]["all"]["unreadable"] == 2
    assert main(["data", "check", str(folder), "--samples", "2"]) == 3
    assert "looked_at\t2\n" in capsys.readouterr().out


def test_import_splits_by_picture_and_is_the_same_each_time(folder, capsys):
    for out in ("one", "two"):
        words = ["data", "import", str(folder / "captions.csv"), "--out", str(folder / out), "--val-share", "0.3"]
        assert main([*words, "--samples-per-shard", "7"]) == 3
    assert "skipped gone.png: " in capsys.readouterr().err
    for path in (folder / "one").glob("*.tar"):
        assert path.read_bytes() == (folder / "two" / path.name).read_bytes()
    train, val = (ShardReader(folder / "one", split) for split in ("train", "val"))
    assert len(train) + len(val) == 30 and 3 < len(val) < 15
    sides = [{sample.picture for sample in source} for source in (train, val)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 24
    assert {s.attributes["key"]: s.captions for source in (train, val) for s in source} == {
        s.key: s.captions for s in (open_source(folder / "captions.csv")[i] for i in range(30))
    }
    assert [entry["reason"].split(" (")[0] for entry in train.manifest["skipped"]][1] == "its caption is empty"


def test_import_leaves_out_what_does_not_decode_where_asked(folder, capsys):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    for words, count in (([], 30), (["--decode"], 29)):
        out = folder / f"shards-{count}"
        assert main(["data", "import", str(folder / "captions.csv"), "--out", str(out), "--json", *words]) == 3
        printed, err = capsys.readouterr()
        assert sum(json.loads(printed)["samples"].values()) == count
        assert ("skipped 3.png: the picture of 3.png is" in err) == (count == 29)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("it has 1 cells, the header 2", "it has N cells, the header N"),
        ("as by img2dataset", "as by img2dataset"),
        (
            "it has 9 x 9 pixels, more than 64,000,000; make it smaller",
            "it has N x N pixels, more than N; make it smaller",
        ),
    ],
)
def test_kinds_of_reasons_leave_out_numbers_and_nothing_else(reason, kind):
    assert _kind(reason) == kind


def test_import_keeps_given_splits_and_formats(folder, capsys):
    from PIL import Image

    Image.open(folder / "0.png").save(folder / "0.jpg")
    jpeg = (folder / "0.jpg").read_bytes()
    tar(
        folder / "t/train-0.tar",
        member("a b.jpg", jpeg),
        member("a b.txt", b"one"),
        member("c.jpg", b"x"),
        member("c.txt", b"c"),
    )
    tar(folder / "t/validation-0.tar", member("a-b.jpg", jpeg), member("a-b.json", b'{"caption": "two", "w": 3}'))
    assert main(["data", "import", str(folder / "t"), "--out", str(folder / "out"), "--json"]) == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["samples"] == {"train": 1, "val": 1} and report["pictures_in_several_splits"] == 1
    assert "c is of no known format" in err and "1 pictures are in several splits" in err
    with ShardReader(folder / "out", "val") as reader:
        assert reader.keys == ["validation-0-a-b"] and reader[0].picture == jpeg and reader[0].attributes["w"] == 3
    assert b"train-0-a-b.jpg" in (folder / "out/train-000000.tar").read_bytes()[:512]


def test_index(folder, capsys):
    tar(folder / "t/0.tar", member("a.png", b"1"), member("a.txt", b"one"), member("b.png", b"2"))
    assert main(["data", "index", str(folder / "t")]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("0.tar\t1 samples\t10240 bytes\tsha256 ") and "samples\t1\n" in out
    assert "skipped 0/b: it has no caption" in err
    assert open_source(folder / "t").index.has_digests


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "{folder}", "--out", "x"], "--out is for index, import, get, not for check"),
        (["check", "{folder}", "y"], "check takes one path, and 2 were given"),
        (["check", "{folder}", "--samples", "-1"], "--samples -1 must be 0 or more"),
        (["check", "{folder}", "--tokenizer", "no"], "the tokenizer 'no' is no file"),
        (["check", "{folder}/nothing"], "does not exist; check the path"),
        (["index", "{folder}"], "holds no tars"),
        (["import", "{folder}"], "add --out FOLDER"),
        (["import", "{folder}", "--out", "{folder}"], "holds what is to be imported"),
        (["import", "{folder}/captions.csv", "--out", "{folder}/.."], "holds what is to be imported"),
        (["import", "{folder}", "--out", "{folder}/full"], "isn't empty; name another folder"),
        (["import", "{folder}", "--out", "{folder}/full", "--overwrite"], "holds other files than prepared shards"),
        (["import", "{folder}", "--out", "{folder}/o", "--val-share", "1"], "give one from 0 to below 1"),
    ],
)
def test_what_is_refused(folder, capsys, words, message):
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("mine")
    assert main(["data", *(word.replace("{folder}", str(folder)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert (folder / "full" / "thesis.txt").exists() and len(list(folder.glob("*.png"))) == 30
