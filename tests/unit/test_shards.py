"""Shards: written whole or not at all, deterministic, read at random."""

import os
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.shard_folders import picture, write

from opencoca.data import shard_writer
from opencoca.data.shards import Sample, ShardReader, ShardWriter
from opencoca.errors import DataError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path):
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json", "train-000000.tar", "train-000001.tar", "train-000002.tar"
    ]  # fmt: skip
    with ShardReader(tmp_path) as reader:
        assert len(reader) == 10 and reader.keys == [f"{i:04d}" for i in range(10)]
        assert reader.captions[3] == "caption 3 \u00e9"
        for i in (7, 0, 9, -1):
            assert reader[i] == Sample(f"{i % 10:04d}", picture(i % 10), f"caption {i % 10} \u00e9", {"i": i % 10})
        with pytest.raises(IndexError):
            reader[10]
        assert reader.skipped == [] and reader.ignored == 0
    assert [shard["samples"] for shard in reader.manifest["shards"]] == [4, 4, 2]
    assert reader.manifest["samples"] == {"train": 10} and reader.manifest["source"] == {"name": "test"}
    with tarfile.open(tmp_path / "train-000000.tar") as tar:  # a plain tar, for anyone's tools
        assert tar.getnames()[:3] == ["0000.png", "0000.txt", "0000.json"]


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_splits_are_read_apart(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("train", "a", b"1", "one")
        writer.add("val", "b", b"2", "two")
        writer.add("train", "c", b"3", "three")
    assert ShardReader(tmp_path, "val").keys == ["b"] and ShardReader(tmp_path, "train").keys == ["a", "c"]
    assert len(ShardReader(tmp_path)) == 3
    with pytest.raises(DataError, match="no split 'test'; its splits are: train, val"):
        ShardReader(tmp_path, "test")


def test_threads_and_processes_may_share_a_reader(tmp_path):
    reader = ShardReader(write(tmp_path, 60, 7))
    order = random.Random(0).choices(range(60), k=600)
    with ThreadPoolExecutor(8) as pool:
        assert [sample.picture for sample in pool.map(reader.__getitem__, order)] == [picture(i) for i in order]
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy[5] == reader[5] == Sample("0005", picture(5), "caption 5 \u00e9", {"i": 5})
    copy.close()
    reader.close()


def test_reading_without_pread(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pread", raising=False)  # as on Windows
    with ShardReader(write(tmp_path, 20, 7)) as reader, ThreadPoolExecutor(8) as pool:
        assert [s.picture for s in pool.map(reader.__getitem__, range(20))] == [picture(i) for i in range(20)]


def test_an_exception_leaves_no_manifest_and_no_leftovers(tmp_path):
    write(tmp_path)
    with pytest.raises(KeyError), ShardWriter(tmp_path, 4) as writer:
        for i in range(6):
            writer.add("train", f"{i}", picture(i), "caption")
        raise KeyError
    assert names(tmp_path) == [".unfinished", "train-000000.tar"]  # the old set went with its manifest
    with pytest.raises(DataError, match=r"manifest.json is missing: the shards were never finished; prepare"):
        ShardReader(tmp_path)


def test_a_kill_leaves_nothing_that_looks_good(tmp_path):
    writer = ShardWriter(tmp_path, 4).__enter__()
    for i in range(6):
        writer.add("train", f"{i}", picture(i), "caption")
    with pytest.raises(DataError, match="never finished"):  # as if killed here
        ShardReader(tmp_path)
    assert len(list(tmp_path.glob(".*.part"))) == 1
    write(tmp_path)
    assert not list(tmp_path.glob(".*.part")) and len(ShardReader(tmp_path)) == 10
    writer.__exit__(KeyError, None, None)


@pytest.mark.parametrize(
    ("split", "key", "content", "caption", "reason"),
    [
        ("train", "a.b", b"1", "x", "its key isn't"),
        ("train", "../a", b"1", "x", "its key isn't"),
        ("train", "", b"1", "x", "its key isn't"),
        ("train", "\u00e9" * 60, b"1", "x", "its key isn't"),
        ("train", "there", b"1", "x", "in train already"),
        ("train", "a", b"", "x", "no picture"),
        ("train", "a", b"1", " \n", "caption is empty"),
        ("../up", "a", b"1", "x", "split '../up'"),
    ],
)
def test_an_unfit_sample_is_refused_and_the_rest_goes_on(tmp_path, split, key, content, caption, reason):
    with ShardWriter(tmp_path) as writer:
        writer.add("train", "there", b"0", "caption")
        with pytest.raises(DataError, match=reason):
            writer.add(split, key, content, caption)
        writer.skip("train", key, reason)
    with ShardReader(tmp_path) as reader:
        assert reader.keys == ["there"] and reader.manifest["skipped"] == [{"key": f"train/{key}", "reason": reason}]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(self, name, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer._Shard, "add", full)
    with pytest.raises(DataError, match=r"No space left on device.*free some space"):
        write(tmp_path)
    assert names(tmp_path) == [".unfinished"]
