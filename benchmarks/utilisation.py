"""Model-FLOPs utilisation as the trainer reports it: the quickstart's small model, B/32, CoCa-Base.

    python benchmarks/utilisation.py        # needs data/openmoji (`make demo`), 12 GB of memory, 2 GB of disk

Each recipe trains on OpenMoji's pictures by `coca train`, and its metrics.jsonl says for every step how much of the
machine's rate was used. That rate is measured once, before the first step; here it is measured again between the
recipes, since machines are shared: `mfu_against_highest` holds the same steps against the best rate that was seen.
The first steps, which take fresh memory, are left out. Writes benchmarks/results/utilisation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write_result

from opencoca.train.machine import matmul_rate

RUNS = {  # recipe, pairs in a batch
    "openmoji": ("openmoji", 128),
    "b_32": ("open_clip.vit_b_32", 16),
    "b_32_batch32": ("open_clip.vit_b_32", 32),
    "paper_base": ("paper.base", 8),
}
FRESH_STEPS = 3


def main() -> None:
    """Trains each recipe for some steps and writes what its trainer said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"))
    parser.add_argument(
        "--repeats", type=int, default=9, help="steps that count (the quickstart's model: 5 times more)"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    write_result(
        "utilisation", {name: measured(*RUNS[name], arguments.data, arguments.repeats) for name in arguments.runs}
    )


def measured(recipe: str, batch: int, data: Path, repeats: int) -> dict[str, Any]:
    """The utilisation of some steps of one recipe, as its trainer reports it, beside the machine's rate."""
    counted = repeats * (5 if recipe == "openmoji" else 1)
    before = matmul_rate(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"optim.steps={FRESH_STEPS + counted}",
            "optim.warmup_steps=2",
            f"data.batch_size={batch}",
            "run.log_every_steps=1",
            "run.eval_every_steps=0",
            "run.checkpoint_every_steps=0",
        ]
        if recipe == "paper.base":
            settings.append("data.tokenizer=clip")  # 49,408 pieces; a tokenizer of these captions has far fewer
        command = [sys.executable, "-m", "opencoca", "train", recipe, "--run", folder, "--data", str(data)]
        subprocess.run([*command, "--set", *settings], check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    after = matmul_rate(torch.device("cpu"))
    steps = [row for row in rows if "mfu" in row][FRESH_STEPS:]
    reported = [row["mfu"] for row in steps]
    rate = steps[0]["matmul_gflops"]
    highest = max(rate, before / 1e9, after / 1e9)
    return {
        "recipe": recipe,
        "batch": batch,
        "steps": len(steps),
        "mfu": _spread(reported),
        "matmul_gflops": {"before": round(before / 1e9, 1), "trainer": round(rate, 1), "after": round(after / 1e9, 1)},
        "mfu_against_highest": _spread([share * rate / highest for share in reported]),
        "samples_per_s": round(statistics.median(row["samples_per_s"] for row in steps), 2),
    }


def _spread(shares: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(shares), 3), "min": round(min(shares), 3), "max": round(max(shares), 3)}


if __name__ == "__main__":
    main()
