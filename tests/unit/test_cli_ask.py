"""`coca ask`: the predictor's answers, and what is missing from a command that can't be answered."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tests import commands, tiny
from tests.commands import ALL, ran

from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

model, predictor, folder = commands.model, commands.predictor, commands.folder


@pytest.mark.parametrize("words", [["pics", "what is it?"], ["pics", "--question", "what is it?"]])
def test_ask_answers_as_the_predictor_does(folder, monkeypatch, capsys, words):
    text = dataclasses.replace(tiny.CONFIG.model.text, context_length=64)
    config = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, text=text))
    predictor = Predictor(build(config.model), tiny.tokenizer(), config)
    monkeypatch.setattr("opencoca.loading.load", lambda name: predictor)
    tokens = ["--max-tokens", "60"]
    out, _ = ran(capsys, "ask", *words, *tokens, "--json")
    records = json.loads(out)
    assert [record["path"] for record in records] == ALL
    assert {record["question"] for record in records} == {"what is it?"}
    assert [record["answer"] for record in records] == predictor.answer(ALL, "what is it?", max_tokens=60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pics/2.png"], "is a picture, and there is no question"),
        (["nosuch.png"], "is a picture, and there is no question"),
        (["what is it?"], "no picture before the question"),
        (["pics", "--question", " "], "the question is empty"),
        (["pics", "why " * 500], "max_tokens"),
    ],
)
def test_ask_needs_a_picture_and_a_question(folder, capsys, words, said):
    out, err = ran(capsys, "ask", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
