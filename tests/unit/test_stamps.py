"""The stamps' importer on a small made-up package: sentences, drawings, and concepts that stay on one side."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support import png

from opencoca.data import stamps
from opencoca.data.stamps import Stamp, concept_of, concepts, prepare, sentence, split_of
from opencoca.errors import DataError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="5" fill="#c00"/></svg>'


def write(folder: Path, name: str, text: str, seed: int | None = None) -> None:
    path = folder / stamps.FOLDER / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path.with_suffix(".png"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / stamps.TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_package_becomes_a_table_and_pictures(tmp_path):
    unpacked = tmp_path / "unpacked"
    write(unpacked, "animals/cat", "A cat.\nde.utf8=Eine Katze.", seed=1)
    write(unpacked, "animals/dog-1", "A dog. It barks.\n", seed=2)
    write(unpacked, "animals/dog-2", "Rex, a friend.", seed=3)
    write(unpacked, "people/kitty", "A big black cat!", seed=4)
    write(unpacked, "people/twin", "Another thing.", seed=1)
    write(unpacked, "empty/nothing", "  \n", seed=5)
    write(unpacked, "empty/unseen", "A ghost.")
    write(unpacked, "drawn/box", "A box.")
    (unpacked / stamps.FOLDER / "drawn/box.svg").write_text(SVG)
    write(unpacked, "drawn/broken", "A scribble.")
    (unpacked / stamps.FOLDER / "drawn/broken.svg").write_text("<svg")
    prepared = prepare(tmp_path / "stamps", unpacked)
    found = {row["path"]: row for row in rows(tmp_path / "stamps")}
    assert sum(prepared.counts.values()) == len(found) == 6 and sum(prepared.left_out.values()) == 3
    assert all((tmp_path / "stamps" / path).is_file() for path in found)
    assert found["pictures/animals-dog-1.png"]["caption"] == "A dog."
    concept = {path.split("-", 1)[1]: row["concept"] for path, row in found.items()}
    assert concept["dog-1.png"] == concept["dog-2.png"] == "dog"  # one series
    assert concept["cat.png"] == concept["kitty.png"] == concept["twin.png"]  # one caption, one look
    assert len(set(concept.values())) == 3
    sides = {name: {row["split"] for row in found.values() if row["concept"] == name} for name in concept.values()}
    assert all(len(side) == 1 for side in sides.values())
    before = (tmp_path / "stamps" / stamps.TABLE).read_bytes()
    prepare(tmp_path / "stamps", unpacked)
    assert (tmp_path / "stamps" / stamps.TABLE).read_bytes() == before


def test_no_stamps_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no stamps"):
        prepare(tmp_path / "stamps", tmp_path)
    assert not (tmp_path / "stamps").exists()


def test_sentences_are_the_first_of_the_first_line():
    assert sentence("\ufeffA coin ($1.00) called a loonie. (Its name is a play.)\nfr=x") == (
        "A coin ($1.00) called a loonie."
    )
    assert sentence("Gimel stands for gants. If it lands, take it.") == "Gimel stands for gants."
    assert sentence("\n") == "" == sentence("")


def test_concepts_are_the_telling_words():
    assert concept_of("A small red car.") == concept_of("Some cars") == "car"
    assert concept_of("A glass of water.") == "glass water" != concept_of("A glass.")


def test_shares_are_about_as_wanted():
    sides = [split_of(f"concept {i}") for i in range(2000)]
    assert abs(sides.count("test") - 400) < 60 and abs(sides.count("val") - 200) < 50


def test_pictures_that_look_the_same_are_one_concept_and_pale_ones_are_not():
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    touched = noise.copy()
    touched[0, 0] = 255 - touched[0, 0]
    white, dotted = np.full((24, 24, 3), 252, np.uint8), np.full((24, 24, 3), 252, np.uint8)
    white[:8], dotted[16:] = 248, 248
    images = {"kite": noise, "bird": touched, "moon": white, "snow": dotted}
    made = [Stamp(name, png(pixels), f"A {name}.") for name, pixels in images.items()]
    assert concepts(made) == ["bird", "bird", "moon", "snow"]
