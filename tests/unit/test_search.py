"""The index of a folder: its ranking, and a cache that saves work and never changes a result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.search import index


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=2)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tiny.save_picture(tmp_path / f"{seed}.png", seed) for seed in range(5)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "pictures.safetensors"


class Counting:
    """Stands in for `encoded` and remembers which pictures it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        real = index.encoded

        def counting(predictor, paths, on_bad):
            self.read += [path.name for path in paths]
            return real(predictor, paths, on_bad)

        monkeypatch.setattr(index, "encoded", counting)

    def since(self) -> list[str]:
        read, self.read = self.read, []
        return read


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def none_is_bad(path: Path, error: DataError) -> None:
    raise error


def test_hits_are_ordered_by_cosine_similarity(predictor, paths):
    query = predictor.embed_texts("red circle")[0]
    hits = index.build(predictor, paths, none_is_bad).search(query, 3)
    scores = predictor.embed_images(paths) @ query
    best = scores.argsort(descending=True)[:3].tolist()
    assert [hit.path for hit in hits] == [paths[row] for row in best]
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-6)


def test_asking_for_more_than_there_are_gives_all(predictor, paths):
    hits = index.build(predictor, paths, none_is_bad).search(predictor.embed_texts("red")[0], 100)
    assert {hit.path for hit in hits} == set(paths)


def test_bad_pictures_are_reported_and_left_out(predictor, paths):
    paths[1].write_bytes(b"")
    bad: list[Path] = []
    done: list[int] = []
    found = index.build(predictor, paths, lambda path, error: bad.append(path), done.append)
    assert bad == [paths[1]]
    assert found.paths == [paths[0], *paths[2:]]
    assert sum(done) == 4
    torch.testing.assert_close(found.embeds, predictor.embed_images(found.paths))


def test_an_index_without_pictures_finds_nothing(predictor):
    assert index.build(predictor, [], none_is_bad).search(predictor.embed_texts("red")[0], 3) == []


def test_the_second_search_reads_no_picture_and_finds_the_same(predictor, paths, cache, counting):
    first = index.build(predictor, paths, none_is_bad, cache=cache)
    assert counting.since() == [path.name for path in paths]
    done: list[int] = []
    second = index.build(predictor, paths, none_is_bad, done.append, cache)
    assert counting.since() == []
    assert done == [5]
    assert second.paths == first.paths
    assert torch.equal(second.embeds, first.embeds)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # no half-written file is left


def test_changed_new_and_deleted_pictures_are_noticed(predictor, paths, cache, counting):
    index.build(predictor, paths, none_is_bad, cache=cache)
    counting.since()
    tiny.save_picture(paths[0], seed=50)
    status = paths[1].stat()
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    new = tiny.save_picture(paths[0].with_name("new.png"), 60)
    now = [new, *paths[:4]]
    found = index.build(predictor, now, none_is_bad, cache=cache)
    assert counting.since() == ["new.png", "0.png", "1.png"]
    assert found.paths == now
    torch.testing.assert_close(found.embeds, predictor.embed_images(now))
    assert str(paths[4]).encode() not in cache.read_bytes()


def test_another_model_or_preprocessing_uses_no_foreign_embedding(predictor, paths, cache, counting):
    index.build(predictor, paths, none_is_bad, cache=cache)
    counting.since()
    other = tiny.predictor(seed=1)
    found = index.build(other, paths, none_is_bad, cache=cache)
    assert len(counting.since()) == 5
    torch.testing.assert_close(found.embeds, other.embed_images(paths))


def test_the_fingerprint_tells_weights_and_pixels_apart(predictor):
    other = tiny.predictor()
    assert other.fingerprint() == predictor.fingerprint()
    with torch.no_grad():
        other.model.encoder.positions_PD[0, 0] += 1e-6
    assert other.fingerprint() != predictor.fingerprint()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_cache_is_made_anew(predictor, paths, cache, damage):
    first = index.build(predictor, paths, none_is_bad, cache=cache)
    whole = bytearray(cache.read_bytes())
    middle = whole.index(b'"version"')
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    cache.write_bytes({"empty": b"", "text": b"no tensors here", "cut": whole[:-9], "flipped": flipped}[damage])
    second = index.build(predictor, paths, none_is_bad, cache=cache)
    torch.testing.assert_close(second.embeds, first.embeds)
    assert cache.stat().st_size == len(whole)


def test_a_cache_that_cannot_be_written_stops_nothing(predictor, paths, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = index.build(predictor, paths, none_is_bad, cache=tmp_path / "file" / "cache.safetensors")
    assert found.paths == paths


def test_an_interrupted_index_keeps_what_it_has(predictor, paths, cache, counting):
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.build(predictor, paths, none_is_bad, interrupt, cache)
    counting.since()
    index.build(predictor, paths, none_is_bad, cache=cache)
    assert counting.since() == ["2.png", "3.png", "4.png"]


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = index.cache_file(tmp_path / "a")
    assert file is not None
    assert file.is_relative_to(tmp_path / "opencoca")
    assert file == index.cache_file(tmp_path / "b" / ".." / "a")
    assert file != index.cache_file(tmp_path / "b")
