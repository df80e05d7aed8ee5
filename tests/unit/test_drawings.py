"""The shipped model's data and folder: usable clip art, several looks of a drawing, half-precision export."""

import io
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support import drawing, png, tiny_tokenizer
from tests.unit.test_emoji_styles import write_package

from opencoca import checkpoint, recipes
from opencoca.data import clip_art, drawings, emoji_styles
from opencoca.data.shards import ShardReader, ShardWriter
from opencoca.errors import CheckpointError, DataError
from opencoca.eval.held_out import HeldOut
from opencoca.infer.predictor import Predictor
from opencoca.jobs import drawings as job
from opencoca.jobs.drawings_card import ROWS, TITLES, card
from opencoca.model.init import build

SVG = '<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>'
SQUARE = '<rect x="2" y="3" width="4" height="4" fill="#c00"/><rect x="3" y="4" width="1" height="1" fill="#fff"/>'
RDF = """<metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/"><cc:Work><dc:title>{title}</dc:title>
  <dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject><dc:creator><cc:Agent><dc:title>An Author</dc:title></cc:Agent>
  </dc:creator><cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>"""


def write_clip_art(
    folder: Path, name: str, title: str, tags=(), licence=clip_art.PUBLIC_DOMAIN[0], body=SQUARE
) -> None:
    words = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        SVG.format(size='width="8mm" height="8mm"', body=RDF.format(title=title, tags=words, licence=licence) + body)
    )


# --- clip art ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "name", "clean"),
    [
        ("Red_Flower", "plants/a.svg", "red flower"),
        ("Blueberry Muffin (B and W)", "food/a.svg", "blueberry muffin"),
        ("guitar1", "music/a.svg", "guitar"),
        ("tree - RPG map elements", "map/a.svg", "tree"),
        ("GPS receiver 2", "tools/a.svg", "GPS receiver"),
        ("portugal", "signs/flags/europe/a.svg", "flag of Portugal"),
        ("Flag of Poland", "signs/flags/europe/a.svg", "flag of Poland"),
        ("arrow-up-purple", "shapes/a.svg", "arrow up purple"),
    ],
)
def test_titles_become_captions(title, name, clean):
    assert clip_art.clean_title(title, name) == clean


@given(st.text(max_size=40))
def test_a_clean_title_has_single_spaces_and_no_underscore(title):
    clean = clip_art.clean_title(title)
    assert clean == " ".join(clean.split()) and "_" not in clean


def test_only_usable_public_domain_files_are_kept(tmp_path):
    write_clip_art(tmp_path, "a/cat.svg", "Sleeping Cat", ["animal", "icon", "pet_animal", "cat"])
    write_clip_art(tmp_path, "a/gpl.svg", "Cat", licence="http://creativecommons.org/licenses/GPL/2.0/")
    write_clip_art(tmp_path, "a/theme.svg", "Cat icon theme")
    write_clip_art(tmp_path, "a/genie.svg", "Two Genies in a cat")
    write_clip_art(tmp_path, "a/foreign.svg", "zielony kubek")
    write_clip_art(tmp_path, "a/signs.svg", "cat #1 \u2014 best")
    write_clip_art(tmp_path, "a/number.svg", "17")
    for i in range(clip_art.MOST_ALIKE + 1):
        write_clip_art(tmp_path, f"series/{i}.svg", "My cat")
    (tmp_path / "broken.svg").write_text("<svg")
    (tmp_path / "bare.svg").write_text(SVG.format(size="", body=""))
    kept, left_out = clip_art.clip_art(tmp_path, ["genie"], {"cat", "best"})
    assert [(art.name, art.captions) for art in kept] == [("a/cat.svg", ("sleeping cat", "animal, pet animal"))]
    assert left_out.total() == 6 + clip_art.MOST_ALIKE + 1 + 2
    assert left_out["its title stands in more than 3 files"] == clip_art.MOST_ALIKE + 1
    assert left_out["it may show what a held-out list keeps unseen"] == 1
    assert left_out["not marked as public domain"] == 1


# --- looks ------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 10**6), st.sampled_from([16, 33]))
def test_every_look_is_a_square_of_the_size_and_repeats(width, height, seed, size_px):
    image = Image.new("RGBA", (width, height), (200, 0, 0, 255))
    looks = [drawings.composed(image, size_px, random.Random(seed)) for _ in range(2)]
    assert looks[0] == looks[1]
    assert Image.open(io.BytesIO(looks[0])).size == (size_px, size_px)


def test_the_first_look_is_centred_on_white_and_the_others_differ():
    image = drawings.render(SVG.format(size='viewBox="0 0 8 8"', body=SQUARE))
    assert image.size == (drawings.RENDER_PX, drawings.RENDER_PX)
    plain = np.asarray(Image.open(io.BytesIO(drawings.composed(image, 32))))
    assert (plain[0] == 255).all() and (plain[24, 20] == [204, 0, 0]).all()
    assert len({drawings.composed(image, 32, random.Random(seed)) for seed in range(8)}) == 8


def test_sizes_in_millimetres_are_drawn():
    assert drawings.render(SVG.format(size='width="8mm" height="4mm"', body=SQUARE)).size == (144, 72)


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        ("<svg", r"can't be rendered"),
        (SVG.format(size='viewBox="0 0 8 8"', body=""), r"the drawing is empty"),
        (SVG.format(size='viewBox="0 0 8 8"', body='<rect width="8" height="8"/>'), r"all of one colour"),
    ],
)
def test_a_drawing_that_shows_nothing_is_refused(svg, message):
    with pytest.raises(DataError, match=message):
        drawings.trimmed(drawings.render(svg))


# --- shards -----------------------------------------------------------------------------------------------------


def test_prepare_writes_every_split(tmp_path, monkeypatch):
    tiger, genie = "1F42F", next(i for i, row in emoji_styles.emoji().items() if row.caption == "genie")
    monkeypatch.setattr(emoji_styles, "test_rows", lambda: {"test_seen": [], "test_unseen": []})
    unpacked = {"openclipart-svg": tmp_path / "deb", "emojibase-data": tmp_path / "tags"}
    for style in emoji_styles.STYLES:
        icons = {"icons": {"tiger": {"body": SQUARE}, "genie": {"body": SQUARE}}}
        unpacked[style.package] = write_package(tmp_path / style.name, {tiger.lower(): "tiger", genie: "genie"}, icons)
    (tmp_path / "tags" / "en").mkdir(parents=True)
    (tmp_path / "tags" / "en" / "data.json").write_text(json.dumps([{"hexcode": tiger, "tags": ["predator"]}]))
    folder = tmp_path / "deb" / drawings.CLIP_ART_FOLDER
    write_clip_art(folder, "cat.svg", "tiger cub", ["pet"])
    write_clip_art(folder, "genie.svg", "genie")
    counts = drawings.prepare(tmp_path / "shards", unpacked, size_px=24)
    splits = Counter(drawing.split for drawing in emoji_styles.drawings(unpacked))
    assert counts == {"train": 4 * splits["train"] + 3, "val": splits["val"]}
    with ShardReader(tmp_path / "shards", "train") as reader:
        samples = [reader[i] for i in range(len(reader))]
    assert {sample.caption for sample in samples} == {"tiger face", "predator", "tiger cub", "pet"}
    assert {sample.attributes["picture"] for sample in samples} == {tiger, "clip-art-0"}, "styles of one emoji agree"
    assert reader.manifest["source"]["clip_art_left_out"] == {"it may show what a held-out list keeps unseen": 1}
    assert len(reader.manifest["source"]["packages"]) == 6


# --- the model --------------------------------------------------------------------------------------------------


def save_run(folder: Path) -> None:
    config = recipes.get("tiny")
    checkpoint.save(folder, config, tiny_tokenizer(), build(config.model, seed=0).state_dict())


def test_the_export_is_half_as_large_and_means_the_same(tmp_path):
    save_run(tmp_path / "run")
    job.halved(tmp_path / "run", tmp_path / "drawings")
    whole, half = checkpoint.load(tmp_path / "run"), checkpoint.load(tmp_path / "drawings")
    assert {(tensor.ndim > 1, tensor.dtype) for tensor in half.weights.values()} == {
        (True, torch.float16),
        (False, torch.float32),
    }
    assert whole.weights.keys() == half.weights.keys() and whole.config == half.config
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(half.weights[name].float(), tensor, rtol=1e-3, atol=1e-6)
    assert half.origin is not None and half.origin.licence == "apache-2.0"
    assert "CC BY 4.0" in (tmp_path / "drawings" / "README.md").read_text()


def test_what_is_too_large_or_not_finite_does_not_ship(tmp_path, monkeypatch):
    save_run(tmp_path / "run")
    monkeypatch.setattr(job, "LARGEST_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"1000 bytes may ship"):
        job.halved(tmp_path / "run", tmp_path / "drawings")
    assert not (tmp_path / "drawings").exists()


def test_figures_stand_beside_chance_and_the_nearest_pixels(tmp_path):
    config = recipes.get("tiny")
    predictor = Predictor(build(config.model, seed=0), tiny_tokenizer(), config)
    with ShardWriter(tmp_path) as writer:
        for i, (colour, shape) in enumerate(itertools.product(("red", "blue"), ("square", "bar", "circle"))):
            picture, caption = png(drawing(colour, shape)), f"{colour} {shape}"
            writer.add("test_seen" if i < 4 else "test_unseen", f"{colour}-{shape}", picture, caption)
            writer.add("train", f"noto-{i}-0", picture, caption if i < 4 else "red square")
            writer.add("train", f"noto-{i}-1", picture, "another look is no neighbour")
    figures = job.measure(predictor, tmp_path)
    assert figures["test_seen"]["nearest_pixels"]["zeroshot_top1"] == 1
    assert figures["test_seen"]["nearest_pixels"]["exact_match"] == 1
    assert figures["test_unseen"]["nearest_pixels"]["zeroshot_top1"] == 0
    assert figures["test_unseen"]["chance"]["i2t_recall@1"] == 1 / 2
    assert figures["test_unseen"]["chance"]["zeroshot_top5"] == 5 / 6
    for name in job.LISTS:
        assert set(figures[name]["model"]) == {key for _, key, _ in ROWS}
        assert figures[name]["model"]["i2t_recall@5"] == 1 >= figures[name]["model"]["zeroshot_top5"]


def test_thumbnails_average(tmp_path):
    pictures = np.zeros((1, 6, 6, 3), np.uint8)
    pictures[0, :3, 3:] = np.arange(9).reshape(3, 3, 1)
    small = job.thumbnails(HeldOut("x", ("a",), pictures, ("b",), ({},))).pictures
    assert small.shape == (1, 2, 2, 3) and (small[0, 0, 1] == 4).all() and small.sum() == 12


def test_the_recipe_ships_in_time_and_size():
    config = recipes.get("drawings")
    parameters = sum(p.numel() for p in build(config.model, seed=0).parameters())
    assert parameters > 8e6 and 2 * parameters < job.LARGEST_BYTES
    assert config.optim.steps * config.data.batch_size <= 300_000


def test_the_card_shows_every_figure_and_says_what_it_is_not_for():
    figures = {
        name: {
            who: {key: 0.125 + 0.25 * i for _, key, _ in ROWS}
            for i, who in enumerate(("model", "nearest_pixels", "chance"))
        }
        for name in TITLES
    }
    del figures["test_seen"]["chance"]["cider_d"]
    training = dict.fromkeys(("parameters", "steps", "batch_size", "samples", "drawings"), 7_000_000)
    training |= {"recipe": "drawings", "seed": 0, "minutes": 61.2, "processor": "P", "size_px": 72}
    training |= {"clip_art_kept": 10, "clip_art_left_out": 30}
    text = card({"figures": figures, "pictures": {"test_seen": 5, "test_unseen": 6}, "training": training})
    assert "first of all 11 names | 12.5 | 37.5 | 62.5 |" in text
    assert "CIDEr-D (0 to 10) | 0.12 | 0.38 | – |" in text
    assert "30 of 40 pieces of clip art" in text
    for phrase in ("Not for photographs", "CC BY 4.0", "OpenMoji", "float16"):
        assert phrase in text
    assert "first guess is right less often" in text
    assert "How well" not in card(None)
