"""Runs on several ranks: killed, stopped, resumed on another number of them, and hurt on one rank only."""

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.ranks import Ended, ends_of_ranks, on_ranks
from tests.support import rows, samples, tiny_config, tiny_tokenizer, write_shards

from opencoca import checkpoint
from opencoca.data.loader import PairLoader
from opencoca.data.shards import ShardReader, ShardWriter
from opencoca.errors import DataError
from opencoca.parallel.mesh import current
from opencoca.train import loop
from opencoca.train.task import Pretraining

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")]
STEPS, TIMEOUT_S = 8, 60.0


class Hurt(Pretraining):
    """Pretraining that notes its keys, and does something on one rank at one step (0-based, counted by calls)."""

    def __init__(self, config: Any, run: Path, kind: str = "", rank: int = 0, step: int = -1) -> None:
        super().__init__(config.model, config.loss)
        self.config_of_run, self.run, self.kind, self.calls = config, run, kind, 0
        self.at = step if rank == current().rank else -1

    def forward(self, model, batch):
        outcome = super().forward(model, batch)
        with (self.run.parent / f"{self.run.name}-keys-{current().rank}.jsonl").open("a") as file:
            file.write(json.dumps(batch.keys) + "\n")
        if self.calls == self.at:
            outcome = self.act(outcome)
        self.calls += 1
        return outcome

    def act(self, outcome):
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), signal.Signals[self.kind])
        factor = {"nan": math.nan, "inf": math.inf, "spike": 1e4}.get(self.kind, 1.0)
        return outcome._replace(sums={"captioning": outcome.sums["captioning"] * factor})


class Measured:
    """An evaluation that says how often it was called, by which rank; it may fail."""

    name = "measured"

    def __init__(self, fails: bool = False) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, model):
        if self.fails:
            raise DataError("no such split")
        self.calls += 1
        yield "calls", float(self.calls)
        yield "norm", float(sum(p.detach().double().square().sum() for p in model.parameters())) ** 0.5


def trained(shards: Path, run: Path, sections: dict, hurt: dict, fails: bool = False) -> dict[str, Any]:
    """Trains on this rank; returns where the run stands and the norm of the weights."""
    loop.matmul_rate = lambda *_, **__: 1e11
    os.fsync = lambda _: None
    settings = {"log_every_steps": 1, "eval_every_steps": 4, "checkpoint_every_steps": 3, **sections.get("run", {})}
    optim = {"steps": STEPS, "warmup_steps": 2, **sections.get("optim", {})}
    config = tiny_config(shards, optim=optim, run=settings, data=sections.get("data", {}))
    source, ranks, tokenizer = ShardReader(str(shards), "train"), current(), tiny_tokenizer()
    loader = PairLoader.from_config(config, source, tokenizer, ranks.rank, ranks.world)
    task = Hurt(config, run, **hurt)
    state = loop.train(config, run, task, loader, tokenizer, [Measured(fails)])
    finite = all(bool(torch.isfinite(p).all()) for p in state.model.parameters())
    timed = ("samples_per_s", "tokens_per_s", "matmul_gflops", "mfu", "data_wait", "peak_memory_gb")
    metrics = {name: value for name, value in state.metrics.items() if name not in timed}
    return {"step": state.step, "position": state.position, "metrics": metrics, "finite": finite}


def train_on(world: int, shards: Path, folder: Path, fails: bool = False, hurt: dict | None = None, **sections: Any):
    return on_ranks(world, trained, shards, folder, sections, hurt or {}, fails, timeout_s=TIMEOUT_S)


def ends_on(
    world: int, shards: Path, folder: Path, fails: bool = False, hurt: dict | None = None, **sections: Any
) -> list[Ended]:
    return ends_of_ranks(world, trained, shards, folder, sections, hurt or {}, fails, timeout_s=TIMEOUT_S)


def drawn(run: Path, ranks: int) -> list[list[str]]:
    """The keys of each step of a run, over all ranks, sorted within the step."""
    of_ranks = [
        [json.loads(line) for line in (run.parent / f"{run.name}-keys-{rank}.jsonl").read_text().splitlines()]
        for rank in range(ranks)
    ]
    return [sorted(key for keys in step for key in keys) for step in zip(*of_ranks, strict=True)]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.resolve(run)
    return {f"{path.name}/{n}": x for path in folder.glob("*.safetensors") for n, x in load_file(path).items()}


def assert_same(a: Path, b: Path) -> None:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    """Two ranks that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    first, second = train_on(2, shards, run)
    assert first == second and first["step"] == STEPS and first["position"] == 8 * STEPS and first["finite"]
    return run


def test_one_rank_writes_and_measures(undisturbed):
    logged = [row for row in rows(undisturbed) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, STEPS + 1))
    measured = [row for row in rows(undisturbed) if "measured/calls" in row]
    assert [(row["step"], row["measured/calls"]) for row in measured] == [(4, 1), (8, 2)]
    assert checkpoint.resolve(undisturbed).name == f"step-{STEPS:08d}"


def test_one_process_computes_the_same(shards, tmp_path, undisturbed):
    """In fp32; measured worst case of the losses 1.3e-6."""
    train_on(1, shards, tmp_path / "run")
    pairs = zip(rows(tmp_path / "run"), rows(undisturbed), strict=True)
    for ours, theirs in ((a, b) for a, b in pairs if "loss" in a):
        for name in ("loss", "contrastive", "captioning", "gradient_norm", "scale"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert drawn(tmp_path / "run", 1) == drawn(undisturbed, 2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(shards, tmp_path, undisturbed, parallel):
    began = time.monotonic()
    ends = ends_on(2, shards, tmp_path / "run", hurt={"kind": "kill", "rank": 1, "step": 4}, run={"parallel": parallel})
    assert ends[1].code == -signal.SIGKILL
    assert ends[0].code not in (0, None) and "lost another of the 2 ranks" in ends[0].error, ends
    assert time.monotonic() - began < TIMEOUT_S - 20
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000003"
    train_on(2, shards, tmp_path / "run", run={"parallel": parallel})
    if parallel == "ddp":
        assert_same(tmp_path / "run", undisturbed)
    else:
        assert len(list(checkpoint.resolve(tmp_path / "run").glob("model-*-of-00002.safetensors"))) == 2


def test_the_number_of_ranks_may_change(shards, tmp_path, undisturbed):
    run = tmp_path / "run"
    for world, step, parallel in ((2, 3, "fsdp"), (1, 3, "ddp"), (2, 99, "ddp")):
        stop = {"kind": "SIGTERM", "rank": 0, "step": step - 1}
        ends = ends_on(world, shards, run, hurt=stop, run={"parallel": parallel, "eval_every_steps": 0})
        assert {end.error.split(":")[0] for end in ends} == ({"StoppedError"} if step < 99 else {""}), ends
    both = [(run.parent / f"run-keys-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    alone, shared = [json.loads(line) for line in both[0][3:6]], both[0][:3] + both[0][6:]
    halves = zip(shared, both[1], strict=True)
    joined = [sorted(json.loads(a) + json.loads(b)) for a, b in halves]
    assert joined[:3] + [sorted(keys) for keys in alone] + joined[3:] == drawn(undisturbed, 2)
    ours, theirs = tensors(run), tensors(undisturbed)
    weights = [name for name in ours if name.startswith(checkpoint.MODEL)]
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in weights) < 2e-3  # Adam makes much of rounding


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_what_is_not_finite_on_one_rank_stops_all(shards, tmp_path, undisturbed, kind):
    ends = ends_on(2, shards, tmp_path / "run", hurt={"kind": kind, "rank": 1, "step": 4})
    assert all(end.error.startswith("NotFiniteError: step 4: ") for end in ends), ends
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000004"
    assert all(bool(x.isfinite().all()) for x in tensors(tmp_path / "run").values())
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "bad_batches.jsonl").read_text().splitlines()]
    assert (row["step"], row["reason"]) == (4, "not finite")
    assert sorted(row["keys"]) == drawn(undisturbed, 2)[4]
    train_on(2, shards, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)


def test_a_spike_on_one_rank_is_left_out_by_all(shards, tmp_path):
    settings = {"optim": {"steps": 24}, "run": {"max_loss_spike": 3.0, "eval_every_steps": 0}}
    first, second = train_on(2, shards, tmp_path / "run", hurt={"kind": "spike", "rank": 0, "step": 22}, **settings)
    assert first == second and first["finite"] and first["step"] == 24 and first["position"] == 24 * 8
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "bad_batches.jsonl").read_text().splitlines()]
    assert (row["step"], row["reason"], len(row["keys"])) == (23, "spike", 8)


@pytest.mark.parametrize(("kind", "error"), [("SIGTERM", "StoppedError"), ("SIGINT", "KeyboardInterrupt")])
def test_a_signal_to_one_rank_stops_all_after_the_step(shards, tmp_path, undisturbed, kind, error):
    ends = ends_on(2, shards, tmp_path / "run", hurt={"kind": kind, "rank": 1, "step": 4})
    assert [end.error.split(":")[0] for end in ends] == [error] * 2, ends
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000005"
    train_on(2, shards, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)


def test_an_evaluation_that_fails_ends_all_ranks_alike(shards, tmp_path):
    ends = ends_on(2, shards, tmp_path / "run", fails=True)
    assert [end.error for end in ends] == ["DataError: no such split", "DataError: rank 0: no such split"]
    assert checkpoint.resolve(tmp_path / "run").name == "step-00000004"


def test_too_many_unreadable_pictures_stop_all_ranks(tmp_path):
    with ShardWriter(tmp_path / "data") as writer:
        for i, sample in enumerate(samples()):
            picture = sample.picture[:70] if i % 3 == 0 else sample.picture
            writer.add("train", sample.key, picture, sample.caption, sample.attributes)
    ends = ends_on(2, tmp_path / "data", tmp_path / "run", data={"max_skip_fraction": 0.01})
    assert len({end.error for end in ends}) == 1 and "couldn't be read" in ends[0].error, ends
    listed = [json.loads(line)["key"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) >= 10


def second_writer(shards: Path, run: Path) -> str:
    """The error of a group of ranks in a run folder that this process's first rank has locked."""
    from opencoca.errors import TrainingError
    from opencoca.train.run_folder import _lock, only_writer

    lock = _lock(run)
    if current().first:
        lock.__enter__()
    with pytest.raises(TrainingError, match="another process is training"), only_writer(run, current()):
        pass
    return "refused"


def test_a_second_run_in_the_folder_is_refused_on_all_ranks(shards, tmp_path):
    assert on_ranks(2, second_writer, shards, tmp_path / "run") == ["refused"] * 2
