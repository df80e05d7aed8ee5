"""What a run of one process does about spikes, numbers that aren't finite, and SIGTERM."""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import rows, tiny_config, train_tiny, write_shards

from opencoca import checkpoint
from opencoca.errors import StoppedError, TrainingError
from opencoca.train import loop
from opencoca.train.signals import Signals
from opencoca.train.task import Outcome, Pretraining

STEPS = 26


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def light(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "matmul_rate", lambda *_, **__: 1e11)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yield
    torch.set_num_threads(threads)


class Hurt(Pretraining):
    """Pretraining whose loss is multiplied from one step on, for some steps; `act` is called in the first of them."""

    def __init__(self, config, steps: range, factor: float = 1.0, act=lambda: None) -> None:
        super().__init__(config.model, config.loss)
        self.hurt, self.factor, self.act, self.calls = steps, factor, act, 0

    def forward(self, model, batch) -> Outcome:
        outcome = super().forward(model, batch)
        self.calls += 1
        if self.calls not in self.hurt:
            return outcome
        if self.calls == self.hurt.start:
            self.act()
        return outcome._replace(sums={"captioning": outcome.sums["captioning"] * self.factor})


def config_of(shards: Path, **run: Any):
    run = {"log_every_steps": 5, "checkpoint_every_steps": 22, "max_loss_spike": 3.0, **run}
    return tiny_config(shards, optim={"steps": STEPS, "warmup_steps": 2}, run=run)


def bad_batches(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "bad_batches.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.resolve(run) / checkpoint.MODEL)


def test_a_spike_is_left_out_and_written_down(shards, tmp_path):
    config = config_of(shards)
    state = train_tiny(config, tmp_path / "run", task=Hurt(config, range(23, 25), 1e4))
    assert (state.step, state.position) == (STEPS, 8 * STEPS)
    assert [(row["step"], row["reason"], len(row["keys"])) for row in bad_batches(tmp_path / "run")] == [
        (23, "spike", 8),
        (24, "spike", 8),
    ]
    assert {23, 24} <= {row["step"] for row in rows(tmp_path / "run")}  # logged, though it isn't their turn


def test_a_left_out_step_changes_no_weight(shards, tmp_path):
    """One that is not left out would: Adam's step has the size of the rate whatever the loss."""
    kept = {"keep_checkpoints": 9, "checkpoint_every_steps": 1}
    config = config_of(shards, **kept)
    train_tiny(config, tmp_path / "run", task=Hurt(config, range(24, 25), 1e4))
    folders = [checkpoint.checkpoint_folder(tmp_path / "run", step) / checkpoint.TRAINING for step in (22, 23, 24, 25)]
    raw = [{n: x for n, x in load_file(path).items() if "raw." in n} for path in folders]
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(raw)]
    assert same == [False, True, False]


def test_ten_spikes_in_a_row_end_the_run(shards, tmp_path):
    config = tiny_config(shards, optim={"steps": 40, "warmup_steps": 2}, run={"max_loss_spike": 3.0})
    with pytest.raises(TrainingError, match="10 steps in a row"):
        train_tiny(config, tmp_path / "long", task=Hurt(config, range(22, 40), 1e4))
    state = checkpoint.load(tmp_path / "long", training=True).state
    assert state is not None and (state["step"], state["position"]) == (30, 240)


def test_the_guard_remembers_across_a_resume(shards, tmp_path):
    config = config_of(shards)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path / "run", task=Hurt(config, range(23, 24), 1.0, _interrupt))
    state = checkpoint.load(tmp_path / "run", training=True).state
    assert state is not None and len(state["spikes"]["losses"]) == state["step"] == 23
    train_tiny(config, tmp_path / "run", task=Hurt(config, range(1, 2), 1e4))  # its first step is the 24th
    assert [row["step"] for row in bad_batches(tmp_path / "run")] == [24]


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_batch_that_is_not_finite_is_written_down(shards, tmp_path):
    config = config_of(shards)
    with pytest.raises(TrainingError, match="weights are unchanged"):
        train_tiny(config, tmp_path / "run", task=Hurt(config, range(5, 6), float("nan")))
    (row,) = bad_batches(tmp_path / "run")
    assert (row["step"], row["reason"], row["loss"], len(row["keys"])) == (4, "not finite", "nan", 8)


def test_sigterm_saves_and_the_run_goes_on(shards, tmp_path):
    config, usual = config_of(shards), signal.getsignal(signal.SIGTERM)
    train_tiny(config, tmp_path / "undisturbed")
    with pytest.raises(StoppedError, match="SIGTERM"):
        task = Hurt(config, range(7, 8), 1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train_tiny(config, tmp_path / "run", task=task)
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000007"
    assert signal.getsignal(signal.SIGTERM) is usual
    train_tiny(config, tmp_path / "run")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "undisturbed")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_rank_only_notes_a_signal_until_all_agree():
    with Signals(alone=False) as signals:
        assert signals.received() == {"SIGINT": 0.0, "SIGTERM": 0.0}
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received() == {"SIGINT": 1.0, "SIGTERM": 0.0}
        signals.agreed({"SIGINT": 0.0, "SIGTERM": 0.0})  # the step in which it came is one too early
        with pytest.raises(StoppedError):  # another rank's
            signals.agreed({"SIGINT": 0.0, "SIGTERM": 3.0})
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_sigmoid_loss_trains_its_bias(shards, tmp_path):
    config = tiny_config(shards, optim={"steps": 6, "warmup_steps": 0})
    config = config.with_values(["loss.contrastive=sigmoid", "model.pair_bias=true", "model.init_temperature=0.1"])
    state = train_tiny(config, tmp_path / "run")
    losses = [row["contrastive"] for row in rows(tmp_path / "run") if "contrastive" in row]
    assert losses[-1] < losses[0]
    assert state.model.pair_bias.item() != -10.0
    again = checkpoint.load(tmp_path / "run")
    assert torch.equal(again.weights["pair_bias"], state.weights()["pair_bias"].detach())
