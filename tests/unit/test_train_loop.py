"""The training loop: it learns, reports, measures the moving average, and every way out leads back in."""

import contextlib
import io
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.support import (
    rows,
    samples,
    tiny_config,
    tiny_loader,
    tiny_tokenizer,
    train_tiny,
    write_shards,
)

from opencoca import checkpoint
from opencoca.data.shards import ShardWriter
from opencoca.data.tokenizer import train_tokenizer
from opencoca.errors import CheckpointError, DataError, TrainingError
from opencoca.model.coca import CoCa
from opencoca.train import loop
from opencoca.train.metrics import ConsoleSink, JsonlSink, read_jsonl
from opencoca.train.saver import Saver
from opencoca.train.state import fresh_state
from opencoca.train.step import update
from opencoca.train.task import Outcome, Pretraining
from opencoca.types import Batch

CPU = torch.device("cpu")
FP32 = torch.autocast("cpu", torch.bfloat16, enabled=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def light(monkeypatch) -> Iterator[None]:
    """One thread; the machine isn't measured, which takes longer than the training here; the disk isn't waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "matmul_rate", lambda device, dtype: 1e11)
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
    assert a.keys() == b.keys() and len(a) > 100
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing


# --- an undisturbed run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    """A run of 12 steps, measured every 4, saved every 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_rate", lambda device, dtype: 1e11)
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


# --- evaluation -------------------------------------------------------------------------------------------------


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


# --- ways out, and back in --------------------------------------------------------------------------------------


def interrupt(*_):
    """A real Ctrl-C, from within."""
    os.kill(os.getpid(), signal.SIGINT)


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


# --- what a resumed run must be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optim", "peak_lr", 1e-4),
        ("optim", "steps", 13),
        ("optim", "ema_decay", 0.0),
        ("loss", "captioning_weight", 1.0),
        ("pixels", "fit", "pad"),
        ("run", "seed", 1),
        ("data", "batch_size", 9),
        ("data", "max_shift_px", 2),
        ("data", "text_buckets", 1),
        ("data", "train_split", "val"),
    ],
)
def test_other_settings_are_refused_by_name(shards, undisturbed, section, field, value):
    config = short(shards, **{section: {field: value}})
    before = (undisturbed / "config.json").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train_tiny(config, undisturbed)
    old = getattr(getattr(short(shards), section), field)
    assert f"{section}.{field}: {old} -> {value}" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert (undisturbed / "config.json").read_bytes() == before


def test_settings_that_change_nothing_may_change(shards, tmp_path, undisturbed):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", task=Watched(config, 8, fail(CrashError())))
    write_shards(tmp_path / "moved")
    run = {"log_every_steps": 3, "eval_every_steps": 0, "checkpoint_every_steps": 2, "keep_checkpoints": 1}
    train_tiny(short(tmp_path / "moved", run=run), tmp_path / "run")
    assert_same(final(tmp_path / "run"), final(undisturbed))


def test_other_data_and_another_tokenizer_are_refused(shards, tmp_path, undisturbed):
    with ShardWriter(tmp_path / "fewer") as writer:
        for sample in samples()[:50]:
            writer.add("train", *sample[:4])
    with pytest.raises(CheckpointError, match="trained on other pairs"):
        train_tiny(short(tmp_path / "fewer"), undisturbed)
    other = train_tokenizer([sample.caption for sample in samples()], 300, "bpe")
    with pytest.raises(CheckpointError, match=r"another tokenizer\.json"):
        train_tiny(short(shards), undisturbed, tokenizer=other)


def test_a_run_whose_latest_is_damaged_is_refused(shards, tmp_path):
    config = short(shards)
    with pytest.raises(CrashError):
        train_tiny(config, tmp_path / "run", task=Watched(config, 8, fail(CrashError())))
    path = checkpoint.resolve(tmp_path / "run") / checkpoint.TRAINING
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=checkpoint.TRAINING):
        train_tiny(config, tmp_path / "run")


# --- one update -------------------------------------------------------------------------------------------------


def stepped(config, act=lambda outcome: None):
    state, task = fresh_state(config, CPU), Watched(config, 1, act)
    batch = tiny_loader(config, tiny_tokenizer()).batch(0)
    return state, lambda: update(state, task, batch, config, FP32)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_with_nothing_finite_changes_nothing(shards, bad):
    """The loss alone may be infinite: its gradient needn't be."""

    def change(nats):
        if bad == "loss":
            return nats + math.inf
        return nats + (nats * 0).clamp(min=0).sqrt()  # of which the slope is infinite

    state, step = stepped(tiny_config(shards), with_sum(change))
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in state.average.items()}
    with pytest.raises(TrainingError, match="weights are unchanged"):
        step()
    assert state.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in state.average.items())
    assert step()["loss"].isfinite()  # the next batch is a good one


def test_gradients_are_clipped_and_reported_as_they_were(shards):
    free, clipped = (tiny_config(shards, optim={"clip_norm": norm}) for norm in (math.inf, 0.01))
    norms = []
    for config in (free, clipped):
        state, step = stepped(config)
        reported = step()["gradient_norm"].item()
        actual = math.sqrt(sum(p.grad.square().sum().item() for p in state.model.parameters() if p.grad is not None))
        norms.append((reported, actual))
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6) and norms[0][0] > 0.1
    assert norms[0][1] == pytest.approx(norms[0][0], rel=1e-4) and norms[1][1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("start", "end"), [(math.log(100) + 0.001, math.log(100)), (-0.5, 0.0)])
def test_the_temperature_is_clamped(shards, start, end):
    state, step = stepped(tiny_config(shards, optim={"peak_lr": 1e-6}))
    with torch.no_grad():
        state.model.log_scale.fill_(start)
    step()
    assert state.model.log_scale.item() == pytest.approx(end, abs=1e-6)


def test_the_moving_average_follows_early_and_then_slowly(shards):
    state, step = stepped(tiny_config(shards, optim={"ema_decay": 0.3, "warmup_steps": 0}))
    expected = {name: tensor.clone() for name, tensor in state.average.items()}
    for n in (1, 2, 3):
        step()
        decay = min(0.3, (1 + n) / (10 + n))
        for name, parameter in state.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, tensor in state.average.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_and_the_peak_it_is_compared_with(shards, tmp_path, monkeypatch, precision, dtype):
    asked = []
    monkeypatch.setattr(loop, "matmul_rate", lambda device, dtype: asked.append(dtype) or 1e11)
    config = short(shards, optim={"steps": 3, "warmup_steps": 1}, run={"precision": precision})
    state = train_tiny(config, tmp_path / precision)
    assert asked == [dtype]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in state.model.parameters())


# --- sinks ------------------------------------------------------------------------------------------------------


def test_jsonl_keeps_rows_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 3, "a"')
    with contextlib.closing(JsonlSink(path, resumed_step=2)) as sink:
        sink.write(3, {"a": 4.0})
        assert [row["a"] for row in read_jsonl(path)] == [1, 2, 4.0]  # a reader sees each row at once
    with contextlib.closing(JsonlSink(path, resumed_step=0)):
        assert read_jsonl(path) == []


def test_the_console_shows_plain_lines_where_it_is_no_terminal(shards, tmp_path):
    out = io.StringIO()
    sink = ConsoleSink(100, 0, Console(file=out, width=40))
    rate = {"learning_rate": 1e-3, "samples_per_s": 12.3}
    sink.write(20, {"loss": 3.0, "contrastive": 1.25, "captioning": 0.5, **rate})
    sink.write(40, {"loss": 2.5, "answering": 1.0, **rate})  # another task has other parts
    sink.write(40, {"val/i2t_recall@1": 0.25})
    sink.close()
    first, second, third = out.getvalue().splitlines()
    assert first.startswith(
        "step 20/100  loss 3.000  contrastive 1.250  captioning 0.500  lr 1.0e-03  12 samples/s  ETA"
    )
    assert second.startswith("step 40/100  loss 2.500  lr")
    assert third == "step 40  val/i2t_recall@1 0.25"


def test_the_console_shows_one_live_line_on_a_terminal():
    out = io.StringIO()
    sink = ConsoleSink(100, 10, Console(file=out, width=150, force_terminal=True))
    sink.write(20, {"loss": 3.0, "contrastive": 1.25, "captioning": 0.5, "learning_rate": 1e-3, "samples_per_s": 12.3})
    sink.close()
    assert "20/100" in out.getvalue() and "contrastive 1.250" in out.getvalue()
