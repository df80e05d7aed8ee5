"""The model card and the origin: what they say, and that nothing in them can break their format."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from tests import tiny

from opencoca.errors import CheckpointError
from opencoca.model_card import Origin, model_card

PARAMETERS = {"encoder": 1200, "unimodal": 34, "log_scale": 1, "head": 0}
FOREIGN = Origin("hf:some/coca", "abc", "mit", "00ff")


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_trained_model_says_how():
    state = {"step": 20, "metrics": {"val/loss": 0.123456, "note": "text"}}
    card = model_card(tiny.CONFIG, "mine", PARAMETERS, state=state)
    assert header(card)["license"] == "unknown" and header(card)["library_name"] == "opencoca"
    assert f"recipe `tiny`: {tiny.CONFIG.data.batch_size:,} pairs a step, 20 of" in card
    assert "| val/loss | 0.1235 |" in card and "note" not in card
    assert "| image encoder | 1,200 |" in card and "| **all** | **1,235** |" in card and "vocabulary head" not in card
    assert 'opencoca.load("mine")' in card and tiny.CONFIG.data.folder not in card.replace("tiny", "")


def test_a_foreign_model_says_where_it_is_from():
    card = model_card(tiny.CONFIG, "theirs", PARAMETERS, FOREIGN)
    assert header(card)["license"] == "mit"
    assert "Source: hf:some/coca, revision abc." in card and "sha256 00ff" in card
    assert "Measured" not in card and "Trained with" not in card


def test_texts_from_elsewhere_cannot_break_the_card():
    odd = Origin("hf:a/b\n---\nevil: yes", None, 'm"it\n---\n<script>', None)
    card = model_card(tiny.CONFIG, "x", PARAMETERS, odd, {"metrics": {"a|b\nc": 1.0}})
    assert header(card)["license"] == odd.licence
    assert "\n---\nevil" not in card and "<script>" not in card.split("---\n", 2)[2] and "| a\\|b c | 1 |" in card


@pytest.mark.parametrize("origin", [FOREIGN, Origin("x"), Origin("x", licence="cc0-1.0")])
def test_origins_survive_their_file(origin):
    assert Origin.from_json(origin.to_json(), "f") == origin
    assert "null" not in origin.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{}", '{"source": 3}', '{"source": "x", "other": "y"}', "[" * 100_000]
)
def test_other_origins_are_refused(text):
    with pytest.raises(CheckpointError, match=r"^f says no origin"):
        Origin.from_json(text, "f")


def test_an_origin_has_texts_only():
    assert {field.type for field in dataclasses.fields(Origin)} == {"str", "str | None"}
    assert json.loads(FOREIGN.to_json())["licence"] == "mit"
