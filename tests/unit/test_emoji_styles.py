"""Emoji in several styles: which drawing is whose, and that no held-out one gets into training."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from opencoca.data import emoji_styles as styles
from opencoca.data.openmoji import load_table
from opencoca.errors import DataError

NO_FLUENT = ("1F1E6-1F1F9",)  # the Fluent sets draw no flags


def write_package(folder: Path, characters: dict[str, str], icons: dict | None = None) -> Path:
    """A package in Iconify's layout; each slug of `characters` has its own drawing unless `icons` says otherwise."""
    folder.mkdir(parents=True)
    (folder / "chars.json").write_text(json.dumps(characters))
    drawn = icons or {"icons": {slug: {"body": f"<path id='{slug}'/>"} for slug in characters.values()}}
    (folder / "icons.json").write_text(json.dumps({"width": 8, "height": 8} | drawn))
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> list[styles.Drawing]:
    """All drawings where every style has every emoji, but two styles no flag."""
    root, folders = tmp_path_factory.mktemp("packages"), {}
    for style in styles.STYLES:
        ids = [id for id in styles.emoji() if style.name in styles.VAL_STYLES or id not in NO_FLUENT]
        folders[style.package] = write_package(root / style.name, {id.lower(): f"slug-{id}" for id in ids})
    return styles.drawings(folders)


def test_training_shows_no_concept_that_is_held_out(everything):
    held = set(styles.unseen_concepts())
    trained = [drawing for drawing in everything if drawing.split == "train"]
    assert trained and not [drawing for drawing in trained if drawing.row.concept in held]
    assert held >= {row.concept for row in load_table() if row.split == "test_concepts"}


def test_val_has_one_picture_per_concept_that_training_shows_elsewhere_or_nowhere(everything):
    val = [drawing for drawing in everything if drawing.split == "val"]
    assert Counter(drawing.kind for drawing in val) == {
        "seen": styles.SEEN_IN_VAL,
        "unseen": styles.UNSEEN_IN_VAL,
    }
    assert len({drawing.row.concept for drawing in val}) == len(val)
    trained = {drawing.row.id for drawing in everything if drawing.split == "train"}
    shown = {(drawing.row.id, drawing.style) for drawing in everything if drawing.split == "train"}
    for drawing in val:
        assert (drawing.row.id in trained) == (drawing.kind == "seen")
        assert (drawing.row.id, drawing.style) not in shown
        assert drawing.style in styles.VAL_STYLES and not drawing.row.tones


def test_each_test_list_keeps_its_promise(everything):
    trained = {drawing.row.id for drawing in everything if drawing.split == "train"}
    lists = styles.test_rows()
    assert {row.id for row in lists["test_seen"]} <= trained
    concepts = {drawing.row.concept for drawing in everything}
    assert not concepts & {row.concept for row in lists["test_unseen"]}
    captions = [row.caption for rows in lists.values() for row in rows]
    assert len(captions) > 1500 and len(set(captions)) == len(captions), "a name stands for one picture"


def test_no_training_style_is_openmoji():
    assert not any("openmoji" in part.lower() for style in styles.STYLES for part in style)


def test_each_role_has_one_tone_a_style(everything):
    toned = [drawing for drawing in everything if drawing.row.tones]
    roles = Counter((drawing.style, drawing.row.concept, drawing.row.gender) for drawing in toned)
    assert set(roles.values()) == {1}
    assert len({drawing.row.tones for drawing in toned}) == 5 and all(len(d.row.tones) == 1 for d in toned)


def test_the_order_has_no_runs_of_a_style(everything):
    changes = sum(a.style != b.style for a, b in itertools.pairwise(everything))
    assert changes > 0.6 * len(everything)
    shuffled = list(everything)
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=lambda d: styles.order_of("order", d.style, d.row.id)) == everything


def test_code_points_match_whatever_their_writing():
    assert styles.plain("2764-fe0f-200d-1f525") == "2764-200D-1F525"


def test_an_alias_may_mirror_its_parent():
    icons = {
        "icons": {"left": {"body": "<a/>", "width": 20}},
        "aliases": {"right": {"parent": "left", "hFlip": True}, "back": {"parent": "right", "hFlip": True}},
        "height": 10,
    }
    assert 'viewBox="0 0 20 10"><a/></svg>' in (styles.svg_of(icons, "left") or "")
    assert 'translate(20 0) scale(-1 1)"><a/></g>' in (styles.svg_of(icons, "right") or "")
    assert styles.svg_of(icons, "back") == styles.svg_of(icons, "left")
    assert styles.svg_of(icons, "nowhere") is None


def test_a_circle_of_aliases_is_refused():
    icons = {"icons": {}, "aliases": {"a": {"parent": "b"}, "b": {"parent": "a"}}}
    with pytest.raises(DataError, match=r"alias 'a' leads in a circle"):
        styles.svg_of(icons, "a")


def test_a_damaged_package_is_named(tmp_path):
    (tmp_path / "icons.json").write_text('{"icons": ')
    folders = {style.package: tmp_path for style in styles.STYLES}
    with pytest.raises(DataError, match=r"icons\.json can't be read .* unpack the package again"):
        styles.drawings(folders)


def test_keywords_say_what_the_name_does_not(tmp_path):
    (tmp_path / "en").mkdir()
    entry = {"hexcode": "1F42F", "tags": ["tiger", "face", "animal", "big cat", "predator", "stripes", "ñ", "xy"]}
    (tmp_path / "en" / "data.json").write_text(json.dumps([entry]))
    tags = styles.keywords(tmp_path)["1F42F"]
    row = styles.emoji()["1F42F"]
    caption = styles.keyword_caption(row, tags, "noto") or ""
    assert len(caption.split(", ")) == styles.TAGS_PER_CAPTION
    assert set(caption.split(", ")) <= {"animal", "big cat", "predator", "stripes"}
    assert {styles.keyword_caption(row, tags, salt) for salt in "abcdefgh"} > {caption} or len(tags) < 4
    assert styles.keyword_caption(row, ["tiger"], "noto") is None
    assert {"tiger", "predator"} <= styles.english_words({"1F42F": tags})
