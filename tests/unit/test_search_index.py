"""The index of a folder: what passes through the model, what is kept, and who may write."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests import indexes, tiny
from tests.indexes import make, names

from opencoca.errors import DataError
from opencoca.search import manifest, places, update, writer
from opencoca.search.index import Index
from opencoca.search.store import Store

predictor = indexes.predictor
folder = indexes.folder
place = indexes.place
counting = indexes.counting


def test_the_second_update_reads_no_picture(predictor, folder, place, counting):
    first = make(folder, predictor, place)
    assert counting.since() == [f"{seed}.png" for seed in range(5)]
    state = {path.name: path.read_bytes() for path in place.iterdir()}
    second = make(folder, predictor, place)
    assert counting.since() == []
    assert {path.name: path.read_bytes() for path in place.iterdir()} == state  # nothing was written
    assert second.search("red") == first.search("red")


def test_changed_new_and_deleted_pictures_are_noticed(predictor, folder, place, counting):
    make(folder, predictor, place, captions=True)
    counting.since()
    tiny.save_picture(folder / "0.png", seed=50)
    tiny.save_picture(folder / "new.png", 60)
    (folder / "4.png").unlink()
    touched = (folder / "1.png").stat()
    os.utime(folder / "1.png", ns=(touched.st_atime_ns, touched.st_mtime_ns + 1))
    index = make(folder, predictor, place)
    assert counting.since() == ["0.png", "new.png"]  # a touched file has the contents that it had
    assert sorted(names(index)) == ["0.png", "1.png", "2.png", "3.png", "new.png"]
    want = predictor.embed_images(sorted(folder.iterdir())).numpy()
    paths = [picture.path for picture in index.backend.pictures(index.backend.ids())]
    np.testing.assert_allclose(index.backend.embeds()[np.argsort(paths)], want, atol=1e-3)
    assert not any(b"4.png" in path.read_bytes() for path in place.iterdir())


def test_a_moved_picture_keeps_its_id_and_is_not_read_by_the_model_again(predictor, folder, place, counting):
    index = make(folder, predictor, place, captions=True)
    before = {hit.path.name: hit for hit in index.search("red")}
    counting.since()
    (folder / "sub").mkdir()
    (folder / "2.png").rename(folder / "sub" / "two.png")
    counts = update.update(folder, predictor, "tiny", index=place)
    assert counting.since() == []
    assert (counts.moved, counts.encoded, counts.removed) == (1, 0, 0)
    after = {hit.path.name: hit for hit in Index.open(folder, predictor, place).search("red")}
    assert after["two.png"].id == before["2.png"].id
    assert after["two.png"].caption == before["2.png"].caption != ""
    assert after["two.png"].path == folder / "sub" / "two.png"


def test_a_copy_is_found_beside_its_original(predictor, folder, place, counting):
    shutil.copy(folder / "3.png", folder / "copy.png")
    index = make(folder, predictor, place)
    assert len(counting.since()) == 5
    found = names(index)
    assert len(found) == 6
    assert abs(found.index("3.png") - found.index("copy.png")) == 1
    (folder / "3.png").unlink()
    assert "copy.png" in names(make(folder, predictor, place))


def test_bad_pictures_are_named_each_time_and_read_once(predictor, folder, place, counting):
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "3.png").write_bytes(b"")
    for turn in range(2):
        bad: dict[str, str] = {}
        index = make(folder, predictor, place, on_bad=lambda path, error, to=bad: to.update({path.name: str(error)}))
        assert sorted(bad) == ["1.png", "3.png"]
        assert bad["3.png"] == f"{folder / '3.png'} is empty (0 bytes); copy or download it again"
        assert sorted(names(index)) == ["0.png", "2.png", "4.png"]
        assert len(counting.since()) == (5 if turn == 0 else 0)
    tiny.save_picture(folder / "1.png", 1)
    assert len(names(make(folder, predictor, place))) == 4


def test_copies_are_told_from_what_was_known_and_bad_ones_from_new_bad_ones(predictor, folder, place):
    shutil.copy(folder / "0.png", folder / "0-copy.png")
    (folder / "1.png").write_bytes(b"")

    def told() -> tuple[int, int, int, list[str], list[str]]:
        new: list[str] = []
        named: list[str] = []
        counts = update.update(
            folder,
            predictor,
            "tiny",
            index=place,
            on_bad=lambda path, error: new.append(path.name),
            on_named=lambda path, error: named.append(path.name),
        )
        return counts.encoded, counts.copies, counts.same, new, named

    assert told() == (4, 1, 0, ["1.png"], [])
    shutil.copy(folder / "2.png", folder / "2-copy.png")
    assert told() == (0, 1, 5, [], ["1.png"])
    assert told() == (0, 0, 6, [], ["1.png"])


def test_captions_are_made_later_where_they_were_left_out(predictor, folder, place):
    assert not any(hit.caption for hit in make(folder, predictor, place).search("red"))
    index = make(folder, predictor, place, captions=True)
    paths = sorted(folder.iterdir())
    want = dict(zip(paths, predictor.caption(paths, beams=1), strict=True))
    assert {hit.path: hit.caption for hit in index.search("red")} == want


def test_another_model_is_refused_with_the_commands_that_help(predictor, folder, place):
    make(folder, predictor, place)
    other = tiny.predictor(seed=1)
    for ask in (lambda: Index.make(folder, other, "b", index=place), lambda: Index.open(folder, other, place, "b")):
        with pytest.raises(DataError, match=f"--model tiny, or make it anew: coca index {folder} --model b --anew"):
            ask()
    with pytest.raises(DataError, match="the model tiny is not any more what it was"):
        make(folder, other, place)
    index = make(folder, other, place, anew=True)
    np.testing.assert_allclose(index.backend.embeds(), other.embed_images(sorted(folder.iterdir())).numpy(), atol=1e-3)


def test_an_interrupted_update_keeps_what_it_has_and_is_searched_meanwhile(predictor, folder, place, counting):
    def interrupt(progress: update.Progress) -> None:
        if progress.done == 4:
            found = Store.open(folder, place)  # what the first commit left
            assert found is not None and len(found) == 2 and not found.manifest.complete and found.manifest.files == 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, predictor, place, on_progress=interrupt)
    counting.since()
    assert len(make(folder, predictor, place)) == 5
    assert counting.since() == ["4.png"]


def test_two_writers_at_once_are_refused(predictor, folder, place):
    with writer.only_writer(place, folder):
        assert writer.is_locked(place)
        with pytest.raises(DataError, match="another process is indexing"):
            make(folder, predictor, place)
    assert not writer.is_locked(place)
    make(folder, predictor, place)


@pytest.mark.parametrize("step", ["vectors", "table", "manifest"])
def test_a_full_disk_leaves_the_old_index(predictor, folder, place, monkeypatch, step):
    before = make(folder, predictor, place).search("red")
    tiny.save_picture(folder / "new.png", 60)
    real = os.replace

    def full(source, target):
        if Path(target).name.startswith(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make(folder, predictor, place)
    monkeypatch.undo()
    assert Index.open(folder, predictor, place).search("red") == before
    assert not [path for path in place.iterdir() if path.name.startswith((".partial", "work"))]
    assert len(make(folder, predictor, place)) == 6


def test_links_out_of_the_folder_are_not_followed(predictor, folder, place, tmp_path):
    secret = tiny.save_picture(tmp_path / "secret" / "secret.png", 70)
    (folder / "out.png").symlink_to(secret)
    (folder / "outdir").symlink_to(secret.parent)
    (folder / "in.png").symlink_to(folder / "0.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    bad: list[str] = []
    index = make(folder, predictor, place, on_bad=lambda path, error: bad.append(path.name))
    assert sorted(bad) == ["out.png", "round.png"]
    assert sorted(names(index)) == ["0.png", "1.png", "2.png", "3.png", "4.png", "in.png"]
    one = next(hit for hit in index.search("red") if hit.path.name == "1.png")
    assert index.thumbnail(one.id, 64)[:2] == b"\xff\xd8"
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(secret)  # put there since
    with pytest.raises(DataError, match="leads out of"):
        index.thumbnail(one.id, 64)


def test_old_parts_are_joined_and_removed(predictor, folder, place):
    for seed in range(10, 22):
        tiny.save_picture(folder / f"{seed}.png", seed)
        index = make(folder, predictor, place)
    found = Store.open(folder, place)
    assert found is not None and len(found.manifest.vectors) <= writer.MANY_PARTS
    assert {path.name for path in place.iterdir()} == {
        "lock", "manifest.json", *(part.name for part in found.manifest.parts)
    }  # fmt: skip
    pictures = index.backend.pictures(index.backend.ids())
    want = predictor.embed_images([picture.path for picture in pictures]).numpy()
    np.testing.assert_allclose(index.backend.embeds(), want, atol=1e-3)


def test_an_index_beside_its_pictures_moves_with_them(predictor, folder, tmp_path, monkeypatch, counting):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.index_folder(folder) == places.cached(folder)
    assert places.cached(folder).is_relative_to(tmp_path / "cache")
    make(folder, predictor, folder / places.HERE)
    assert places.index_folder(folder) == folder / places.HERE
    folder.rename(tmp_path / "moved")
    counting.since()
    assert len(Index.make(tmp_path / "moved", predictor, "tiny")) == 5
    assert counting.since() == []


def test_a_folder_without_an_index_says_how_to_make_one(predictor, folder, place):
    with pytest.raises(DataError, match=f"has no index; make one: coca index {folder}"):
        Index.open(folder, predictor, place)
    assert manifest.read(place, folder) is None
