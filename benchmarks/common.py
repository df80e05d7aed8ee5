"""What every benchmark writes beside its figures, and how it is written."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opencoca.files import write_atomically
from opencoca.jobs.quickstart import commit, processor_name
from opencoca.train.machine import matmul_rate

RESULTS = Path(__file__).parent / "results"


def result_path(name: str) -> Path:
    """`results/NAME.json`, or NAME_avx2.json for what `as_avx2.sh` runs."""
    return RESULTS / f"{name}{'_avx2' if os.environ.get('ATEN_CPU_CAPABILITY') == 'avx2' else ''}.json"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Writes `result_path(name)` with machine, versions, commit and date, and prints where."""
    path = result_path(name)
    result = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_rate(torch.device("cpu")) / 1e9, 1),
        "torch": torch.__version__,
        **figures,
    }
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    print(path)
    return path


def alternating_seconds(runs: dict[str, Callable[[], None]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """The seconds of each callable, taken in turn so that drift hits all alike, after `warmup` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + repeats):
        for name, call in runs.items():
            began = time.perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def alternating_medians(
    runs: dict[str, Callable[[], None]], repeats: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest seconds of each callable, by `alternating_seconds`."""
    return summaries(alternating_seconds(runs, repeats, warmup))


def summaries(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest of each."""
    return {
        name: {"median_s": statistics.median(taken), "min_s": min(taken), "max_s": max(taken), "runs": len(taken)}
        for name, taken in seconds.items()
    }
