"""Which of two people has which skin tone: the two-way choice, counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests import tiny

from opencoca.data.openmoji import load_table
from opencoca.errors import DataError
from opencoca.eval.binding import exchanged, make
from opencoca.eval.registry import Options, Place
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

CAPTION = "two singers, dark skin tone and medium-light skin tone"
TWIN = "two singers, medium-light skin tone and dark skin tone"


def test_every_caption_of_two_tones_has_its_twin_in_the_table() -> None:
    captions = {row.caption for row in load_table()}
    two = [row.caption for row in load_table() if len(row.tones) == 2]
    assert len(two) == 380
    assert all(exchanged(caption) in captions and exchanged(caption) != caption for caption in two)
    assert exchanged("woman, dark skin tone") is None and exchanged("two singers") is None


def predictor() -> Predictor:
    """The tiny one, with room for captions of this length."""
    model = dataclasses.replace(tiny.CONFIG.model, text=dataclasses.replace(tiny.CONFIG.model.text, context_length=64))
    return Predictor(build(model, 0), tiny.tokenizer(), dataclasses.replace(tiny.CONFIG, model=model))


def pictures(folder, captions):
    lines = ["path,caption"]
    for i, caption in enumerate(captions):
        tiny.save_picture(folder / f"{i}.png", seed=i)
        lines.append(f'{i}.png,"{caption}"')
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return {"openmoji": Place(folder / "captions.csv", "train")}


def test_the_choice_is_counted_by_hand(tmp_path) -> None:
    model = predictor()
    same = next(
        row.caption
        for row in load_table()
        if len(row.tones) == 2
        and any(r.caption == exchanged(row.caption) and r.picture == row.picture for r in load_table())
    )
    captions = [CAPTION, TWIN, CAPTION, TWIN, "two singers", same]
    result = make("openmoji/binding", pictures(tmp_path, captions), Options())(model)
    shown = [tmp_path / f"{i}.png" for i in range(4)]
    embeds, texts = model.embed_images(shown), model.embed_texts([CAPTION, TWIN])
    sides = [0, 1, 0, 1]
    nearer = [(embeds[i] @ texts[s] > embeds[i] @ texts[1 - s]).item() for i, s in enumerate(sides)]
    scores = model.score_matrix(shown, [CAPTION, TWIN])
    likelier = [(scores[i, s] > scores[i, 1 - s]).item() for i, s in enumerate(sides)]
    assert result.per_sample["contrastive"].bool().tolist() == nearer
    assert result.per_sample["score"].bool().tolist() == likelier
    assert result.facts["samples"] == 4 and result.facts["drawn_alike_and_left_out"] == 1


def test_a_model_that_ignores_the_picture_is_no_better_than_chance(tmp_path, monkeypatch) -> None:
    """One answer for every picture: right for a caption, wrong for its twin; and a tie is wrong."""
    model = predictor()
    data = pictures(tmp_path, [CAPTION, TWIN])
    monkeypatch.setattr(type(model), "score", lambda self, images, texts: torch.zeros(len(texts)))
    result = make("openmoji/binding", data, Options())(model)
    assert result.figures["score"] == 0


def test_no_such_picture_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="no picture of two people"):
        make("openmoji/binding", pictures(tmp_path, ["a cat", "a dog"]), Options())(tiny.predictor())
