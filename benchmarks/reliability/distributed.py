"""Several ranks under faults, and whether they compute what one does: rows 4, 6, 24 to 29 of the reliability sheet.

Run from the repository's root: `python -m benchmarks.reliability.distributed`. Every row has its trials, those that
went as they must, and silent failures: a wrong result without an error. Rows 26 and 27 have beside them how far off
gradients are where, as is common, each rank or micro-batch averages over its own tokens, and compares its own pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from benchmarks.common import write_result
from tests.dist.test_exact import BATCH, TOLERANCE, VARIANTS, config_of, distance, several, steps
from tests.dist.test_runs import assert_same, drawn, ends_on, tensors, train_on, trained
from tests.dist.test_step import step
from tests.dist.test_step import steps as odd_steps
from tests.ranks import ends_of_ranks, on_ranks
from tests.support import MemorySource, samples, tiny_tokenizer, write_shards

from opencoca import checkpoint
from opencoca.data.loader import PairLoader
from opencoca.data.pixels import normalised
from opencoca.eval.held_out import HeldOut, load_held_out
from opencoca.eval.suite import evaluate_split
from opencoca.infer.predictor import Predictor
from opencoca.loading import open_model
from opencoca.losses import captioning_loss, contrastive_loss, group_ids
from opencoca.model.init import build
from opencoca.parallel.mesh import current

Row = dict[str, Any]
WAYS = ("ddp", "fsdp")


def counted(trials: int, outcome: Counter[str], **more: Any) -> Row:
    """One row of the result."""
    return {"trials": trials, "passes": outcome["passed"], "silent_failures": outcome["silent"], **more}


def is_same(a: Path, b: Path) -> bool:
    """Whether the latest checkpoints of two runs hold the same tensors, bit for bit."""
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


# --- 4 and 6: killed, and resumed elsewhere --------------------------------------------------------------------------


def killed_after(seconds: float, victim: int, *args: Any) -> dict[str, Any]:
    """Trains, and kills this process after so long where it is the victim."""
    if current().rank == victim:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return trained(*args)


def killed(work: Path, shards: Path, trials: int) -> Row:
    """One of 2 ranks is killed at a random instant; the other must end with an error, and the next start end the same.

    Every other trial has copies of the model, and the model cut up.
    """
    chance, outcome, slowest_s, late = random.Random(4), Counter(), 0.0, 0
    for way in WAYS:
        train_on(2, shards, work / way, run={"parallel": way})
    for trial in range(trials):
        way, run = WAYS[trial % 2], work / f"killed-{trial}"
        sections = {"run": {"parallel": way}}
        began = time.monotonic()
        ends = ends_of_ranks(
            2, killed_after, chance.uniform(0.02, 0.9), trial // 2 % 2, shards, run, sections, {}, False
        )
        dead, left = ends[trial // 2 % 2], ends[1 - trial // 2 % 2]
        slowest_s = max(slowest_s, time.monotonic() - began)
        was_killed = dead.code == -signal.SIGKILL
        late += not was_killed
        noticed = (left.code not in (0, None) and "lost another" in left.error) or not was_killed
        train_on(2, shards, run, **sections)
        if is_same(run, work / way):
            outcome["passed"] += noticed
        else:
            outcome["silent"] += 1
    return counted(trials, outcome, ended_before_the_kill=late, slowest_end_s=round(slowest_s, 1))


def moved(work: Path, shards: Path, trials: int) -> Row:
    """Stopped on 2 ranks, then on 1, then finished on 2: the same ids, in the same global batches."""
    chance, outcome = random.Random(6), Counter()
    train_on(2, shards, work / "whole", run={"eval_every_steps": 0})
    expected = drawn(work / "whole", 2)
    for trial in range(trials):
        run, found = work / f"moved-{trial}", []
        stops = sorted(chance.sample(range(1, 8), 2))
        plan = ((2, stops[0]), (1, stops[1] - stops[0]), (2, 99))
        for part, (world, count) in enumerate(plan):
            sections = {"run": {"eval_every_steps": 0, "parallel": WAYS[(trial + part) % 2]}}
            ends_on(world, shards, run, hurt={"kind": "SIGTERM", "rank": 0, "step": count - 1}, **sections)
            found += drawn(run, world)
            for rank in range(world):
                (run.parent / f"{run.name}-keys-{rank}.jsonl").unlink()
        outcome["passed" if found == expected else "silent"] += 1
    return counted(trials, outcome)


# --- 24 and 25: what is not finite, and spikes -----------------------------------------------------------------------


def not_finite(work: Path, shards: Path, trials: int) -> Row:
    """NaN or Inf on one rank: all stop, weights are finite, the batch is named, and the next start ends the same."""
    chance, outcome = random.Random(24), Counter()
    for way in WAYS:
        train_on(2, shards, work / way, run={"parallel": way})
    expected = drawn(work / "ddp", 2)
    for trial in range(trials):
        run, at, way = work / f"bad-{trial}", chance.randrange(1, 8), WAYS[trial // 4 % 2]
        hurt = {"kind": ("nan", "inf")[trial % 2], "rank": trial // 2 % 2, "step": at}
        ends = ends_on(2, shards, run, hurt=hurt, run={"parallel": way})
        alike = all(end.error.startswith(f"NotFiniteError: step {at}: ") for end in ends)
        finite = all(bool(x.isfinite().all()) for x in tensors(run).values())
        row = json.loads((run / "bad_batches.jsonl").read_text())
        named = row["step"] == at and sorted(row["keys"]) == expected[at]
        train_on(2, shards, run, run={"parallel": way})
        same = is_same(run, work / way)
        outcome["passed"] += alike and finite and named and same
        outcome["silent"] += not finite or not same or not any(end.error for end in ends)
    return counted(trials, outcome)


def spikes(work: Path, shards: Path, trials: int) -> Row:
    """A loss far above the median on one rank: the step is left out on all, once."""
    chance, outcome = random.Random(25), Counter()
    for trial in range(trials):
        run, at = work / f"spike-{trial}", chance.randrange(21, 25)
        settings = {"max_loss_spike": 3.0, "eval_every_steps": 0, "parallel": WAYS[trial % 2]}
        hurt = {"kind": "spike", "rank": trial // 2 % 2, "step": at}
        first, second = train_on(2, shards, run, hurt=hurt, optim={"steps": 26}, run=settings)
        noted = [json.loads(line) for line in (run / "bad_batches.jsonl").read_text().splitlines()]
        alike = first == second and first["finite"] and first["step"] == 26
        passed = alike and [(row["step"], row["reason"], len(row["keys"])) for row in noted] == [(at + 1, "spike", 8)]
        outcome["passed" if passed else "silent"] += 1
    return counted(trials, outcome)


# --- 26 and 27: the same numbers -------------------------------------------------------------------------------------


def exactness(runs: dict[int, list[tuple[str, dict[str, Any]]]], usual: dict[str, float]) -> Row:
    """Losses, gradients and weights of runs on so many ranks, against one process that reads its batch at once."""
    outcome, worst, temperature = Counter(), 0.0, 0.0
    alone = {variant: steps(variant) for variant in VARIANTS}
    for world, cases in runs.items():
        of_ranks = [several(cases)] if world == 1 else on_ranks(world, several, cases, timeout_s=120)
        for number, (variant, _) in enumerate(cases):
            far = max(distance(of_rank[number], alone[variant])[0] for of_rank in of_ranks)
            name, expected = "gradient log_scale", alone[variant]["gradient log_scale"]
            off = max(float(np.abs(of_rank[number][name] / expected - 1).max()) for of_rank in of_ranks)
            worst, temperature = max(worst, far), max(temperature, off)
            outcome["passed" if max(far, off) < TOLERANCE else "silent"] += 1
    trials = sum(map(len, runs.values()))
    return counted(trials, outcome, worst=worst, worst_of_the_temperature=temperature, common_practice=usual)


def common_practice(world: int, gathers: bool) -> float:
    """How far gradients are from those of the global batch, relative to each tensor's greatest, averaged as is common.

    Each of `world` parts averages its captions over its own tokens, and the parts are averaged. With `gathers` it
    compares its pairs with all others, as ranks do; else with its own, as plain accumulation does.
    """
    config = config_of("plain")

    def gradients(parts: int) -> dict[str, np.ndarray]:
        model, seen = build(config.model, config.run.seed).double(), []
        for rank in range(parts):
            loader = PairLoader.from_config(config, cast(Any, MemorySource(samples())), tiny_tokenizer(), rank, parts)
            batch = loader.batch(0)
            pixels = normalised(batch.pixels, config.pixels).double()
            seen.append((model(pixels, batch.ids, batch.valid, batch.buckets), batch))
        images, texts = (torch.cat([getattr(out, name) for out, _ in seen]) for name in ("image_embed", "text_embed"))
        labels, first, total = torch.cat([batch.labels for _, batch in seen]), 0, torch.zeros(())
        for output, batch in seen:
            pairs = output.image_embed, output.text_embed
            everyone, at, ids = ((images, texts), first, labels) if gathers else (pairs, 0, batch.labels)
            contrastive = contrastive_loss(*pairs, *everyone, output.scale, at, group_ids(ids))
            logits = model.caption_logits(output.decoded)
            total = total + contrastive + 2 * captioning_loss(logits, batch.ids[:, 1:], batch.valid[:, 1:])
            first += len(batch.keys)
        (total / parts).backward()
        return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}

    found, expected = gradients(world), gradients(1)
    return max(float(np.abs(found[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in expected)


# --- 28 and 29: odd batches, and evaluation ---------------------------------------------------------------------------


def odd_batches() -> Row:
    """Nothing but padding, one pair, and a scale of 100, on one process and on two ranks: finite, and alike."""
    changes, outcome = ("", "all padding", "scale 100"), Counter()
    cases = [
        (("pretraining", change, size), {"parallel": way}) for change in changes for size in (2, 8) for way in WAYS
    ]
    first, second = on_ranks(2, odd_steps, cases)
    alone = [step("pretraining", change, size) for change in changes for size in (1, 8)]
    for values in [*first, *alone]:
        outcome["passed" if np.isfinite(list(values.values())).all() else "silent"] += 1
    outcome["silent"] += sum(a != b for a, b in zip(first, second, strict=True))
    return counted(len(cases) + len(alone), outcome)


def evaluations(shards: Path, run: Path) -> Row:
    """Figures of the held-out split in every batch size and order, against one batch in the order of the files."""
    opened = open_model(run)
    vision, outcome, sizes = opened.config.model.vision, Counter(), (1, 2, 3, 5, 7, 64)
    held_out = load_held_out(shards, "val", vision.image_size_px, opened.config.pixels)

    def figures(size: int, seed: int) -> dict[str, float]:
        order = list(range(len(held_out)))
        random.Random(seed).shuffle(order)
        order = order if seed else sorted(order)
        mixed = HeldOut(
            held_out.name,
            tuple(held_out.keys[i] for i in order),
            held_out.pictures[order],
            tuple(held_out.captions[i] for i in order),
            tuple(held_out.attributes[i] for i in order),
        )
        predictor = Predictor(opened.model, opened.tokenizer, opened.config, batch_size=size)
        return evaluate_split(predictor, mixed, beams=1).figures

    expected = figures(64, 0)
    for size in sizes:
        for seed in range(4):
            found = figures(size, seed)
            alike = found.keys() == expected.keys()
            alike &= all(abs(found[name] - expected[name]) <= 1e-12 for name in expected)
            outcome["passed" if alike else "silent"] += 1
    return counted(4 * len(sizes), outcome, figures=expected)


def main() -> None:
    """Runs every row and writes the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=12, help="kills of a rank; of other faults as many or fewer")
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    micro = [size for size in (8, 4, 2) if size < BATCH]
    on_many: dict[int, list] = {
        world: [(variant, {"parallel": way}) for variant in VARIANTS for way in WAYS] for world in (2, 4)
    }
    in_parts: dict[int, list] = {1: [(variant, {"micro_batch": size}) for variant in VARIANTS for size in (*micro, 5)]}
    for world in (2, 4):
        sizes = [size for size in micro if size < BATCH // world] + [1]
        in_parts[world] = [("plain", {"micro_batch": size, "parallel": way}) for size in sizes for way in WAYS]
    local = {f"{parts} parts": common_practice(parts, gathers=False) for parts in (2, 4, 8)}
    gathering = {f"{parts} parts": common_practice(parts, gathers=True) for parts in (2, 4)}

    def measured(work: Path, shards: Path) -> Row:
        train_on(1, shards, work / "run", optim={"steps": 40})
        return evaluations(shards, checkpoint.resolve(work / "run"))

    rows: dict[str, Callable[[Path, Path], Row]] = {
        "4 one of 2 ranks killed": lambda work, shards: killed(work, shards, trials),
        "6 resumed on 2, 1 and 2 ranks": lambda work, shards: moved(work, shards, max(2, trials // 2)),
        "24 NaN or Inf on one rank": lambda work, shards: not_finite(work, shards, trials),
        "25 a spike on one rank": lambda work, shards: spikes(work, shards, max(2, trials // 2)),
        "26 on 1, 2 and 4 ranks": lambda *_: exactness(on_many, gathering),
        "27 in 1, 2, 4 and 8 micro-batches": lambda *_: exactness(in_parts, local),
        "28 odd batches": lambda *_: odd_batches(),
        "29 evaluation in any batch size and order": measured,
    }
    figures: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "shards")
        for number, (name, trial) in enumerate(rows.items()):
            work = Path(folder) / str(number)
            work.mkdir()
            began = time.monotonic()
            figures[name] = {**trial(work, shards), "seconds": round(time.monotonic() - began, 1)}
            print(name, json.dumps(figures[name]), flush=True)
    write_result("reliability_distributed", {"rows": figures, "tolerance": TOLERANCE})


if __name__ == "__main__":
    main()
