"""Clumps: alike samples side by side, everything exactly once, in an order that depends on the seed alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.support import COLOURS, SHAPES, drawing, png, tiny_tokenizer

from opencoca import recipes
from opencoca.data.loader import PairLoader
from opencoca.data.order import alike, clumped
from opencoca.data.pixels import normalised
from opencoca.data.questions import open_questions
from opencoca.model.init import build
from opencoca.train.tasks.vqa import picture_tokens
from opencoca.types import Batch


class Described(NamedTuple):
    key: str
    picture: bytes
    caption: str
    attributes: dict[str, Any]


class Captions:
    """A source of captions and concepts without pictures."""

    def __init__(self, *rows: tuple[str, str]) -> None:
        self.keys = [str(i) for i in range(len(rows))]
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Any:
        caption, concept = self._rows[i]
        return Described(self.keys[i], b"", caption, {"concept": concept} if concept else {})


def test_a_shared_concept_or_else_the_first_word_makes_alike() -> None:
    kinds = alike(
        Captions(("man cook", "c"), ("woman cook", "c"), ("flag of Chad", "x"), ("flag of Mali", "y"), ("dog", ""))
    )
    assert kinds[0] == kinds[1] and kinds[2] == kinds[3]
    assert len({kinds[0], kinds[2], kinds[4]}) == 3


def test_clumps_hold_every_sample_once_and_only_alike_ones() -> None:
    kinds = np.array([0] * 10 + [1] * 3 + [2, 3, 4, 5])
    order = np.random.default_rng(0).permutation(len(kinds))
    found = clumped(order, kinds, 4, np.random.default_rng(1))
    assert sorted(found) == list(range(len(kinds)))
    runs = np.split(kinds[found], np.flatnonzero(np.diff(kinds[found])) + 1)
    lonely_shuffled = np.split(kinds[order], np.flatnonzero(np.diff(kinds[order])) + 1)
    assert len(runs) <= 3 + 1 + 4  # ten in clumps of 4, 4, 2; three in one; four alone
    assert len(runs) < len(lonely_shuffled)


def test_clumps_differ_between_epochs() -> None:
    kinds = np.repeat(np.arange(8), 4)
    orders = [
        clumped(np.random.default_rng(epoch).permutation(32), kinds, 2, np.random.default_rng(epoch))
        for epoch in range(2)
    ]
    assert not np.array_equal(*orders)


def batches(folder: Path, absolute: bool) -> list[Batch]:
    """Clumped batches of two questions about each of some drawings, which `folder` comes to hold."""
    folder.mkdir()
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(("picture", "question", "answer"))
        for name, content in DRAWINGS.items():
            (folder / name).write_bytes(content)
            out.writerows((folder / name if absolute else name, text, "no") for text in ("red?", "bar?"))
    config = recipes.tiny.tiny()
    loader = PairLoader(
        open_questions(str(folder / "questions.csv")),
        tiny_tokenizer(),
        batch_size=16,
        image_size_px=config.model.vision.image_size_px,
        context_length=32,
        pixels=config.pixels,
        seed=0,
        clump_size=2,
    )
    found = [loader.batch(16 * i) for i in range(3)]
    loader.close()
    return [batch._replace(pixels=normalised(batch.pixels, config.pixels)) for batch in found]


DRAWINGS = {f"{colour}-{shape}.png": png(drawing(colour, shape)) for colour in COLOURS for shape in SHAPES}


@pytest.mark.parametrize("absolute", [False, True])
def test_the_same_data_elsewhere_come_in_the_same_order(tmp_path: Path, absolute: bool, monkeypatch) -> None:
    here, there = batches(tmp_path / "here", absolute), batches(tmp_path / "there", absolute)
    model = build(recipes.tiny.tiny().model)
    encode, seen = model.encode_image, []
    monkeypatch.setattr(model, "encode_image", lambda pixels, noise: seen.append(pixels) or encode(pixels, noise))
    for one, other in zip(here, there, strict=True):
        assert one.keys == other.keys and torch.equal(one.ids, other.ids) and torch.equal(one.pixels, other.pixels)
        tokens = [picture_tokens(model, batch) for batch in (one, other)]
        first, second = seen[-2:]
        assert len(first) < len(one.pixels), "pictures that two questions are about are encoded once"
        assert torch.equal(first, second), "the pictures' names don't tell in what order they are encoded"
        assert torch.equal(*tokens) and torch.allclose(tokens[0], encode(one.pixels, None).tokens, atol=1e-5)
