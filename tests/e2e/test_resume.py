"""kill -9 in mid-training and inside saves: what is started again ends with the same weights, bit for bit.

The processes are forked from one that has imported everything, so that each takes a fraction of a second.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support import rows, tiny_config, train_tiny, write_shards

from opencoca import checkpoint
from opencoca.train import loop
from opencoca.train.task import Pretraining

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name != "posix", reason="kill -9 and forks are POSIX's"),
]
STEPS, PAUSE_S, DEADLINE_S = 16, 0.01, 120.0
DISK_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


class Slow(Pretraining):
    """Pretraining that rests at each step, so that a kill from outside finds it at work."""

    def loss(self, model, batch):
        time.sleep(PAUSE_S)
        return super().loss(model, batch)


def work(shards: Path, run: Path, die_at: int) -> None:
    """Trains to the end, or until its `die_at`-th call that touches the disk, before which it kills itself."""
    torch.set_num_threads(1)
    loop.matmul_rate = lambda *_, **__: 1e11  # measuring the machine takes longer than the training here
    loop.keep_freed_memory = lambda: None
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if die_at:
        calls = [0]

        def deadly(function):
            def call(*args, **kwargs):
                calls[0] += 1
                if calls[0] == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in DISK_CALLS:
            setattr(os, name, deadly(getattr(os, name)))
    optim = {"steps": STEPS, "ema_decay": 0.9, "optimizer": "muon"}
    config = tiny_config(shards, optim=optim, run={"log_every_steps": 1, "checkpoint_every_steps": 4})
    train_tiny(config, run, task=Slow(config.model, config.loss))


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support", "torch._dynamo", "torch.distributed.tensor"])
    return context


@contextlib.contextmanager
def training(context, shards: Path, run: Path, die_at: int = 0) -> Iterator:
    """A training process, ended at the latest when the block ends."""
    process = context.Process(target=work, args=(shards, run, die_at), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(DEADLINE_S)


def finish(context, shards: Path, run: Path, die_at: int = 0) -> int:
    """The exit code of a training process that is left alone."""
    with training(context, shards, run, die_at) as process:
        process.join(DEADLINE_S)
        assert process.exitcode is not None, "the training process hangs"
        return process.exitcode


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(context, shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert finish(context, shards, run) == 0
    return run


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """The same bytes in both weight files, the same losses, and nothing left lying about."""
    ours, theirs = checkpoint.resolve(run), checkpoint.resolve(undisturbed)
    assert ours.name == theirs.name == f"step-{STEPS:08d}"
    for name in (checkpoint.MODEL, checkpoint.TRAINING):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys() and len(a) > 50
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    losses = [
        [(row["step"], row["loss"], row["gradient_norm"]) for row in rows(folder)] for folder in (run, undisturbed)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert len(list((run / "checkpoints").iterdir())) == 3


def logged(run: Path) -> int:
    """The last step in a metrics file that is being written."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_killed_from_outside(context, shards, undisturbed, tmp_path):
    """At chosen steps, and some milliseconds later, whatever it does there."""
    chance, run, killed = random.Random(3), tmp_path / "run", []
    for step in (1, 3, 4, 7, 8, 11, 12, 15):
        with training(context, shards, run) as process:
            began = time.monotonic()
            while logged(run) < step and process.is_alive():
                assert time.monotonic() - began < DEADLINE_S, "the training process hangs"
                time.sleep(0.001)
            time.sleep(chance.random() * 3 * PAUSE_S)
            process.kill()
            process.join(DEADLINE_S)
            killed.append(process.exitcode)
    assert killed.count(-signal.SIGKILL) >= 6  # an overtaken process may have ended by itself
    assert finish(context, shards, run) == 0
    assert_same_end(run, undisturbed)


def test_killed_inside_saves(context, shards, undisturbed, tmp_path):
    """Before one call after another that flushes, renames or removes a file, through several saves."""
    run, latest, killed = tmp_path / "run", [], 0
    for die_at in range(2, 46, 3):
        code = finish(context, shards, run, die_at)
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        folder = checkpoint.latest_checkpoint(run)
        latest.append(checkpoint.load(folder, training=True).folder.name if folder else "")  # whole, whenever it died
    assert latest == sorted(latest) and killed >= 14, (latest, killed)
    assert len(set(latest)) >= 3
    assert finish(context, shards, run) == 0
    assert_same_end(run, undisturbed)


def test_an_interrupt_from_outside(context, shards, undisturbed, tmp_path):
    """SIGINT saves where it stands; nothing is trained twice."""
    run = tmp_path / "run"
    with training(context, shards, run) as process:
        began = time.monotonic()
        while logged(run) < 6:
            assert time.monotonic() - began < DEADLINE_S, "the training process hangs"
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGINT)
        process.join(DEADLINE_S)
        assert process.exitcode == 1  # multiprocessing's code for an exception
    step = int(checkpoint.resolve(run).name[5:])
    assert step >= 6 and rows(run)[-1]["step"] in (step, step - 1)
    assert finish(context, shards, run) == 0
    assert_same_end(run, undisturbed)
