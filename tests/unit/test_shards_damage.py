"""Shards that are damaged, foreign or lie: refused, and no sample is lost without a word."""

import hashlib
import io
import json
import os
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shard_folders import picture, write

from opencoca.data import manifest, tar
from opencoca.data.shards import Sample, ShardReader
from opencoca.errors import DataError


def foreign(folder, members, samples, name="train-000000.tar"):
    """A shard that somebody else wrote, with a manifest that agrees. Members are (TarInfo or name, bytes)."""
    with tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    seal(folder, {name: samples})
    return folder


def seal(folder, samples):
    listed = []
    for name, count in samples.items():
        content = (folder / name).read_bytes()
        facts = {"file": name, "split": name[:-11], "samples": count, "bytes": len(content)}
        listed.append(facts | {"sha256": hashlib.sha256(content).hexdigest()})
    facts = {"format": manifest.FORMAT, "version": manifest.VERSION, "source": {}, "samples": {}, "skipped": []}
    (folder / "manifest.json").write_text(json.dumps(facts | {"shards": listed}))


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_folder_shard_or_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.manifest.json is missing, as is its folder"):
        ShardReader(tmp_path / "nowhere")
    write(tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar is missing, its manifest lists it; prepare or copy"):
        ShardReader(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ("[]", "not a manifest of opencoca-shards"),
        ('{"format": "opencoca-shards", "version": 9}', "has version 9, this opencoca reads 1"),
        ('{"format": "opencoca-shards", "version": 1}', "damaged list"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        ShardReader(tmp_path)


@pytest.mark.parametrize(
    "change", [{"file": "../train-000000.tar"}, {"file": "/etc/passwd"}, {"samples": -1}, {"bytes": "9"}, {"split": 3}]
)
def test_a_manifest_cannot_point_outside_or_lie_about_types(tmp_path, change):
    write(tmp_path)
    listed = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    listed[0] |= change
    change_manifest(tmp_path, shards=listed)
    with pytest.raises(DataError, match="damaged list of shards"):
        ShardReader(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path):
    write(tmp_path, 2)
    shard = tmp_path / "train-000000.tar"
    content = shard.read_bytes()
    for at in range(0, len(content), 61):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        shard.write_bytes(flipped)
        with pytest.raises(DataError, match=r"train-000000.tar is damaged \(its sha256"):
            ShardReader(tmp_path)


def test_a_flip_in_a_header_never_loses_a_sample_silently(tmp_path):
    write(tmp_path, 3)
    shard = tmp_path / "train-000000.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar.getmembers()]
    chance, refused = random.Random(0), 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[chance.choice(headers) + chance.randrange(512)] ^= 1 << chance.randrange(8)
        shard.write_bytes(flipped)
        try:
            reader = ShardReader(tmp_path, verify=False)
        except DataError as error:
            assert "train-000000.tar" in str(error)
            refused += 1
        else:
            assert [reader[i].picture for i in range(len(reader))] == [picture(i) for i in range(3)]
            reader.close()
    assert refused > 280


def test_truncation_is_noticed(tmp_path):
    write(tmp_path, 3)
    shard = tmp_path / "train-000000.tar"
    content = shard.read_bytes()
    for size in range(0, len(content), 512):
        shard.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"has {size} bytes, its manifest says {len(content)}"):
            ShardReader(tmp_path)


def test_truncation_is_noticed_even_if_the_manifest_agrees(tmp_path):
    content = (write(tmp_path / "good", 3) / "train-000000.tar").read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # what follows are the zero blocks that close a tar
    for size in range(0, end + 1, 512):
        (tmp_path / "train-000000.tar").write_bytes(content[:size])
        seal(tmp_path, {"train-000000.tar": 3})
        with pytest.raises(DataError, match=r"ends inside|ends without|can't be read"):
            ShardReader(tmp_path)


def test_missing_samples_are_counted(tmp_path):
    members = [("a.png", b"1"), ("a.txt", b"one"), ("b.png", b"2"), ("b.txt", b"two")]
    foreign(tmp_path, members, samples=5)
    with pytest.raises(DataError, match=r"train-000000.tar: 3 of 5 samples are missing"):
        ShardReader(tmp_path)
    foreign(tmp_path, members, samples=1)
    with pytest.raises(DataError, match=r"train-000000.tar: 1 samples too many"):
        ShardReader(tmp_path)


def test_unfit_samples_are_listed_never_dropped(tmp_path):
    members = [
        ("a.png", b"1"),
        ("a.txt", b"one"),
        ("b.png", b"2"),
        ("c.txt", b"three"),
        ("d.jpg", b"4"),
        ("d.txt", b" "),
    ]
    members += [("e.png", b"5"), ("e.txt", b"\xff"), ("f.png", b""), ("f.txt", b"six")]
    with ShardReader(foreign(tmp_path, members, samples=6)) as reader:
        assert reader.keys == ["a"] and reader[0] == Sample("a", b"1", "one", {})
        assert reader.skipped == [
            ("b", "its caption is empty"),
            ("c", "it has no picture"),
            ("d", "its caption is empty"),
            ("e", "its caption isn't UTF-8"),
            ("f", "it has no picture"),
        ]


def test_links_folders_and_odd_names_are_ignored_and_counted(tmp_path):
    link, hard, folder, device = (tarfile.TarInfo(name) for name in ("l.png", "h.png", "d.png", "n.png"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "a.png"
    folder.type, device.type = tarfile.DIRTYPE, tarfile.CHRTYPE
    odd = ["../up.png", "/root.png", "x/y.png", ".hidden.png", "noending", "a.exe", "b.tar.png", "a b.png", "-r.png"]
    odd += ["z" * 150 + ".png"]  # in GNU format with a member of its own for the name
    members = [(link, b""), (hard, b""), (folder, b""), (device, b""), *((name, b"1") for name in odd)]
    foreign(tmp_path, [("a.png", b"1"), ("a.txt", b"one"), *members], samples=1)
    with ShardReader(tmp_path) as reader:
        assert reader.keys == ["a"] and reader.ignored == 4 + len(odd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train-000000.tar"]


def test_a_member_that_comes_twice_is_refused(tmp_path):
    foreign(tmp_path, [("a.png", b"1"), ("a.txt", b"one"), ("a.png", b"2")], samples=1)
    with pytest.raises(DataError, match=r"has a.png twice"):
        ShardReader(tmp_path)


def test_damaged_attributes_are_named(tmp_path):
    foreign(tmp_path, [("a.png", b"1"), ("a.txt", b"one"), ("a.json", b"{")], samples=1)
    with (
        ShardReader(tmp_path) as reader,
        pytest.raises(DataError, match=r"a.json in .*train-000000.tar isn't a JSON object"),
    ):
        reader[0]


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    with ShardReader(write(tmp_path, 3)) as reader:
        os.truncate(tmp_path / "train-000000.tar", 600)
        with pytest.raises(DataError, match="became shorter"):
            reader[2]


@given(st.binary(min_size=512, max_size=2048))
def test_any_bytes_are_an_error_or_an_end(content):
    try:
        for _, start, size in tar.members(lambda at, n: content[at : at + n], len(content), "any.tar"):
            assert 512 <= start <= start + size <= len(content)
    except DataError as error:
        assert "any.tar" in str(error)
