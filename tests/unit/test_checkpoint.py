"""Checkpoints come back bit for bit, those of older versions too; origin and card travel with a model."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import CONFIGURATION, VOCABULARY, refused, seal, write
from tests.support import drawing

import opencoca
from opencoca import checkpoint
from opencoca.checkpoint import CARD, CONFIG, MANIFEST, MODEL, ORIGIN, TRAINING
from opencoca.errors import CheckpointError
from opencoca.model.init import build
from opencoca.model_card import Origin
from opencoca.train.state import fresh_state, load_state, save_state


@pytest.fixture
def no_wait(monkeypatch):
    """The disk is not waited for, which is most of a small save's time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize(
    ("tied", "ema_decay", "optimizer"),
    [(False, 0.0, "adamw"), (False, 0.9, "muon"), (True, 0.0, "muon"), (True, 0.9, "adamw")],
)
def test_training_state_comes_back_bit_for_bit(tmp_path, no_wait, tied, ema_decay, optimizer):
    config = dataclasses.replace(
        CONFIGURATION,
        model=dataclasses.replace(
            CONFIGURATION.model, text=dataclasses.replace(CONFIGURATION.model.text, tie_output=tied)
        ),
        optim=dataclasses.replace(CONFIGURATION.optim, ema_decay=ema_decay, optimizer=optimizer),
    )
    state = fresh_state(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for parameter in state.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        state.update_average(ema_decay)
    state.position, state.metrics = 17, {"loss": 0.1 + 0.2}
    assert bool(state.average) == bool(ema_decay)
    save_state(tmp_path / "c", state, config, VOCABULARY)
    back = load_state(tmp_path / "c", config, VOCABULARY, torch.device("cpu"))
    for (name, a), b in zip(state.model.named_parameters(), back.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (back.model.head.weight is back.model.unimodal.tokens.weight) == tied
    assert state.average.keys() == back.average.keys()
    assert all(torch.equal(average, back.average[name]) for name, average in state.average.items())
    for mine, theirs in zip(state.optimizers, back.optimizers, strict=True):
        names = {id(p): n for n, p in (*state.model.named_parameters(), *back.model.named_parameters())}
        moments, restored = ({names[id(p)]: m for p, m in o.state.items()} for o in (mine, theirs))
        assert moments and moments.keys() == restored.keys()
        for name, values in moments.items():
            assert values.keys() == restored[name].keys()
            assert all(torch.equal(value, restored[name][moment]) for moment, value in values.items()), name
    assert (back.step, back.position, back.metrics) == (2, 17, {"loss": 0.1 + 0.2})
    shipped = load_file(tmp_path / "c" / MODEL)
    expected = state.average or dict(state.model.named_parameters())
    assert shipped.keys() == expected.keys() and all(torch.equal(shipped[n], t) for n, t in expected.items())


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_folder_holds_the_state_dict(tmp_path, tied):
    text = dataclasses.replace(CONFIGURATION.model.text, tie_output=tied)
    config = dataclasses.replace(CONFIGURATION, model=dataclasses.replace(CONFIGURATION.model, text=text))
    model = build(config.model, seed=3)
    checkpoint.save(tmp_path / "m", config, VOCABULARY, model.state_dict())
    saved = checkpoint.load(tmp_path / "m")
    assert saved.config == config and saved.tokenizer.fingerprint == VOCABULARY.fingerprint
    assert saved.training is None and saved.state is None
    other = build(config.model, seed=4)
    checkpoint.load_weights(other, saved.weights, "it")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    refused(tmp_path / "m", "can be used for inference but not resumed from")


def test_what_is_loaded_outlives_its_files(tmp_path):
    """Safetensors maps the file into memory: a run that goes on must not hold or see the old one."""
    state = fresh_state(CONFIGURATION, torch.device("cpu"))
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    save_state(tmp_path / "c", state, CONFIGURATION, VOCABULARY)
    back = load_state(tmp_path / "c", CONFIGURATION, VOCABULARY, torch.device("cpu"))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert back.step == 0


def test_weights_of_another_model_are_listed(tmp_path):
    model = build(CONFIGURATION.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    weights["foreign"] = torch.zeros(1)
    del weights["head.weight"]
    weights["log_scale"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(model, weights, "runs/x")
    for words in ("runs/x", "1 missing (head.weight)", "1 foreign (foreign)", "log_scale (2,) instead of (1,)"):
        assert words in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # nothing half done
    weights = {name: tensor for name, tensor in before.items()} | {"log_scale": torch.ones(1, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match="log_scale"):
        checkpoint.load_weights(model, weights, "runs/x")


OLDER = Path(__file__).parent.parent / "data"  # model_v1 and model_v2: written by the last code of their version


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_older_version_gives_what_it_gave(version):
    expected = json.loads((OLDER / "model_v1_expected.json").read_text())  # version 2's were the same, bit for bit
    coca = opencoca.load(OLDER / f"model_v{version}", device="cpu")
    found = coca.embed_images([drawing("red", "circle")])[0], coca.embed_texts(["red circle on the left"])[0]
    for embed, values in zip(found, (expected["image"], expected["text"]), strict=True):
        assert (embed - torch.tensor(values)).abs().max() < 1e-6  # measured: 0 on the machine that wrote it


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_an_older_version_goes_on(tmp_path, version):
    shutil.copytree(OLDER / f"model_v{version}", tmp_path / "c")
    saved = checkpoint.load(tmp_path / "c", training=True)
    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["version"] == version
    state = load_state(tmp_path / "c", saved.config, saved.tokenizer, torch.device("cpu"))
    assert (state.step, state.position, state.metrics) == (2, 17, {"val/loss": 0.5})
    save_state(tmp_path / "c", state, saved.config, saved.tokenizer)
    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["version"] == checkpoint.VERSION == 3
    again = checkpoint.load(tmp_path / "c", training=True)
    assert again.config == saved.config and again.digest == saved.digest
    assert saved.training is not None and again.training is not None and saved.training.keys() == again.training.keys()


def test_the_origin_travels_with_the_model(tmp_path):
    origin = Origin("hf:some/coca", "abc", "mit", "00")
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, {"a": torch.ones(2)}, origin=origin)
    assert checkpoint.load(tmp_path / "m").origin == origin
    assert checkpoint.load(write(tmp_path / "c")).origin is None
    (tmp_path / "m" / ORIGIN).write_text("[]")
    seal(tmp_path / "m")
    with pytest.raises(CheckpointError, match=ORIGIN):
        checkpoint.load(tmp_path / "m")


def test_models_have_a_card_and_training_checkpoints_none(tmp_path):
    weights = {"encoder.a": torch.ones(1234), "head.weight": torch.ones(2, 3)}
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, weights)
    assert "| image encoder | 1,234 |" in (tmp_path / "m" / CARD).read_text()
    assert CARD in checkpoint.verify(tmp_path / "m")
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, weights, card="# Mine \u00e9\n")
    assert (tmp_path / "m" / CARD).read_text(encoding="utf-8") == "# Mine \u00e9\n"
    (tmp_path / "m" / CARD).write_text("# Yours\n")
    with pytest.raises(CheckpointError, match=CARD):
        checkpoint.load(tmp_path / "m")
    assert not (write(tmp_path / "c") / CARD).exists()


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path):
    folder = write(tmp_path / "c")
    assert len({(folder / name).stat().st_mode for name in (CONFIG, MODEL, TRAINING)}) == 1
