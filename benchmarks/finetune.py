"""`coca finetune` on Tux Paint's stamps: what it gains on pictures kept for this alone, and what it unlearns.

    coca data get stamps
    coca data get drawings                           # for the drawings that the base model was trained on
    python benchmarks/finetune.py

Each variant is the command itself, with its defaults. It trains on the table's `train`, chooses on `val`, and is
measured here on `test`, whose concepts are in neither. Two sets have nothing to do with the stamps: the drawings' own
validation list, which the command watches (--keep), and OpenMoji's pictures, on which nothing was chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result

from opencoca import loading
from opencoca.cli.main import main as coca
from opencoca.data.sources import open_source
from opencoca.eval.metrics import cider
from opencoca.infer.predictor import Predictor
from opencoca.jobs.finetune_data import Chosen, Held, held
from opencoca.jobs.finetune_measure import Measured, mean_recall, measure

BASE = "drawings"
VARIANTS: dict[str, list[str]] = {  # those of one run folder share its training
    "full": ["--run", "full"],
    "full, wise 1": ["--run", "full", "--wise", "1"],
    "full, wise 0.5": ["--run", "full", "--wise", "0.5"],
    "lora 8": ["--run", "lora", "--lora", "8"],
}
DRAWS = 2000


def main() -> None:
    """Trains what isn't trained yet, measures, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, default=Path("data/stamps"), help="folder of `coca data get stamps`")
    parser.add_argument("--drawings", type=Path, default=Path("data/drawings"), help="shards of the drawings")
    parser.add_argument("--openmoji", type=Path, default=Path("data/openmoji"), help="shards of the quickstart")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune-benchmark"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training order")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--steps", type=int, default=0, help="for a try: so many steps only")
    chosen = parser.parse_args()
    base = loading.load(BASE)
    sets = {
        "stamps/test": _held(base, chosen.stamps / "captions.csv", "test"),
        "drawings/val": _held(base, chosen.drawings, "val"),
        "openmoji/test_pictures": _held(base, chosen.openmoji, "test_pictures"),
    }
    before = {name: measure(base, some) for name, some in sets.items()}
    variants = {}
    for name in chosen.variants:
        runs = [_one(name, seed, chosen, sets, before) for seed in chosen.seeds]
        variants[name] = {"mean": _mean([run["figures"] for run in runs]), "runs": runs}
        print(name, json.dumps(variants[name]["mean"], indent=1), flush=True)
    write_result(
        "finetune",
        {
            "base": BASE,
            "pictures": {name: len(some) for name, some in sets.items()},
            "captions": {name: len(some.texts) for name, some in sets.items()},
            "before": {name: _figures(measured) for name, measured in before.items()},
            "variants": variants,
        },
    )


def _one(
    name: str, seed: int, chosen: argparse.Namespace, sets: dict[str, Held], before: dict[str, Measured]
) -> dict[str, Any]:
    """One run of a variant: its figures, and how sure the differences on the test pictures are."""
    words = [*VARIANTS[name]]
    run = chosen.runs / f"{words[1]}-{seed}"
    words[1] = str(run)
    keep = ["--keep", str(chosen.drawings), "--keep-split", "val"]
    steps = ["--steps", str(chosen.steps)] if chosen.steps else []
    table = str(chosen.stamps / "captions.csv")
    code = coca(["finetune", table, "--from", BASE, "--seed", str(seed), *keep, *steps, *words])
    if code:
        raise SystemExit(f"coca finetune ended with {code}")
    results = json.loads((run / "results.json").read_text())
    predictor = loading.load(run)
    after = {name: measure(predictor, some) for name, some in sets.items()}
    test = sets["stamps/test"]
    return {
        "seed": seed,
        "alpha": results["alpha"],
        "minutes": round(results["seconds"] / 60, 1),
        "steps": results["steps"],
        "peak_lr": results["peak_lr"],
        "val": {"before": results["before"], "by_alpha": results["by_alpha"]},
        "figures": {name: _figures(measured) for name, measured in after.items()},
        "gain_on_test": _gains(test, before["stamps/test"], after["stamps/test"]),
        "warnings": results["warnings"],
    }


def _held(predictor: Predictor, location: Path, split: str) -> Held:
    source = open_source(str(location), split)
    return held(
        Chosen(source, range(len(source))), predictor.config.model.vision.image_size_px, predictor.config.pixels
    )


def _figures(measured: Measured) -> dict[str, float]:
    return {name: round(value, 5) for name, value in measured.figures.items()} | {
        "mean_recall": round(mean_recall(measured.figures), 5)
    }


def _mean(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(sum(run[name][key] for run in runs) / len(runs), 5) for key in runs[0][name]}
        for name in runs[0]
    }


def _gains(test: Held, before: Measured, after: Measured) -> dict[str, dict[str, float]]:
    """After less before, with the bounds of 95% of paired draws of the test pictures (and captions)."""
    references = [list(captions) for captions in test.captions]
    items: dict[str, list[torch.Tensor]] = {
        "cider_d": [
            torch.tensor(cider(after.captions, references).items)
            - torch.tensor(cider(before.captions, references).items)
        ],
        "mean_recall": [
            ((after.ranks[way] < k).double() - (before.ranks[way] < k).double())
            for way in ("i2t", "t2i")
            for k in (1, 5)
        ],
    }
    generator = np.random.default_rng(0)
    gains = {}
    for name, parts in items.items():
        draws = np.zeros(DRAWS)
        for part in parts:
            rows = generator.integers(0, len(part), (DRAWS, len(part)))
            draws += part.numpy()[rows].mean(axis=1) / len(parts)
        low, high = np.quantile(draws, (0.025, 0.975))
        gain = sum(part.double().mean().item() for part in parts) / len(parts)
        gains[name] = {"gain": round(gain, 5), "low": round(float(low), 5), "high": round(float(high), 5)}
    return gains


if __name__ == "__main__":
    main()
