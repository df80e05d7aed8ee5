"""How far the shipped model holds up: corruptions, resolution, attacks, written names, style, calibration, groups.

    python benchmarks/robustness.py                    # writes results/robustness.json
    python benchmarks/robustness.py --report out.html  # and the page of `coca eval`

It needs data/drawings (`python -m opencoca.jobs.drawings data`) and data/openmoji (`coca quickstart`). What hurts a
picture is measured on `drawings#val`: drawings that the model never saw, in two styles that it knows, where it is right
often enough for a fall to show. What is about another style is measured on OpenMoji's drawings, all of which it never
saw. --cache keeps what is done, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common import write_result

from opencoca.eval import registry, run
from opencoca.eval.cache import Cache
from opencoca.eval.registry import Options, Place
from opencoca.jobs.evaluate import write_report
from opencoca.loading import load

MODEL = "drawings"
# (name in the result, evaluation, its data, at most so many pictures)
RUNS: tuple[tuple[str, str, dict[str, str], int | None], ...] = (
    ("classes/corruptions", "classes/corruptions", {"classes": "drawings#val"}, 60),
    ("classes/resolution", "classes/resolution", {"classes": "drawings#val"}, None),
    ("classes/attacks", "classes/attacks", {"classes": "drawings#val"}, 60),
    ("classes/typographic", "classes/typographic", {"classes": "drawings#val"}, None),
    ("classes/style", "classes/style", {"classes": "drawings#val", "style": "drawings#test_seen"}, None),
    ("classes/calibration", "classes/calibration", {"classes": "openmoji#test_pictures", "val": "openmoji#val"}, None),
    ("openmoji/bias", "openmoji/bias", {"openmoji": "openmoji#train"}, 400),
    ("classes/overlap", "classes/overlap", {"classes": "drawings#val", "training": "drawings#train"}, None),
)
KEPT = (
    "samples",
    "classes",
    "chance",
    "split_digest",
    "seed",
    "what",
    "attack",
    "rule",
    "fitted_on",
    "bins",
    "high_resolution_px",
    "pictures",
    "gaps",
    "grids",
    "training_pictures",
    "training_pictures_that_differ",
    "duplicates_found",
    "nearest_in_embedding",
)


def main() -> None:
    """Measures all of it and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with drawings and openmoji")
    parser.add_argument("--report", type=Path, help="write the page here too")
    parser.add_argument("--cache", type=Path, help="folder that keeps what is done")
    parser.add_argument("--limit", type=int, help="at most so many pictures of each: to try it; writes no result")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    predictor = load(MODEL)
    whole = run.ModelResults(MODEL)
    rows = {}
    for name, evaluation, places, limit in RUNS:
        data = {}
        for key, place in places.items():
            folder, _, split = place.partition("#")
            data[key] = Place(chosen.data / folder, split)
        options = Options(beams=1, limit=chosen.limit or limit, cache=Cache(chosen.cache))
        entries = {evaluation: registry.EVALUATIONS[evaluation]}
        outcome = run.measure(MODEL, predictor, entries, data, options, lambda line: print(line, file=sys.stderr))
        if evaluation not in outcome.results:
            raise SystemExit(f"{name}: {outcome.not_measured[evaluation]}")
        result = outcome.results[evaluation]
        whole.facts = outcome.facts
        whole.results[name] = result
        rows[name] = {
            "data": places,
            "figures": {key: round(value, 5) for key, value in result.figures.items()},
            "intervals": {key: [round(end, 5) for end in ends] for key, ends in run.intervals(result).items()},
            "facts": {key: result.facts[key] for key in KEPT if result.facts.get(key) is not None},
        }
    if chosen.limit is None:
        write_result("robustness", {"model": MODEL, "fingerprint": whole.facts["fingerprint"], "evaluations": rows})
    if chosen.report:
        settings = {"beams": 1, "limit": chosen.limit}
        print(write_report(chosen.report, run.report([whole], "robustness", settings), [whole]))


if __name__ == "__main__":
    main()
