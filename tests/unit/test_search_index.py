"""The index of a folder: what passes through the model, what is kept, who may write, and what is found."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.search import graph, manifest, places, update, writer
from opencoca.search.filters import Filters, day
from opencoca.search.index import Index
from opencoca.search.store import Store


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(5):
        tiny.save_picture(tmp_path / "pics" / f"{seed}.png", seed)
    return tmp_path / "pics"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


class Counting:
    """Stands in for `encoded` and remembers which pictures it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        real = update.encoded

        def counting(predictor, paths, on_bad):
            def told():
                for path in paths:
                    self.read.append(path.name)
                    yield path

            return real(predictor, told(), on_bad)

        monkeypatch.setattr(update, "encoded", counting)

    def since(self) -> list[str]:
        read, self.read = self.read, []
        return read


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def make(folder: Path, predictor: Predictor, place: Path, **options) -> Index:
    return Index.make(folder, predictor, "tiny", index=place, **options)


def names(index: Index, k: int = 100, query: str = "red circle", **options) -> list[str]:
    return [hit.path.name for hit in index.search(query, k, **options)]


def test_hits_are_ordered_by_cosine_similarity(predictor, folder, place):
    hits = make(folder, predictor, place).search("red circle", 3)
    paths = sorted(folder.iterdir())
    scores = predictor.embed_images(paths) @ predictor.embed_texts("red circle")[0]
    best = scores.argsort(descending=True)[:3].tolist()
    assert [hit.path for hit in hits] == [paths[row] for row in best]
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-3)
    assert hits[0].good == (hits[0].score >= Store.open(folder, place).manifest.level)


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


def test_filters_by_day_size_and_folder(predictor, folder, place):
    tiny.save_picture(folder / "a" / "deep" / "x.png", 80, size=(60, 60))
    tiny.save_picture(folder / "ab" / "y.png", 81)
    os.utime(folder / "0.png", (1_577_880_000, 1_577_880_000))  # 2020-01-01 at noon
    index = make(folder, predictor, place)
    assert names(index, filters=Filters(before=day("2020-01-01"))) == ["0.png"]
    assert "0.png" not in names(index, filters=Filters(after=day("2020-01-02")))
    assert names(index, filters=Filters(min_bytes=5000)) == ["x.png"]
    assert "x.png" not in names(index, filters=Filters(max_bytes=5000))
    assert names(index, filters=Filters(folder="a")) == ["x.png"]
    assert names(index, filters=Filters(folder="none")) == []
    assert names(index, 1, filters=Filters(folder="ab")) == ["y.png"]  # though others are nearer


def test_the_day_is_when_the_camera_says(predictor, folder, place):
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2011:05:06 07:08:09"
    Image.new("RGB", (20, 20), "red").save(folder / "old.jpg", exif=exif)
    index = make(folder, predictor, place)
    [hit] = index.search("red", filters=Filters(before=day("2011-05-06"), after=day("2011-05-06")))
    assert hit.path.name == "old.jpg"
    assert str(index.picture(hit.id).date) == "2011-05-06 07:08:09"


def test_arithmetic_of_words_and_pictures(predictor, folder, place):
    index = make(folder, predictor, place)
    hits = index.search("red")
    one = next(hit for hit in hits if hit.path.name == "3.png")
    assert names(index, 1, f"id:{one.id}") == ["3.png"]
    query = index.embed('"red circle" + three.png - night', pictures=lambda name: folder / "3.png")
    text, night = predictor.embed_texts(["red circle", "night"])
    picture = predictor.embed_images(folder / "3.png")[0]
    want = torch.nn.functional.normalize(text + picture - night, dim=0).numpy()
    np.testing.assert_allclose(query.embed, want, atol=1e-5)
    assert query.words == {"red", "circle"}
    assert names(index, query=predictor.embed_images(folder / "2.png")[0])[0] == "2.png"
    with pytest.raises(DataError, match="cancel each other out"):
        index.search("red - red")
    with pytest.raises(DataError, match="no picture 999"):
        index.search("id:999")
    np.testing.assert_allclose(index.embed("a.png").embed, predictor.embed_texts("a.png")[0], atol=1e-6)


def test_captions_can_decide_the_order_and_say_why(predictor, folder, place, monkeypatch):
    index = make(folder, predictor, place, captions=True)
    last = index.search("red circle")[-1]
    real = index.backend.pictures
    monkeypatch.setattr(
        index.backend,
        "pictures",
        lambda ids: [p._replace(caption="Red circles, many" if p.id == last.id else "a dog") for p in real(ids)],
    )
    assert index.search("red circle")[-1].id == last.id
    first = index.search("red circle", blend=0.9)[0]
    assert first.id == last.id
    assert first.why.startswith("its caption says red, circles,; similarity")
    assert index.search("red circle", 5, blend=0.0)[0].why.startswith("similarity")


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


def test_a_graph_proposes_and_scores_stay_exact(predictor, folder, place, monkeypatch):
    pytest.importorskip("usearch")
    want = [(hit.path.name, hit.score) for hit in make(folder, predictor, place).search("red circle")]
    monkeypatch.setattr(graph, "WORTH_IT", 4)
    index = make(folder, predictor, place, anew=True)
    assert [(hit.path.name, hit.score) for hit in index.search("red circle")] == want
    assert index.backend._graph.rows == 5
    monkeypatch.setattr(graph, "WORTH_IT", 1000)  # from here on the graph is behind
    tiny.save_picture(folder / "new.png", 60)
    tiny.save_picture(folder / "newer.png", 61)
    (folder / "0.png").unlink()
    assert sorted(names(make(folder, predictor, place))) == ["1.png", "2.png", "3.png", "4.png", "new.png", "newer.png"]
