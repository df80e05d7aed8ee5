"""Model-FLOPs utilisation of the trainer: the quickstart's small model, B/32, CoCa-Base.

    python benchmarks/utilisation.py        # needs data/openmoji (`make demo`), 12 GB of memory

Each recipe trains on OpenMoji's pictures by the training loop itself. On a shared machine the rate of a matrix product
(2048 cubed, as the trainer measures it) may double from one minute to the next, so it is measured after every step:
`mfu` holds each step's operations per second against the mean of the rates before and behind it. `trainer_mfu` is what
the trainer writes into metrics.jsonl for the same steps: there the rate is the mean of all measures so far.
The first steps, which take fresh memory, are left out. Writes benchmarks/results/utilisation.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import write_result

from opencoca import recipes
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.mixture import open_training_source
from opencoca.jobs.pretrain import make_tokenizer, with_vocabulary
from opencoca.model.coca import CoCa
from opencoca.train.loop import train
from opencoca.train.machine import matmul_rate
from opencoca.train.task import Pretraining

RUNS = {  # recipe, pairs in a batch
    "openmoji": ("openmoji", 128),
    "b_32": ("open_clip.vit_b_32", 16),
    "b_32_batch32": ("open_clip.vit_b_32", 32),
    "paper_base": ("paper.base", 8),
}
FRESH_STEPS = 3


class Rate:
    """The machine's rate after each step, as an evaluation."""

    name = "machine"

    def __init__(self) -> None:
        self.measured: list[float] = []

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        self.measured.append(matmul_rate(torch.device("cpu")) / 1e9)
        yield "gflops", self.measured[-1]


def main() -> None:
    """Trains each recipe for some steps and writes how much of the machine they used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"))
    parser.add_argument(
        "--repeats", type=int, default=12, help="steps that count (the quickstart's model: 5 times more)"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    write_result(
        "utilisation", {name: measured(*RUNS[name], arguments.data, arguments.repeats) for name in arguments.runs}
    )


def measured(recipe: str, batch: int, data: Path, repeats: int) -> dict[str, Any]:
    """The utilisation of some steps of one recipe."""
    counted = repeats * (5 if recipe == "openmoji" else 1)
    rate = Rate()
    with tempfile.TemporaryDirectory() as folder:
        config, run = _config(recipe, batch, data, FRESH_STEPS + counted), Path(folder)
        source = open_training_source(config.data)
        tokenizer = make_tokenizer(config, source, run)
        config = with_vocabulary(config, tokenizer)
        loader = PairLoader.from_config(config, source, tokenizer)
        train(config, run, Pretraining(config.model, config.loss), loader, tokenizer, [rate])
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "mfu" in row][FRESH_STEPS:]
    around = [statistics.fmean(pair) for pair in zip(rate.measured, rate.measured[1:], strict=False)][FRESH_STEPS - 1 :]
    shares = [row["mfu"] * row["matmul_gflops"] / gflops for row, gflops in zip(steps, around, strict=True)]
    return {
        "recipe": recipe,
        "batch": batch,
        "steps": len(steps),
        "mfu": _spread(shares),
        "trainer_mfu": _spread([row["mfu"] for row in steps]),
        "matmul_gflops": _spread(around),
        "samples_per_s": round(statistics.median(row["samples_per_s"] for row in steps), 2),
    }


def _config(recipe: str, batch: int, data: Path, steps: int) -> Config:
    config = recipes.get(recipe)
    tokenizer = "openmoji" if recipe == "openmoji" else "clip"  # with as many pieces as the published models have
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, folder=str(data), batch_size=batch, tokenizer=tokenizer),
        optim=dataclasses.replace(config.optim, steps=steps, warmup_steps=2),
        run=dataclasses.replace(config.run, log_every_steps=1, eval_every_steps=1, checkpoint_every_steps=0),
    )


def _spread(values: list[float]) -> dict[str, Any]:
    quarters = statistics.quantiles(values)
    return {
        "median": round(statistics.median(values), 3),
        "quarters": [round(quarters[0], 3), round(quarters[2], 3)],
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
