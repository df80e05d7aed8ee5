"""The training loop: it learns, reports, and measures the moving average without changing anything."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tests import short_runs
from tests.short_runs import Probe, assert_same, final, short
from tests.support import rows, tiny_config, train_tiny

from opencoca import checkpoint

shards, light, undisturbed = short_runs.shards, short_runs.light, short_runs.undisturbed


# --- an undisturbed run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(shards, tmp_path, optimizer):
    """Measured on two seeds, first and last 5 steps: contrastive 4.6 -> 0.5 to 1.4, captioning 5.1 -> 0.5 to 0.8."""
    optim = {"steps": 60, "warmup_steps": 5, "optimizer": optimizer}
    config = tiny_config(shards, optim=optim, run={"log_every_steps": 1})
    train_tiny(config, tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == list(range(1, 61))

    def mean(name, part):
        return sum(row[name] for row in part) / len(part)

    assert mean("captioning", logged[-5:]) < 0.3 * mean("captioning", logged[:5])
    assert mean("contrastive", logged[-5:]) < 0.5 * mean("contrastive", logged[:5])
    assert 2 * math.log(8) < logged[0]["contrastive"] < 7
    assert logged[0]["captioning"] == pytest.approx(math.log(320), rel=0.2)


def test_rows_are_whole_and_plausible(undisturbed, shards):
    config = short(shards)
    losses = [row for row in rows(undisturbed) if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, 13))
    for row in losses:
        assert row.keys() == {
            "step", "loss", "contrastive", "captioning", "scale", "gradient_norm",
            "learning_rate", "samples_per_s", "tokens_per_s", "matmul_gflops", "mfu", "data_wait", "peak_memory_gb",
        }  # fmt: skip
        assert all(math.isfinite(value) for value in row.values())
        assert row["loss"] == pytest.approx(row["contrastive"] + 2 * row["captioning"], rel=1e-5)
        assert 1 <= row["scale"] <= 100 and row["gradient_norm"] > 0
        assert 1 < row["samples_per_s"] < 1e5 and 0 < row["mfu"] < 1 and 0 <= row["data_wait"] < 1
        assert 0.05 < row["peak_memory_gb"] < 64
    assert losses[0]["learning_rate"] == pytest.approx(config.optim.peak_lr / 2)
    assert losses[1]["learning_rate"] == losses[2]["learning_rate"] == config.optim.peak_lr
    assert losses[-1]["learning_rate"] == pytest.approx(config.optim.peak_lr / 10)


def test_losses_are_logged_at_the_first_the_last_and_every_nth_step(shards, tmp_path):
    train_tiny(short(shards, run={"log_every_steps": 5, "eval_every_steps": 0}), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 5, 10, 12]


def test_the_run_folder(undisturbed, shards):
    assert checkpoint.resolve(undisturbed).name == "step-00000012"
    assert sorted(path.name for path in (undisturbed / "checkpoints").glob("*-*")) == ["step-00000010", "step-00000012"]
    assert checkpoint.load(undisturbed).config == short(shards)
    state = checkpoint.load(undisturbed, training=True).state
    assert state is not None and state["step"] == 12 and state["position"] == 12 * 8 and state["seconds"] > 0
    assert state["metrics"]["probe/calls"] == 3


# --- evaluation --------------------------------------------------------------------------------------------------


def test_evaluations_run_at_their_steps(undisturbed):
    measured = [(row["step"], row["probe/calls"]) for row in rows(undisturbed) if "probe/calls" in row]
    assert measured == [(4, 1), (8, 2), (12, 3)]


def test_without_an_interval_only_the_end_is_measured(shards, tmp_path):
    probe = Probe()
    train_tiny(short(shards, run={"eval_every_steps": 0}), tmp_path / "run", [probe])
    assert len(probe.seen) == 1


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_evaluations_get_the_weights_that_ship_and_change_nothing(shards, tmp_path, ema_decay):
    config = short(shards, optim={"ema_decay": ema_decay}, run={"checkpoint_every_steps": 4, "keep_checkpoints": 9})
    probe = Probe()
    state = train_tiny(config, tmp_path / "measured", [probe])
    assert state.model.training
    train_tiny(config, tmp_path / "plain")
    assert_same(final(tmp_path / "measured"), final(tmp_path / "plain"))
    assert len(probe.seen) == 3
    for step, seen in zip((4, 8, 12), probe.seen, strict=True):
        shipped = load_file(checkpoint.checkpoint_folder(tmp_path / "measured", step) / checkpoint.MODEL)
        assert seen.keys() == shipped.keys() and all(torch.equal(seen[name], shipped[name]) for name in seen)
    raw = dict(state.model.named_parameters())
    assert all(torch.equal(raw[name], tensor) for name, tensor in probe.seen[-1].items()) == (not ema_decay)
