"""The first losses of `recipes.tiny` on drawn pictures: a refactor must not move them.

Where a change is meant to move them, `python -m tests.golden.test_loss_trace` prints the new trace, and the change
says why in its description.
"""

import math
from pathlib import Path

import pytest
import torch
from tests.support import MemorySource, samples, tiny_config, tiny_loader, tiny_tokenizer

from opencoca.data.pixels import normalised
from opencoca.train.state import fresh_state
from opencoca.train.step import update
from opencoca.train.task import Pretraining

# (contrastive, captioning) of steps 1 to 10 with torch 2.13.0, 1 thread
TRACE = [
    (4.8807148933410645, 6.1355881690979),
    (5.765288352966309, 5.089005470275879),
    (4.490843772888184, 4.469878673553467),
    (4.355306625366211, 4.05600643157959),
    (4.414254188537598, 3.7899084091186523),
    (4.186550617218018, 3.5558016300201416),
    (4.2075605392456055, 3.2116479873657227),
    (4.17320442199707, 3.025376081466675),
    (4.211885929107666, 2.9479875564575195),
    (4.186838150024414, 2.710561990737915),
]

# Relative. Measured against TRACE: 2.3e-7 on 2 threads, 3.0e-7 in float64, where every rounding differs.
TOLERANCE = 1e-5


def trace(threads: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[float, float]]:
    """Both losses of the first ten steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = tiny_config(Path("unused"), run={"seed": seed})
        state = fresh_state(config, torch.device("cpu"))
        state.model.to(dtype)
        state.average = {name: average.to(dtype) for name, average in state.average.items()}
        loader, task = (
            tiny_loader(config, tiny_tokenizer(), MemorySource(samples())),
            Pretraining(config.model, config.loss),
        )
        losses = []
        for batch, _ in loader.batches():
            batch = batch._replace(pixels=normalised(batch.pixels, config.pixels).to(dtype))
            values = update(state, task, batch, config, torch.autocast("cpu", torch.bfloat16, enabled=False))
            losses.append((values["contrastive"].item(), values["captioning"].item()))
            if len(losses) == 10:
                return losses
    finally:
        torch.set_num_threads(before)
    raise AssertionError("the loader is endless")


def distance(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    """The greatest relative difference."""
    return max(abs(x - y) / abs(y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_losses_are_those_of_the_trace(threads):
    found = trace(threads)
    assert distance(found, TRACE) < TOLERANCE, found


def test_the_trace_would_notice():
    """Another seed is far away, and so is one step more or less."""
    assert distance(trace(seed=1), TRACE) > 100 * TOLERANCE
    assert distance(TRACE[1:], TRACE[:-1]) > 100 * TOLERANCE
    assert all(math.isfinite(loss) for losses in TRACE for loss in losses)


if __name__ == "__main__":
    print("TRACE = [", *(f"    {losses}," for losses in trace()), "]", sep="\n")
    print("2 threads:", distance(trace(2), trace()), "float64:", distance(trace(dtype=torch.float64), trace()))
