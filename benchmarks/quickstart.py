"""The quickstart over several seeds: every figure with its mean and spread, beside the controls."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from common import write_result


def main() -> None:
    """Runs `coca quickstart` once per seed, each in a process of its own, and joins their results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        run = arguments.runs / (f"quickstart-{seed}" if seed else "quickstart")
        command = [sys.executable, "-m", "opencoca", "quickstart", "--seed", str(seed), "--run", str(run)]
        subprocess.run(command, check=True)
        results.append(json.loads((run / "results.json").read_text()))
    figures = {}
    for key in results[0]:
        if key != "meta" and all(key in result for result in results):
            values = [result[key] for result in results]
            figures[key] = {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "seeds": values}
    write_result(
        "quickstart",
        {
            "seeds": arguments.seeds,
            "figures": figures,
            "runs": [{k: v for k, v in result["meta"].items() if k != "config"} for result in results],
            "config": results[0]["meta"]["config"],
        },
    )


if __name__ == "__main__":
    main()
