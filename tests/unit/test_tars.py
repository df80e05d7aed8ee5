"""Tars of other makers: webdataset's and img2dataset's layout, with and without an index, whole and damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from opencoca.data.sources import open_source, tar_index
from opencoca.data.sources.tar_index import INDEX
from opencoca.errors import DataError


def member(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def picture(key: str) -> bytes:
    return f"picture of {key} ".encode() * 50


def sample(key: str, said: str | None = None, **facts) -> list:
    found = [member(f"{key}.jpg", picture(key)), member(f"{key}.txt", (said or f"caption of {key}").encode())]
    return found + ([member(f"{key}.json", json.dumps(facts).encode())] if facts else [])


def tar(path: Path, *members, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


def three(folder: Path) -> Path:
    """Two tars, of two samples and of one."""
    tar(folder / "train-0.tar", *sample("a"), *sample("b", url="http://b", sha256="f" * 64))
    tar(folder / "train-1.tar", *sample("a", "another a"))
    return folder


def index(folder: Path) -> Path:
    names = sorted(path.name for path in folder.glob("*.tar"))
    return tar_index.save(tar_index.build(str(folder), names, digests=True), folder / INDEX)


def all_of(source) -> dict[str, tuple[str, ...]]:
    copy = pickle.loads(pickle.dumps(source))
    found = [source[i] for i in range(len(source))]
    assert [copy[i] for i in range(len(copy))] == found and copy.fingerprint == source.fingerprint
    assert [one.key for one in found] == list(source.keys) and source.captions == [one.caption for one in found]
    assert all(one.picture == picture(one.key.partition("/")[2]) for one in found)
    return {one.key: one.captions for one in found}


WANTED = {
    "train-0/a": ("caption of a",),
    "train-0/b": ("caption of b",),
    "train-1/a": ("another a",),
}


@pytest.mark.parametrize("indexed", [False, True])
def test_tars_are_read_by_index(tmp_path, indexed):
    three(tmp_path)
    if indexed:
        index(tmp_path)
    source = open_source(tmp_path, "train")
    assert all_of(source) == WANTED and source.shards == [range(2), range(2, 3)] and source.skipped == []
    assert source.index.has_digests == indexed
    assert source[1].attributes == {"url": "http://b", "sha256": "f" * 64, "picture": "f" * 16}
    assert source[0].attributes == {"picture": hashlib.sha256(picture("a")).hexdigest()[:16]}
    assert all_of(open_source(f"{tmp_path}/train-{{0..1}}.tar")) == WANTED == all_of(open_source(f"{tmp_path}/*.tar"))
    one = open_source(tmp_path / "train-1.tar")
    assert all_of(one) == {"train-1/a": ("another a",)} and one.shards == [range(1)]
    with pytest.raises(DataError, match="no split 'val'; its splits are: train"):
        open_source(tmp_path, "val")
    source.close()
    assert all_of(source) == WANTED


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tools_write(tmp_path, form):
    """Folders before the key, endings in capitals, long and odd names, times that are fractions (as webdataset's)."""
    long = "x" * 140 if form == tarfile.PAX_FORMAT else "y/" * 40 + "x" * 90
    members = [
        member("./dir/k.JPG", picture("dir/k")),
        member("./dir/k.txt", b"k"),
        *sample(long),
        *sample("\u00e9t\u00e9"),
    ]
    for info, _ in members if form == tarfile.PAX_FORMAT else []:
        info.mtime = 1700000000.25
    tar(tmp_path / "00.tar", *members, form=form)
    assert list(all_of(open_source(tmp_path))) == ["00/dir/k", f"00/{long}", "00/\u00e9t\u00e9"]


def test_captions_of_a_json(tmp_path):
    members = [
        member("a.jpg", picture("a")),
        member("a.json", b'{"captions": ["one", "two", " "], "caption": "three"}'),
    ]
    members += [*sample("b", "text", caption="text", captions=["more"]), *sample("c", caption=None)]
    tar(tmp_path / "t.tar", *members)
    assert all_of(open_source(tmp_path)) == {
        "t/a": ("three", "one", "two"),
        "t/b": ("text", "more"),
        "t/c": ("caption of c",),
    }


def test_interleaved_keys_find_each_other_and_doubled_ones_are_counted(tmp_path):
    a, b, c, d = sample("a"), sample("b"), sample("c"), sample("d")
    again = [member("a.jpg", b"other"), member("a.txt", b"other")]
    tar(tmp_path / "t.tar", *a, b[0], d[0], b[1], d[1], *again, c[0], member("c.png", b"other"), c[1])
    source = open_source(tmp_path)
    assert list(all_of(source)) == ["t/a", "t/b", "t/d"]
    twice = "its picture or caption comes twice"
    assert source.skipped == [
        ("t/a", f"{twice}; the first that lie together are taken"),
        ("t/c", f"{twice}; no pair is certain"),
    ]


def test_what_leads_elsewhere_is_counted_and_nothing_is_run(tmp_path):
    marker = tmp_path / "ran"
    link, hard, device = (tarfile.TarInfo(name) for name in ("l.jpg", "h.jpg", "n.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname, device.type = tarfile.LNKTYPE, "a.jpg", tarfile.CHRTYPE
    odd = ["../up.jpg", "/root.jpg", "x/../../up.jpg", "a\\b.jpg", "c:d.jpg", "pipe:id.jpg", "e\nf.jpg"]
    code = f"open({str(marker)!r}, 'w')".encode()
    members = [(link, b""), (hard, b""), (device, b""), *(member(name, b"1") for name in odd)]
    members += [
        member("a.pyd", code),
        member("a.pickle", code),
        member("a.__url__", b"pipe:touch ran"),
        member(".jpg", b"1"),
    ]
    tar(tmp_path / "in" / "t.tar", *sample("a", "pipe:touch ran"), *members)
    source = open_source(tmp_path / "in")
    assert all_of(source) == {"t/a": ("pipe:touch ran",)}
    assert dict(source.ignored) == {
        "link, folder or other kind": 3,
        "name that leads elsewhere": len(odd),
        "name that isn't FOLDER/KEY.ENDING": 1,
        ".pyd": 1,
        ".pickle": 1,
        ".__url__": 1,
    }
    assert not marker.exists() and [path.name for path in tmp_path.rglob("*")] == ["in", "t.tar"]


def test_unfit_samples_are_named(tmp_path):
    members = [*sample("a"), sample("b")[0], sample("c")[1], member("d.jpg"), member("d.txt", b"d")]
    members += [member("e.jpg", b"e"), member("e.txt", b""), member("f.jpg", b"f"), member("f.txt", b"x" * 99999)]
    bad = {"g": b"\xff", "h": b" \n"}
    members += [m for key, text in bad.items() for m in (member(f"{key}.jpg", b"1"), member(f"{key}.txt", text))]
    members += [member("i.jpg", b"1"), member("i.json", b"{"), member("j.jpg", b"1"), member("j.json", b"[]")]
    tar(tmp_path / "t.tar", *members, member("k.jpg", b"1"), member("k.json", b'{"caption": "\\ud800"}'))
    source = open_source(tmp_path)
    assert dict(source.skipped) == {
        "t/b": "it has no caption", "t/c": "it has no picture", "t/d": "its picture is empty",
        "t/e": "its caption is empty", "t/f": "its caption has 99999 bytes, more than 80000",
    }  # fmt: skip
    reasons = {}
    for i in range(1, len(source)):  # what only the content tells is an error of this one sample
        with pytest.raises(DataError, match="can't be used") as error:
            source[i]
        reasons[source.keys[i]] = str(error.value)
    assert list(reasons) == ["t/g", "t/h", "t/i", "t/j", "t/k"]
    said = ["isn't UTF-8 (byte 0)", "its caption is empty", "isn't JSON (line 1", "is a list", "isn't UTF-8"]
    assert all(part in reason for part, reason in zip(said, reasons.values(), strict=True))


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_header_stops_or_is_counted_and_the_rest_is_read(tmp_path):
    path = tar(tmp_path / "t.tar", *sample("a"), *sample("b"), *sample("c"), form=tarfile.USTAR_FORMAT)
    with tarfile.open(path) as file:
        at = file.getmember("b.jpg").offset
    flip(path, at + 3)
    with pytest.raises(DataError, match=rf"t.tar has a damaged tar header at byte {at}; copy it again, or count"):
        open_source(tmp_path)
    source = open_source(tmp_path, on_damage="count")
    assert list(all_of(source)) == ["t/a", "t/c"]
    assert source.skipped == [
        (str(path), f"{path} has a damaged tar header at byte {at}"),
        ("t/b", "it has no picture"),
    ]


def test_zeros_over_a_header_do_not_hide_what_follows(tmp_path):
    path = tar(tmp_path / "t.tar", *sample("a"), *sample("b"), form=tarfile.USTAR_FORMAT)
    with tarfile.open(path) as file:
        at = file.getmember("b.jpg").offset
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes(512) + content[at + 512 :])
    with pytest.raises(DataError, match=rf"block of zeros at byte {at} with data behind it"):
        open_source(tmp_path)


def test_an_index_names_what_a_short_tar_lost(tmp_path):
    three(tmp_path)
    index(tmp_path)
    with tarfile.open(tmp_path / "train-0.tar") as file:
        os.truncate(tmp_path / "train-0.tar", file.getmember("b.txt").offset)
    with pytest.raises(DataError, match=r"its index says 10240: 1 samples are lost \(train-0/b\)"):
        open_source(tmp_path)
    source = open_source(tmp_path, on_damage="count")
    assert list(all_of(source)) == ["train-0/a", "train-1/a"] and source.shards == [range(1), range(1, 2)]
    assert [key for key, _ in source.skipped] == ["train-0/b"]
    (tmp_path / "train-0.tar").unlink()
    with pytest.raises(DataError, match=r"does not exist.*: 2 samples are lost \(train-0/a, train-0/b\)"):
        open_source(tmp_path / INDEX)


def test_an_index_shows_every_flip_in_what_is_read(tmp_path):
    index(three(tmp_path))
    path, source = tmp_path / "train-1.tar", open_source(tmp_path)
    for at in range(0, path.stat().st_size, 97):
        flip(path, at, at % 8)
        try:
            assert source[2] == open_source(tmp_path)[2] and source[2].picture == picture("a")
        except DataError as error:
            assert "train-1/a" in str(error)
        flip(path, at, at % 8)
    assert all_of(source) == WANTED


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    index(three(tmp_path))
    content = (tmp_path / INDEX).read_bytes()
    for at in range(0, len(content), 31):
        flip(tmp_path / INDEX, at)
        with pytest.raises(DataError, match="run `coca data index` again"):
            open_source(tmp_path)
        flip(tmp_path / INDEX, at)
    tar(tmp_path / "train-2.tar", *sample("new"))
    with pytest.raises(DataError, match=r"doesn't know train-2.tar; run `coca data index` again"):
        open_source(tmp_path)
    tar(tmp_path / "train-1.tar", *[m for i in range(20) for m in sample(f"{i}")])
    with pytest.raises(DataError, match=r"bytes, its index says .*run `coca data index` again"):
        open_source(f"{tmp_path}/train-{{0,1}}.tar")


@pytest.mark.parametrize("name", ["../train-0.tar", "/etc/passwd", "c:x.tar"])
def test_an_index_cannot_point_outside(tmp_path, name):
    built = tar_index.build(str(three(tmp_path)), ["train-0.tar"], digests=True)
    built.tars[0]["file"] = name
    tar_index.save(built, tmp_path / INDEX)
    with pytest.raises(DataError, match="header that doesn't fit"):
        open_source(tmp_path / INDEX)


def test_an_index_is_the_same_each_time_and_small(tmp_path):
    tar(tmp_path / "t.tar", *[m for i in range(300) for m in sample(f"{i:09d}")])
    first = index(tmp_path).read_bytes()
    assert index(tmp_path).read_bytes() == first and len(first) / 300 < 48 + 9 + 8 + 3
    loaded = tar_index.load(str(tmp_path / INDEX))
    assert loaded.tars[0]["sha256"] == hashlib.sha256((tmp_path / "t.tar").read_bytes()).hexdigest()
    assert len(pickle.dumps(open_source(tmp_path))) < 1000  # workers map the file, they aren't sent it


def test_tars_behind_a_url(tmp_path):
    fs = pytest.importorskip("fsspec").filesystem("memory")
    three(tmp_path)
    for path in tmp_path.glob("*.tar"):
        fs.pipe(f"/tars/{path.name}", path.read_bytes())
    for location in ("memory://tars", "memory://tars/train-{0..1}.tar", "memory://tars/*.tar"):
        assert all_of(open_source(location)) == WANTED
    built = tar_index.build("memory://tars", ["train-0.tar", "train-1.tar"], digests=True)
    here = tar_index.save(built, tmp_path / "here.index", base="memory://tars")
    assert all_of(open_source(here)) == WANTED  # an index on this machine of tars elsewhere
