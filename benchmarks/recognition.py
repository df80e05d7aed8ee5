"""`coca recognise` on Fashion-MNIST: frozen features by a probe, neighbours and a new pooler, and everything tuned.

    coca data get fashion-mnist
    python benchmarks/recognition.py

The base is the model that ships: its encoder has seen drawings and icons, and no photograph of clothing. It is trained
on an evenly spaced part of the official training pictures; settings are chosen on val (2,000 others of them), and the
official test pictures, all 10,000, are measured once for each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import torch
from common import write_result

from opencoca.jobs.recognise import Options, recognise

BASE = "drawings"


def main() -> None:
    """Trains what isn't trained yet, measures, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/fashion-mnist", help="folder of `coca data get fashion-mnist`")
    parser.add_argument("--run", type=Path, default=Path("runs/recognition-benchmark"), help="where the runs go")
    parser.add_argument("--most", type=int, default=6000, help="pictures to train on")
    parser.add_argument("--epochs", type=float, default=3.0, help="how often each is seen where everything is tuned")
    parser.add_argument("--frozen-epochs", type=float, default=20.0, help="and where the encoder is frozen: cheap")
    parser.add_argument("--frozen-rate", type=float, default=3e-3, help="chosen on val, from 1e-3 and 3e-3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    began, cpu = time.perf_counter(), time.process_time()
    tuned = Options(most=chosen.most, epochs=chosen.epochs, ways=("tuned",))
    frozen = dataclasses.replace(tuned, epochs=chosen.frozen_epochs, rate=chosen.frozen_rate, ways=("frozen",))
    outcome, second = (recognise(chosen.data, chosen.run, BASE, options) for options in (frozen, tuned))
    trained = outcome.results["trained"] | second.results["trained"]
    figures = {
        "base": BASE,
        "data": f"Fashion-MNIST: {chosen.most} of its training pictures, all 10,000 of its test pictures",
        "rows": [with_interval(row._asdict(), 10_000) for row in (*outcome.rows, second.rows[-1])],
        "frozen_features": outcome.results["frozen_features"],
        "trained": {
            way: {name: one[name] for name in ("val", "test", "seconds", "steps")} | {"optim": one["config"]["optim"]}
            for way, one in trained.items()
        },
        "skipped": len(outcome.skipped),
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "cpu_seconds_in_all": round(time.process_time() - cpu, 1),
    }
    if not chosen.dry:
        write_result("recognition", figures)


def with_interval(row: dict, pictures: int) -> dict:
    """The row with the half width of the 95% interval of its test accuracy (Wald)."""
    share = row["test"]
    return row | {"test_half_width": round(1.96 * math.sqrt(share * (1 - share) / pictures), 4)}


if __name__ == "__main__":
    main()
