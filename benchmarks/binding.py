"""Which of two people has which skin tone: the right caption against the one with both tones exchanged, chance 50%.

    coca quickstart             # and twice more: --seed 1 --run runs/quickstart-1, --seed 2 --run runs/quickstart-2
    python benchmarks/binding.py runs/quickstart runs/quickstart-1 runs/quickstart-2 drawings

On OpenMoji's held-out `test_pictures`: of the other lists none shows two people with two tones. The quickstart's models
know the style, `drawings` doesn't.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write_result

from opencoca.eval import registry, run
from opencoca.eval.registry import Options, Place
from opencoca.loading import load

EVALUATION = "openmoji/binding"
SPLIT = "test_pictures"
FACTS = ("samples", "chance", "drawn_alike_and_left_out", "split_digest")


def main() -> None:
    """Measures each model and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="run or model folders, or names")
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"))
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for model in chosen.models:
        predictor = load(model)
        evaluations = {EVALUATION: registry.EVALUATIONS[EVALUATION]}
        data = {"openmoji": Place(chosen.data, SPLIT)}
        outcome = run.measure(model, predictor, evaluations, data, Options(), print)
        if EVALUATION not in outcome.results:
            raise SystemExit(f"{model}: {outcome.not_measured[EVALUATION]}")
        result = outcome.results[EVALUATION]
        rows.append(
            {
                "model": Path(model).name,
                "fingerprint": outcome.facts["fingerprint"],
                "figures": result.figures,
                "intervals": run.intervals(result),
                **{name: result.facts[name] for name in FACTS},
            }
        )
        print(rows[-1])
    if not chosen.dry:
        write_result("binding", {"split": SPLIT, "rows": rows})


if __name__ == "__main__":
    main()
