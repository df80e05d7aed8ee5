"""A training step of the quickstart's model with and without `keep_freed_memory`, in processes that take turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
from common import write_result

from opencoca import recipes
from opencoca.train.machine import keep_freed_memory, placement
from opencoca.train.state import fresh_state
from opencoca.train.step import update
from opencoca.train.task import Pretraining
from opencoca.types import Batch

REPEATS, STEPS = 5, 12


def one_process(keep: bool) -> float:
    """Median seconds of a step on made-up pictures and captions of the usual lengths."""
    if keep:
        keep_freed_memory()
    config = recipes.get("openmoji")
    device, autocast = placement(config.run)
    state = fresh_state(config, device)
    task = Pretraining(config.model, config.loss)
    generator = torch.Generator().manual_seed(0)
    count, size = config.data.batch_size, config.model.vision.image_size_px
    lengths = torch.randint(5, 15, (count,), generator=generator).sort().values
    ids = torch.randint(3, config.model.text.vocab_size, (count, 15), generator=generator)
    batch = Batch(
        torch.randn(count, 3, size, size, generator=generator),
        ids,
        torch.arange(15) < lengths[:, None],
        torch.arange(2 * count).view(-1, 2),
        tuple(map(str, range(count))),
    )
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        update(state, task, batch, config, autocast)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def main() -> None:
    """Alternates the two modes and writes the result."""
    seconds: dict[str, list[float]] = {"kept": [], "handed_back": []}
    for _ in range(REPEATS):
        for mode, taken in seconds.items():
            command = [sys.executable, __file__, mode]
            taken.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
    ratio = medians["handed_back"] / medians["kept"]
    write_result("memory_reuse", {"seconds": seconds, "median_s": medians, "handed_back_over_kept": ratio})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(one_process(keep=sys.argv[1] == "kept"))
    else:
        main()
