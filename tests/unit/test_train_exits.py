"""Every way out of a training leads back in: Ctrl-C, crashes, bad losses, damaged pictures, full disks."""

import json
import math
import signal
from pathlib import Path

import pytest
from tests import short_runs
from tests.short_runs import CrashError, Probe, Watched, assert_same, fail, final, interrupt, short, with_sum
from tests.support import rows, samples, train_tiny

from opencoca import checkpoint
from opencoca.data.shards import ShardWriter
from opencoca.errors import CheckpointError, DataError, TrainingError
from opencoca.train.saver import Saver

shards, light, undisturbed = short_runs.shards, short_runs.light, short_runs.undisturbed


@pytest.mark.parametrize("at", [1, 4, 5, 12])
@pytest.mark.parametrize("real", [False, True])
def test_ctrl_c_in_a_step_leaves_a_checkpoint_that_resumes(shards, tmp_path, undisturbed, at, real):
    config = short(shards)
    act = interrupt if real else fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path / "run", [Probe()], Watched(config, at, act))
    done = at if real else at - 1  # a real one waits until the step is whole
    if done:
        state = checkpoint.load(tmp_path / "run", training=True).state
        assert state is not None and (state["step"], state["position"]) == (done, 8 * done)
    train_tiny(config, tmp_path / "run", [Probe()])
    assert_same(final(tmp_path / "run"), final(undisturbed))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_in_an_evaluation_is_made_up_for(shards, tmp_path, undisturbed, at):
    config = short(shards)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path / "run", [Probe(at, interrupt)])
    state = checkpoint.load(tmp_path / "run", training=True).state
    assert state is not None and state["step"] == 4 * at
    train_tiny(config, tmp_path / "run", [Probe()])
    assert_same(final(tmp_path / "run"), final(undisturbed))
    measured = [row["step"] for row in rows(tmp_path / "run") if "probe/norm" in row]
    assert measured == [4, 8, 12]
    norms = [[row["probe/norm"] for row in rows(run) if "probe/norm" in row] for run in (tmp_path / "run", undisturbed)]
    assert norms[0] == norms[1]
    assert not checkpoint.load(tmp_path / "run", training=True).state["owes_evaluation"]  # pyright: ignore


def test_ctrl_c_while_saving_saves_again(shards, tmp_path, undisturbed, monkeypatch):
    config, moved = short(shards), checkpoint.mark_latest

    def mark_latest(folder, keep):
        monkeypatch.setattr(checkpoint, "mark_latest", moved)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "mark_latest", mark_latest)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(config, tmp_path / "run", [Probe()])
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000005"
    train_tiny(config, tmp_path / "run", [Probe()])
    assert_same(final(tmp_path / "run"), final(undisturbed))


def test_a_crash_goes_on_from_the_last_checkpoint_and_its_rows(shards, tmp_path, undisturbed):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", [Probe()], Watched(config, 9, fail(CrashError())))
    assert rows(tmp_path / "run")[-1]["step"] == 8
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000005"
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.')  # cut short
    train_tiny(config, tmp_path / "run", [Probe()])
    assert_same(final(tmp_path / "run"), final(undisturbed))

    def numbers(run):
        timed = ("samples_per_s", "tokens_per_s", "mfu", "data_wait", "peak_memory_gb", "probe/calls")
        return [{name: value for name, value in row.items() if name not in timed} for row in rows(run)]

    assert numbers(tmp_path / "run") == numbers(undisturbed)


def test_a_crash_before_the_first_checkpoint_starts_afresh(shards, tmp_path, undisturbed):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", task=Watched(config, 3, fail(CrashError())))
    train_tiny(config, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))
    assert_same(final(tmp_path / "run"), final(undisturbed))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_finite_weights(shards, tmp_path, undisturbed, bad):
    config = short(shards)
    task = Watched(config, 8, with_sum(lambda nats: nats * bad))
    with pytest.raises(TrainingError, match=r"step 7: .*weights are unchanged") as caught:
        train_tiny(config, tmp_path / "run", [Probe()], task)
    assert "\n" not in str(caught.value)
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000007"
    assert all(tensor.isfinite().all() for tensor in final(tmp_path / "run").values())
    train_tiny(config, tmp_path / "run", [Probe()])  # what was wrong is right now: it goes on as if nothing had been
    assert_same(final(tmp_path / "run"), final(undisturbed))


def with_damage(folder: Path, every: int) -> Path:
    """The drawings as shards, every so manyth with a picture that is cut short."""
    with ShardWriter(folder) as writer:
        for i, sample in enumerate(samples()):
            picture = sample.picture[:70] if i % every == 0 else sample.picture
            writer.add("train", sample.key, picture, sample.caption, sample.attributes)
    return folder


def test_damaged_pictures_are_left_out_counted_and_listed(tmp_path):
    config = short(with_damage(tmp_path / "data", every=24))
    train_tiny(config, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    listed = [json.loads(line)["key"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    damaged = {sample.key for sample in samples()[::24]}
    assert last["step"] == 12 and last["skipped"] >= len(listed) > 0
    assert set(listed) <= damaged and len(set(listed)) == len(listed)
    assert last["skipped_share"] == pytest.approx(last["skipped"] / (12 * 8 + last["skipped"]))


def test_too_much_damage_ends_the_run_and_leaves_a_checkpoint(tmp_path):
    config = short(with_damage(tmp_path / "data", every=3), data={"max_skip_fraction": 0.005})
    with pytest.raises(DataError, match=r"of \d+ pairs couldn't be read .*max_skip_fraction 0\.005") as caught:
        train_tiny(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and "quarantine.jsonl" in str(caught.value)
    assert 1 <= checkpoint.load(tmp_path / "run", training=True).state["step"] < 12  # pyright: ignore


def test_a_save_that_failed_in_the_background_ends_the_run_at_the_next_step(shards, tmp_path, monkeypatch):
    """Not at the next save, which may be hours away."""
    save = Saver.save

    def saved(self, state):
        save(self, state)
        self._thread.join()  # so that it has failed by the next step

    monkeypatch.setattr(Saver, "save", saved)
    monkeypatch.setattr(checkpoint, "finish", lambda *_: (_ for _ in ()).throw(CheckpointError("the disk is full")))
    config = short(shards, run={"async_save": True, "checkpoint_every_steps": 2})
    with pytest.raises(CheckpointError, match="the disk is full"):
        train_tiny(config, tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["step"] == 3


def test_a_finished_run_returns_at_once(shards, tmp_path, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}
    config = short(shards)
    state = train_tiny(config, undisturbed, [Probe(1, fail(CrashError()))], Watched(config, 1, fail(CrashError())))
    assert state.step == 12
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"} == before
    assert_same(
        {f"{checkpoint.MODEL}/{name}": tensor for name, tensor in state.average.items()},
        {name: tensor for name, tensor in final(undisturbed).items() if name.startswith(checkpoint.MODEL)},
    )


def test_a_second_writer_is_refused_while_the_first_runs(shards, tmp_path):
    config, refused = short(shards), []

    def second():
        with pytest.raises(TrainingError, match="another process is training") as caught:
            train_tiny(config, tmp_path / "run")
        refused.append(str(caught.value))
        train_tiny(short(shards, optim={"steps": 3}), tmp_path / "other")  # another folder is free

    train_tiny(config, tmp_path / "run", [Probe(1, second)])
    assert len(refused) == 1 and str(tmp_path / "run") in refused[0]
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, 13))
    train_tiny(config, tmp_path / "run")  # the lock is free again
