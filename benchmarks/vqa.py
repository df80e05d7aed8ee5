"""`coca vqa` on Easy-VQA, beside the question alone and with held-out pairs; and on built NLVR2- and SNLI-VE-likes.

    python -m opencoca.jobs.task_data easy-vqa
    python -m opencoca.jobs.task_data pairs          # these two need data/openmoji, from `coca quickstart`
    python -m opencoca.jobs.task_data triples
    python benchmarks/vqa.py easy pairs triples held-out

Easy-VQA is learnt from new weights (recipe `easy_vqa`); statements from the model that ships, which has never seen
OpenMoji. Settings were chosen on val; test is measured once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result

from opencoca.eval.results import read_json
from opencoca.jobs.vqa import Options, vqa

TASKS: dict[str, tuple[str, str | None, Options]] = {  # data, base, options
    "easy": ("easy-vqa", None, Options(recipe="easy_vqa")),
    "held-out": ("easy-vqa/pairs.csv", None, Options(recipe="easy_vqa", tests=("test", "test_pairs"))),
    "pairs": ("pairs", "drawings", Options(mode="classify", name="nlvr2", epochs=4.0)),
    "triples": ("triples", "drawings", Options(mode="classify", name="snli_ve", epochs=4.0)),
}


def main() -> None:
    """Trains what isn't trained yet, measures, writes the result; tasks that aren't named keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with what jobs.task_data wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/vqa-benchmark"), help="where the runs go")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    path = RESULTS / "vqa.json"
    figures: dict[str, Any] = read_json(path)["tasks"] if path.is_file() else {}
    for name in chosen.tasks:
        data, base, options = TASKS[name]
        began, cpu = time.perf_counter(), time.process_time()
        outcome = vqa(str(chosen.data / data), chosen.runs / name, base, options)
        figures[name] = {
            "data": data,
            "base": base or f"new weights, recipe {options.recipe}",
            "rows": [row._asdict() for row in outcome.rows],
            "measured": {
                split: {way: one["figures"] for way, one in ways.items()}
                for split, ways in outcome.results["measured"].items()
            },
            "training_questions": outcome.results["training_questions"],
            "parameters": outcome.results["parameters"],
            "steps": outcome.results["steps"],
            "batch_size": outcome.results["config"]["data"]["batch_size"],
            "skipped": len(outcome.skipped),
            "training_seconds": outcome.results["seconds"],
            "cpu_seconds_in_all": round(time.process_time() - cpu, 1),
            "seconds_in_all": round(time.perf_counter() - began, 1),
        }
        if not chosen.dry:
            write_result("vqa", {"tasks": figures})


if __name__ == "__main__":
    main()
