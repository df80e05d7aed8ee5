"""`coca info` of models from anywhere: parameters, operations, settings, source and licence."""

from __future__ import annotations

import json

import pytest
from tests import published, tiny
from tests.published import WEIGHTS

from opencoca import checkpoint
from opencoca.cli.main import main
from opencoca.interop import pulled
from opencoca.model.flops import forward_flops
from opencoca.model_card import Origin


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pulled, "SHIPPED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)


def facts(capsys, *words: str) -> dict:
    assert main(["info", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_of_ours(tmp_path, capsys):
    folder = tiny.save_model(tmp_path / "model", state={"step": 3, "metrics": {"loss": 1.0}})
    found = facts(capsys, str(folder))
    assert found["source"] == "trained with the recipe tiny" and found["licence"] is None
    assert found["sha256"] == checkpoint.file_digest(folder / checkpoint.MODEL)
    assert (found["trained_steps"], found["metrics"]) == (3, {"loss": 1.0})
    assert found["generation"]["beams"] == tiny.CONFIG.generation.beams


def test_a_published_model(tmp_path, capsys):
    folder = published.write(tmp_path / "coca")
    found = facts(capsys, "coca")
    total = sum(parameter.numel() for parameter in published.model().parameters())
    assert found["parameters"]["total"] == total and found["parameters"]["generative_pooler"] > 0
    assert found["source"] == "coca" and found["folder"] == str((folder / WEIGHTS).resolve())
    assert (found["image_size_px"], found["context_length"], found["generation"]["beams"]) == (16, 10, 6)


def test_operations_per_picture_and_token(tmp_path, capsys):
    found = facts(capsys, str(tiny.save_model(tmp_path / "model")))
    model, flops = tiny.CONFIG.model, found["forward_flops"]
    pictures = flops["encoder"] + flops["generative_pooler"] + flops["contrastive_pooler"]
    assert found["flops_per_image"] == pictures
    text = model.text
    width, mlp, layers = text.width, text.mlp_width, text.unimodal_depth + text.multimodal_depth
    attended = 2 * (text.context_length // 2) + 1  # keys of a token at the end of the context, within one or two
    token = layers * (8 * width**2 + 4 * width * mlp) + text.multimodal_depth * (
        4 * width**2 + 4 * width * model.pooler.num_queries
    )
    token += 2 * width * text.vocab_size + layers * 4 * width * attended
    assert abs(found["flops_per_caption_token"] - token) <= layers * 4 * width * 2
    assert (
        found["flops_per_caption_token"] * text.context_length < 2 * forward_flops(model, 1, text.context_length).total
    )


def test_source_and_licence_of_a_converted_model(tmp_path, capsys):
    weights = dict(published.model().named_parameters())
    origin = Origin("hf:some/coca", "abc", "mit", "00ff")
    checkpoint.save(tmp_path / "model", published.config(), published.tokenizer(), weights, origin=origin)
    found = facts(capsys, "model")
    assert (found["source"], found["revision"], found["licence"]) == ("hf:some/coca", "abc", "mit")
    assert main(["info", "model"]) == 0
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert lines["licence"] == "mit" and lines["generation.beams"] == "6" and lines["trained_steps"] == "unknown"
