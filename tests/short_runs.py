"""Trainings of 12 steps on drawings, and what disturbs them: crashes, Ctrl-C, losses that go wrong.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny_config, train_tiny, write_shards

from opencoca import checkpoint
from opencoca.model.coca import CoCa
from opencoca.train import loop
from opencoca.train.task import Outcome, Pretraining
from opencoca.types import Batch


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def light(monkeypatch) -> Iterator[None]:
    """One thread; the machine isn't measured, which takes longer than the training here; the disk isn't waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "matmul_rate", lambda *_, **__: 1e11)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yield
    torch.set_num_threads(threads)


class CrashError(Exception):
    """Ends a run as a crash does: nothing is saved on the way out."""


class Watched(Pretraining):
    """Pretraining that calls `act` on what the 1-based step `at` makes of its batch."""

    def __init__(self, config, at: int, act) -> None:
        super().__init__(config.model, config.loss)
        self.at, self.act, self.steps = at, act, 0

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        self.steps += 1
        outcome = super().forward(model, batch)
        return (self.act(outcome) or outcome) if self.steps == self.at else outcome


def with_sum(change):
    """An action that changes the captioning sum."""
    return lambda outcome: outcome._replace(sums={"captioning": change(outcome.sums["captioning"])})


class Probe:
    """An evaluation that notes the weights it is given, and calls `act` the `at`-th time."""

    name = "probe"

    def __init__(self, at: int = 0, act=lambda: None) -> None:
        self.at, self.act, self.seen = at, act, []

    def __call__(self, model: CoCa):
        assert not model.training and not any(module.training for module in model.modules())
        self.seen.append({name: tensor.clone() for name, tensor in model.named_parameters()})
        if len(self.seen) == self.at:
            self.act()
        yield "calls", float(len(self.seen))
        yield "norm", float(sum(p.detach().norm() for p in model.parameters()))


def fail(error: BaseException):
    def act(*_):
        raise error

    return act


def final(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the latest checkpoint, moving average and optimizer included."""
    folder = checkpoint.resolve(run)
    files = (checkpoint.MODEL, checkpoint.TRAINING)
    return {f"{name}/{key}": tensor for name in files for key, tensor in load_file(folder / name).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 100, a.keys() ^ b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing, differing


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    """A run of 12 steps, measured every 4, saved every 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_rate", lambda *_, **__: 1e11)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        train_tiny(short(shards), run, [Probe()])
        torch.set_num_threads(threads)
    return run


def short(shards: Path, **sections):
    """12 steps, measured every 4, saved every 5, each of them logged."""
    run = {"eval_every_steps": 4, "checkpoint_every_steps": 5, "log_every_steps": 1, **sections.pop("run", {})}
    return tiny_config(shards, optim={"steps": 12, **sections.pop("optim", {})}, run=run, **sections)


def interrupt(*_):
    """A real Ctrl-C, from within."""
    os.kill(os.getpid(), signal.SIGINT)
