"""`coca vqa` on Easy-VQA, beside the question alone and with held-out pairs; and on built NLVR2- and SNLI-VE-likes.

    coca quickstart && coca data get easy-vqa pairs triples
    python benchmarks/vqa.py easy held-out triples pairs

Easy-VQA is learnt from new weights (recipe `easy_vqa`); statements about one picture (triples) from the quickstart's
model, and about two (pairs) from the model that has learnt those. Settings were chosen on val; test is measured once.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result

from opencoca.data.questions import open_questions
from opencoca.eval.results import read_json
from opencoca.jobs.vqa import Options, vqa

TASKS: dict[str, tuple[str, str | None, Options]] = {  # data, base, options
    "easy": ("easy-vqa", None, Options(recipe="easy_vqa")),
    "held-out": ("easy-vqa/pairs.csv", None, Options(recipe="easy_vqa", tests=("test", "test_pairs"))),
    "triples": ("triples", "runs/quickstart", Options(mode="classify", name="snli_ve", epochs=5.0, rate=3e-3)),
    "pairs": ("pairs", "RUNS/triples", Options(mode="classify", name="nlvr2", epochs=4.0, rate=3e-3)),
}
# What the data's author says of his own network, which is trained on other data; nobody here has run it.
PUBLISHED = {
    "easy": {
        "accuracy": 0.995,
        "how": "a convolutional network, trained on twice as many pictures, made by the same program",
        "source": "https://github.com/vzhou842/easy-VQA-keras",
    }
}


def main() -> None:
    """Trains what isn't trained yet, measures, writes the result; tasks that aren't named keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with what `coca data get` wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/vqa-benchmark"), help="where the runs go")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    path = RESULTS / "vqa.json"
    figures: dict[str, Any] = read_json(path)["tasks"] if path.is_file() else {}
    for name in chosen.tasks:
        data, base, options = TASKS[name]
        base = base and base.replace("RUNS", str(chosen.runs))
        began, cpu = time.perf_counter(), time.process_time()
        outcome = vqa(str(chosen.data / data), chosen.runs / name, base, options)
        figures[name] = {
            "data": data,
            "base": "the model of `triples`" if name == "pairs" else base or f"new weights, recipe {options.recipe}",
            "rows": [row._asdict() for row in outcome.rows],
            "published": PUBLISHED.get(name),
            "most_frequent_answer": most_frequent(str(chosen.data / data), options.tests),
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


def most_frequent(data: str, tests: tuple[str, ...]) -> dict[str, Any]:
    """The most frequent answer in training and its accuracy by split: neither picture nor question is read."""
    counts = Counter(answer for question in open_questions(data, "train").questions for answer in question.answers)
    answer = counts.most_common(1)[0][0]
    splits = {split: open_questions(data, split).questions for split in ("val", *tests)}
    shares = {split: sum(answer in q.answers for q in asked) / len(asked) for split, asked in splits.items()}
    return {"answer": answer} | shares


if __name__ == "__main__":
    main()
