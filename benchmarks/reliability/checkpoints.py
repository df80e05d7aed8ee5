"""Checkpoints under kills, full disks, damage and attacks: rows 1, 2, 3, 8, 10, 11 and 30 of the reliability sheet.

Run from the repository's root: `python -m benchmarks.reliability.checkpoints`. Every row has its trials, those that
went as they must, and silent failures: something wrong came back, or was lost, without an error. The same trials on
what others use (torch.save, safetensors alone, torch.distributed.checkpoint) stand beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import write_result
from benchmarks.reliability.checkpoints_attacks import attacks
from benchmarks.reliability.checkpoints_others import OTHERS, Tensors, full_disks, killed_saves
from tests.checkpoints import CONFIGURATION, DISK_CALLS, VOCABULARY, file_size_limit, value_of, write
from tests.support import rows, tiny_config, tiny_tokenizer, write_shards

from opencoca import checkpoint
from opencoca.checkpoint import Piece, pieces
from opencoca.data.loader import PairLoader
from opencoca.data.shards import ShardReader
from opencoca.errors import CheckpointError, OpenCoCaError
from opencoca.train import loop
from opencoca.train.task import Pretraining

STEPS, EVERY, PATIENCE_S = 150, 5, 60.0
Row = dict[str, Any]


# --- 1 and 3: a training is killed or asked to stop ------------------------------------------------------------------


class Noting(PairLoader):
    """A loader that notes which samples it gave at which position."""

    notes: Path

    def batches(self, position: int) -> Iterator:
        for batch, after in super().batches(position):
            with self.notes.open("a") as file:
                file.write(f"{position} {hashlib.sha256(' '.join(batch.keys).encode()).hexdigest()}\n")
            position = after
            yield batch, after


def train(shards: Path, run: Path, keep: int, in_background: bool) -> None:
    """Trains in `run`, from its latest checkpoint if there is one; a request to stop ends with exit code 143."""
    torch.set_num_threads(1)
    loop.matmul_rate = lambda device, dtype: 1e11  # measuring the machine takes longer than the training here
    loop.keep_freed_memory = lambda: None
    os.dup2(os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    settings = {"log_every_steps": 1, "checkpoint_every_steps": EVERY, "keep_checkpoints": keep}
    optim = {"steps": STEPS, "ema_decay": 0.9, "optimizer": "muon"}
    config = tiny_config(shards, optim=optim, run={**settings, "async_save": in_background})
    tokenizer = tiny_tokenizer()
    loader = Noting.from_config(config, ShardReader(config.data.folder, "train"), tokenizer)
    loader.notes = run.with_suffix(".notes")
    try:
        loop.train(config, run, Pretraining(config.model, config.loss), loader, tokenizer)
    except OpenCoCaError as error:
        if type(error).__name__ != "StoppedError":
            raise
        os._exit(128 + signal.SIGTERM)


def notes(run: Path) -> list[tuple[int, str]]:
    """What `Noting` wrote, but for a line that a kill cut short."""
    path = run.with_suffix(".notes")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of every step that was logged whole."""
    path = run / "metrics.jsonl"
    if path.exists() and not path.read_text().endswith("\n"):  # cut short by the kill; the next start repairs it
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    else:
        lines = rows(run) if path.exists() else []
    return {row["step"]: (row["loss"], row["gradient_norm"]) for row in lines}


def tensor_digests(folder: Path) -> tuple[str, str]:
    """sha256 of weights and optimizer, taken from the files, which must be what the manifest says."""
    files = checkpoint.verify(folder)
    return files[checkpoint.MODEL]["sha256"], files[checkpoint.TRAINING]["sha256"]


def interrupted(context: Any, work: Path, trials: int, with_signal: signal.Signals) -> Row:
    """One training after another, each interrupted at random instants until it is through, against one left alone.

    A trial passes where the latest checkpoint is whole, and its bytes, the losses of all steps and the order of samples
    up to there are those of the training that was left alone. A request to stop must also lose no step.
    """
    chance, outcome, shards = random.Random(trials), Counter(), write_shards(work / "shards")
    alone = work / "alone"
    process = context.Process(target=train, args=(shards, alone, STEPS, False))
    process.start()
    process.join(PATIENCE_S * 5)
    expected = {folder.name: tensor_digests(folder) for folder in (alone / "checkpoints").glob("step-*")}
    expected_losses, expected_order, runs = losses(alone), dict(notes(alone)), 0
    assert process.exitcode == 0 and len(expected) == STEPS // EVERY, alone.with_suffix(".log").read_text()[-2000:]
    run, began, problems = work / "run-0", time.monotonic(), Counter()
    while outcome["trials"] < trials:
        before = len(notes(run))
        process = context.Process(target=train, args=(shards, run, 2, runs % 2 == 1), daemon=True)
        process.start()
        deadline = time.monotonic() + PATIENCE_S
        while len(notes(run)) <= before + 1 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)  # it is at work
        process.join(chance.random() * 0.6)
        if process.is_alive():
            os.kill(process.pid, with_signal)
        process.join(PATIENCE_S)
        hangs = process.exitcode is None
        process.kill()
        ended = process.exitcode == 0
        outcome["trials"] += not ended
        wrong = []
        if not ended and process.exitcode != (-with_signal if with_signal == signal.SIGKILL else 143):
            wrong.append("hangs" if hangs else f"exit code {process.exitcode}")
        latest = checkpoint.latest_checkpoint(run)
        try:
            whole = latest is None or tensor_digests(latest)
        except CheckpointError:
            whole = False
        step = 0 if latest is None else int(latest.name.removeprefix("step-"))
        if not whole or (step % EVERY == 0 and latest is not None and whole != expected[latest.name]):
            wrong.append("another checkpoint")
        if any(expected_order.get(position) != keys for position, keys in notes(run)):
            wrong.append("another order")
        found = losses(run)
        if any(expected_losses[step] != values for step, values in found.items()):
            wrong.append("other losses")
        if not ended and with_signal == signal.SIGTERM and step < max(found, default=0):
            wrong.append("lost steps")
        if ended and step != STEPS:
            wrong.append("no end")
        problems.update(wrong)
        outcome["passes"] += not wrong and not ended
        outcome["silent_failures"] += any(word.split()[0] in ("another", "other", "lost", "no") for word in wrong)
        if ended:
            runs += 1
            run = work / f"run-{runs}"
    return {
        **_counts(outcome),
        "trainings_finished": runs,
        "problems": dict(problems),
        "seconds": round(time.monotonic() - began),
    }


# --- 2 and 8: a save is killed, or meets a full disk -----------------------------------------------------------------


def save_step(run: Path, step: int, in_parts: bool, size: int = 2000) -> None:
    """Saves a checkpoint whose content is its step, as one process does or as two ranks do."""
    folder = checkpoint.checkpoint_folder(run, step)
    if not in_parts:
        checkpoint.mark_latest(write(folder, float(step), size), keep=2)
        return
    checkpoint.begin(folder)
    value, files = torch.full((size,), float(step)), {}
    small, half = torch.full((3, 2), float(step)), size // 2
    for part in range(2):
        own = value[part * half : (part + 1) * half]
        weights = {"a": Piece(own, (part * half,)), **({"b": Piece(small, (0, 0))} if part == 0 else {})}
        training = {"raw.a": Piece(own + 0.5, (part * half,))}
        files |= checkpoint.write_part(folder, weights, training, part, 2)
    checkpoint.finish(folder, files, CONFIGURATION, VOCABULARY, {"step": step})
    for part in range(2):
        checkpoint.verify(folder, part=part, parts=2)
    checkpoint.move_latest(folder, keep=2)


def save_and_die(run: Path, in_parts: bool, at: int, after: bool, calls_file: Path | None) -> None:
    """Saves step 2, and kills itself at the `at`-th call that touches the disk: before it (half written) or after."""
    calls = [0]

    def deadly(function: Callable, half: Callable | None = None) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            mine = calls[0] == at
            if mine and not after:
                if half:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    write_text, save_file = Path.write_text, pieces.save_file
    for name in DISK_CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    Path.write_text = deadly(write_text, lambda path, text, *_: write_text(path, text[: len(text) // 2]))
    pieces.save_file = deadly(save_file, lambda _, path, __: path.write_bytes(b"half"))
    save_step(run, 2, in_parts)
    if calls_file:
        calls_file.write_bytes(str(calls[0]).encode())


def killed_in_saves(context: Any, work: Path, most: int) -> Row:
    """Kills at every call that touches the disk, before and after it: the old or the new, and the next save works."""
    outcome, points = Counter(), 0
    for in_parts in (False, True):
        run, counted = work / "run", work / "calls"
        shutil.rmtree(run, ignore_errors=True)
        save_step(run, 1, in_parts)
        _finish(context.Process(target=save_and_die, args=(run, in_parts, 0, False, counted)))
        calls = int(counted.read_text())
        points += calls
        for at in range(1, calls + 1)[:: max(1, 4 * calls // most)]:
            for after in (False, True):
                shutil.rmtree(run)
                save_step(run, 1, in_parts)
                code = _finish(context.Process(target=save_and_die, args=(run, in_parts, at, after, None)))
                if code == 0:  # this save touched the disk less often than the one that was counted: no kill, no trial
                    outcome["not_reached"] += 1
                    continue
                outcome["trials"] += 1
                try:
                    seen = value_of(run)
                    save_step(run, 3, in_parts)
                    good = code == -signal.SIGKILL and seen in (1.0, 2.0) and value_of(run) == 3.0
                    outcome["silent_failures"] += seen not in (1.0, 2.0)
                    outcome["passes"] += good
                except (CheckpointError, ValueError):
                    outcome["lost"] += 1
    return {**_counts(outcome), "places": points, "lost": outcome["lost"], "not_reached": outcome["not_reached"]}


def full_disk(work: Path, trials: int) -> Row:
    """The system refuses to let files grow beyond a random size: one line of error, and the old checkpoint loads."""
    run, outcome, chance, size = work / "run", Counter(), random.Random(8), 50_000
    save_step(run, 1, False, size)
    for trial in range(trials):
        outcome["trials"] += 1
        with file_size_limit(chance.randrange(4 * size)):  # the largest file has more than this
            try:
                save_step(run, 2, trial % 2 == 1, size * (1 + trial % 2))
                failed = False
            except CheckpointError as error:
                failed = "\n" not in str(error) and "can't write" in str(error)
        seen = value_of(run)
        left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".partial-step")]
        if trial % 2:
            checkpoint.abandon(checkpoint.checkpoint_folder(run, 2))  # what the trainer does for its ranks
            left = []
        outcome["passes"] += failed and seen == 1.0 and not left
        outcome["silent_failures"] += not failed or seen != 1.0
    return _counts(outcome)


# --- 10 and 11: damage -----------------------------------------------------------------------------------------------


def damaged(work: Path, trials: int, change: Callable[[bytes, random.Random], bytes]) -> Row:
    """A checkpoint of one process and one of two ranks, each file changed in turn, the pointer to the latest too."""
    outcome, chance = Counter(), random.Random(10)
    for in_parts in (False, True):
        run = work / f"run-{in_parts}"
        for step in (2, 3):  # two whose names differ in one bit
            save_step(run, step, in_parts, 500)
        folder = checkpoint.resolve(run)
        paths = [*sorted(folder.iterdir()), run / "checkpoints" / "latest"]
        for trial in range(trials // 2):
            path = paths[trial % len(paths)]
            whole = path.read_bytes()
            path.write_bytes(change(whole, chance))
            outcome["trials"] += 1
            try:
                outcome["harmless" if value_of(run) == 3.0 else "silent_failures"] += 1
            except CheckpointError as error:
                outcome["detected"] += "\n" not in str(error)
            except ValueError:  # it was loaded, and the values differ
                outcome["silent_failures"] += 1
            path.write_bytes(whole)
    passes = outcome["detected"] + outcome["harmless"]
    return {**_counts(outcome | Counter(passes=passes)), "harmless": outcome["harmless"]}


def damaged_elsewhere(work: Path, trials: int, change: Callable[[bytes, random.Random], bytes]) -> dict[str, Row]:
    """The same damage to what others write, as it is usually read: equal tensors, an error, or silently others."""
    table: dict[str, Row] = {}
    tensors: Tensors = {"a": torch.full((500,), 3.0), "b": torch.full((3, 2), 3.0)}
    for name, (save, load) in OTHERS.items():
        outcome, chance, place = Counter(), random.Random(10), work / name
        save(tensors, place)
        paths = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
        for trial in range(trials):
            path = paths[trial % len(paths)]
            whole = path.read_bytes()
            path.write_bytes(change(whole, chance))
            outcome["trials"] += 1
            try:
                found = load(place)
                same = found.keys() == tensors.keys() and all(torch.equal(found[n], t) for n, t in tensors.items())
                outcome["harmless" if same else "silent_failures"] += 1
            except BaseException:  # torch's CheckpointException is no Exception; whatever it raises, it noticed
                outcome["detected"] += 1
            path.write_bytes(whole)
        passes = outcome["detected"] + outcome["harmless"]
        table[name] = {**_counts(outcome | Counter(passes=passes)), "harmless": outcome["harmless"]}
    return table


def flipped(whole: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(whole)
    changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncated(whole: bytes, chance: random.Random) -> bytes:
    """The file ends too early."""
    return whole[: chance.choice([0, 1, 7, len(whole) // 2, len(whole) - 1, chance.randrange(len(whole))])]


# ---------------------------------------------------------------------------------------------------------------------


def _finish(process: Any) -> int | None:
    process.start()
    process.join(PATIENCE_S)
    process.kill()
    return process.exitcode


def _counts(outcome: Counter) -> Row:
    return {name: outcome[name] for name in ("trials", "passes", "silent_failures")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills of a training; of SIGTERMs a quarter")
    parser.add_argument("--saves", type=int, default=1000, help="kills inside saves, at most")
    parser.add_argument("--flips", type=int, default=1000, help="flipped bits")
    parser.add_argument("--others", type=int, default=300, help="trials of each kind with what others use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.reliability.checkpoints", "torch._dynamo", "torch.distributed.tensor"])
    flips, others = options.flips, options.others
    rows: dict[str, Callable[[Path], Row]] = {
        "1 kill -9 of a training": lambda work: interrupted(context, work, options.kills, signal.SIGKILL),
        "2 kill -9 inside a save": lambda work: {
            **killed_in_saves(context, work, options.saves),
            "others": killed_saves(context, work, others // 6),
        },
        "3 SIGTERM": lambda work: interrupted(context, work, options.kills // 4, signal.SIGTERM),
        "8 full disk": lambda work: {**full_disk(work, flips // 10), "others": full_disks(work, others // 6)},
        "10 flipped bits": lambda work: {
            **damaged(work, flips, flipped),
            "others": damaged_elsewhere(work, others, flipped),
        },
        "11 truncated files": lambda work: {
            **damaged(work, flips // 2, truncated),
            "others": damaged_elsewhere(work, others, truncated),
        },
        "30 malicious files": attacks,
    }
    figures: dict[str, Row] = {}
    for name, trial in rows.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            figures[name] = trial(Path(folder))
        print(name, json.dumps(figures[name]), flush=True)
    write_result("reliability_checkpoints", {"rows": figures})


if __name__ == "__main__":
    main()
