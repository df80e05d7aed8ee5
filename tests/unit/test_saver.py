"""Checkpoints of a run: written at once or in the background, with what a prepared model has, and for whom they fit."""

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny_tokenizer
from torch import nn

from opencoca import checkpoint, recipes
from opencoca.checkpoint import MODEL, TRAINING
from opencoca.errors import CheckpointError
from opencoca.train.saver import Saver
from opencoca.train.state import TrainState, fresh_state, load_state, save_state

CPU, TOKENIZER = torch.device("cpu"), tiny_tokenizer()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """The disk is not waited for, which is most of a small save's time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def config_of(**sections):
    config = recipes.tiny.tiny()
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


def moved_on(state: TrainState) -> TrainState:
    generator = torch.Generator().manual_seed(state.step)
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in state.optimizers:
        optimizer.step()
    state.step += 1
    state.update_average(0.9)
    return state


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (MODEL, TRAINING)}


class Gate:
    """A `write_part` that waits until it is let through."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.passed, self.real = threading.Event(), 0, checkpoint.write_part
        monkeypatch.setattr(checkpoint, "write_part", self)

    def __call__(self, *args):
        assert self.open.wait(30)
        self.passed += 1
        return self.real(*args)


def test_a_background_save_writes_what_was_when_it_was_called(tmp_path, monkeypatch):
    config = config_of(run={"async_save": True})
    state = moved_on(fresh_state(config, CPU))
    save_state(tmp_path / "at_once", state, config, TOKENIZER)
    gate = Gate(monkeypatch)
    with Saver(tmp_path / "run", config, TOKENIZER) as saver:
        saver.save(state)
        saver.check()
        assert checkpoint.latest_checkpoint(tmp_path / "run") is None
        state.metrics["loss"] = 1.0
        moved_on(state)
        gate.open.set()
        saver.wait()
        assert tensors(checkpoint.resolve(tmp_path / "run")) == tensors(tmp_path / "at_once")
        assert load_state(tmp_path / "run", config, TOKENIZER, CPU).metrics == {}
        saver.save(state)  # into the same buffers
    back = load_state(tmp_path / "run", config, TOKENIZER, CPU)
    assert (back.step, back.metrics) == (2, {"loss": 1.0})
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), back.model.parameters(), strict=True))


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    config = config_of(run={"async_save": True})
    state, gate = fresh_state(config, CPU), Gate(monkeypatch)
    saver = Saver(tmp_path / "run", config, TOKENIZER)
    saver.save(state)
    state.step = 1
    threading.Timer(0.2, gate.open.set).start()
    saver.save(state)
    assert (tmp_path / "run" / "checkpoints" / "step-00000000").is_dir()
    saver.wait()
    assert gate.passed == 2


@pytest.mark.parametrize("call", ["check", "wait", "save", "with"])
def test_an_error_in_the_background_comes_out_at_the_next_call(tmp_path, monkeypatch, call):
    config = config_of(run={"async_save": True})
    state = fresh_state(config, CPU)
    with Saver(tmp_path / "run", config, TOKENIZER) as saver:
        saver.save(state)
    monkeypatch.setattr(checkpoint, "finish", lambda *_: (_ for _ in ()).throw(CheckpointError("the disk is full")))
    state.step = 1
    saver = Saver(tmp_path / "run", config, TOKENIZER)
    with pytest.raises(CheckpointError, match="the disk is full"):
        if call == "with":
            with saver:
                saver.save(state)
        else:
            saver.save(state)
            assert saver._thread is not None
            saver._thread.join()
            saver.save(state) if call == "save" else getattr(saver, call)()
    saver.wait()  # it is told once
    assert load_state(tmp_path / "run", config, TOKENIZER, CPU).step == 0
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step-00000000"]


def test_an_error_of_the_loop_is_not_hidden_by_one_of_the_save(tmp_path, monkeypatch):
    config = config_of(run={"async_save": True})
    monkeypatch.setattr(checkpoint, "finish", lambda *_: (_ for _ in ()).throw(CheckpointError("the disk is full")))
    with pytest.raises(KeyboardInterrupt), Saver(tmp_path / "run", config, TOKENIZER) as saver:
        saver.save(fresh_state(config, CPU))
        raise KeyboardInterrupt


def prepare(model):
    """Freezes a part, and adds one, with a buffer that is saved and one that isn't."""
    model.encoder.requires_grad_(False)
    model.extra = nn.BatchNorm1d(4)
    model.extra.register_buffer("scratch", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_prepared_model_comes_back_with_its_parts(tmp_path, ema_decay):
    config = config_of(optim={"ema_decay": ema_decay, "frozen": ("unimodal",)})
    state = moved_on(fresh_state(config, CPU, prepare))
    state.model.extra.running_mean.fill_(3.0)
    save_state(tmp_path / "c", state, config, TOKENIZER)
    back = load_state(tmp_path / "c", config, TOKENIZER, CPU, prepare)
    ours, theirs = state.model.state_dict(), back.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert theirs["extra.running_mean"].tolist() == [3.0] * 4
    assert "extra.scratch" not in checkpoint.load(tmp_path / "c").weights
    frozen = {name for name, p in back.model.named_parameters() if not p.requires_grad}
    assert {name.partition(".")[0] for name in frozen} == {"encoder", "unimodal"}
    stored = load_file(tmp_path / "c" / TRAINING)
    assert not [key for key in stored if any(key.endswith(name) for name in frozen)]  # written once, in the weights
    assert [n for n, average in state.average.items() if not torch.equal(average, back.average[n])] == []
    with pytest.raises(CheckpointError, match="extra"):
        load_state(tmp_path / "c", config, TOKENIZER, CPU)


def test_what_no_optimizer_knows_is_refused(tmp_path):
    config = config_of()
    save_state(tmp_path / "c", moved_on(fresh_state(config, CPU)), config, TOKENIZER)
    with pytest.raises(CheckpointError, match=r"no place for \(optimizer\.encoder"):
        load_state(tmp_path / "c", config, TOKENIZER, CPU, lambda model: model.encoder.requires_grad_(False) and None)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "micro_batch", 4),
        ("run", "parallel", "fsdp"),
        ("run", "async_save", True),
        ("data", "workers", 3),
        ("data", "max_skip_fraction", 0.5),
        ("loss", "caption_chunk", 7),
        ("loss", "contrastive_chunk", 7),
    ],
)
def test_what_changes_no_result_may_change_between_runs(tmp_path, section, field, value):
    config = config_of()
    save_state(tmp_path / "c", fresh_state(config, CPU), config, TOKENIZER)
    load_state(tmp_path / "c", config_of(**{section: {field: value}}), TOKENIZER, CPU)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "seed", 1),
        ("data", "batch_size", 4),
        ("data", "shuffle_window", 2),
        ("data", "flip", True),
        ("loss", "contrastive_weight", 0.5),
        ("loss", "multi_positive", True),
        ("optim", "frozen", ("encoder",)),
    ],
)
def test_what_changes_results_may_not(tmp_path, section, field, value):
    config = config_of()
    save_state(tmp_path / "c", fresh_state(config, CPU), config, TOKENIZER)
    with pytest.raises(CheckpointError, match=rf"{section}\.{field}: .* -> "):
        load_state(tmp_path / "c", config_of(**{section: {field: value}}), TOKENIZER, CPU)
