"""Parts of the step on two ranks: other tasks, odd batches, gathering, and ranks that differ or hang."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.ranks import ends_of_ranks, on_ranks
from tests.support import MemorySource, samples, tiny_config, tiny_tokenizer
from torch.nn import functional as F

from opencoca.data.loader import PairLoader
from opencoca.data.pixels import normalised
from opencoca.parallel.collectives import gathered, gathered_texts, summed
from opencoca.parallel.ddp import SummedGradients
from opencoca.parallel.mesh import ALONE, current
from opencoca.train.engine import Engine
from opencoca.train.state import fresh_state
from opencoca.train.step import update
from opencoca.train.task import Outcome, Pretraining, Task

pytestmark = pytest.mark.timeout(120)
FP64 = torch.autocast("cpu", torch.bfloat16, enabled=False)


class WhichColour(Task):
    """A classifier of the caption's first word, out of 16: what a task is that compares no rows."""

    def forward(self, model, batch):
        logits_BL = model.encode_image(batch.pixels).embed[:, :16] * 10
        return Outcome({"cross_entropy": F.cross_entropy(logits_BL, batch.ids[:, 1] % 16, reduction="sum")})


def step(kind: str, change: str = "", batch_size: int = 8, **run: Any) -> dict[str, float]:
    """One step in float64 on this rank's rows of the first batch, which are changed first."""
    config, ranks = tiny_config(Path("unused"), data={"batch_size": batch_size}, run=run), current()
    source = cast(Any, MemorySource(samples()))
    batch = PairLoader.from_config(config, source, tiny_tokenizer(), ranks.rank, ranks.world).batch(0)
    batch = batch._replace(pixels=normalised(batch.pixels, config.pixels).double())
    engine = Engine(config.run, ranks)
    state = fresh_state(config, torch.device("cpu"), lambda model: model.double() and None, engine.arrange)
    with torch.no_grad():
        if change == "all padding":  # but for the start, on the first rank
            keep = torch.arange(batch.valid.shape[1]) < (1 if ranks.first else 99)
            batch = batch._replace(valid=batch.valid & keep, buckets=())
        elif change == "scale 100":
            state.model.log_scale.fill_(math.log(100))
    engine.begin(state.model)
    task = WhichColour() if kind == "classification" else Pretraining(config.model, config.loss)
    values = {name: float(value) for name, value in update(state, task, batch, config, FP64, engine).items()}
    weights = sum(float(gradient_sum(p)) for p in state.model.parameters())
    return values | {"weights": weights}


def gradient_sum(parameter: Any) -> torch.Tensor:
    """The sum of a parameter's absolute values, over all of its parts."""
    total = parameter.detach().abs().sum()
    return total.full_tensor() if hasattr(total, "full_tensor") else total


def steps(cases: list[tuple[tuple, dict]]) -> list[dict[str, float]]:
    """`step` of each case, on one group of ranks."""
    return [step(*args, **options) for args, options in cases]


def test_a_task_needs_to_know_nothing_of_ranks():
    cases = [(("classification",), {"micro_batch": size, "parallel": way}) for size, way in ((0, "ddp"), (2, "fsdp"))]
    expected = step("classification")
    assert set(expected) == {"loss", "cross_entropy", "gradient_norm", "weights"}
    assert 0.5 < expected["loss"] < 10 and expected["gradient_norm"] > 0
    for found in [value for of_rank in on_ranks(2, steps, cases) for value in of_rank]:
        assert found == pytest.approx(expected, rel=1e-12)
    assert step("classification", micro_batch=3) == pytest.approx(expected, rel=1e-12)


ODD = [("", 2), ("all padding", 2), ("all padding", 8), ("scale 100", 8)]


@pytest.mark.parametrize(("change", "batch_size"), [("", 1), ("all padding", 1), *ODD[2:]])
def test_odd_batches_are_finite(change, batch_size):
    values = step("pretraining", change, batch_size)
    assert all(math.isfinite(value) for value in values.values())
    assert (values["captioning"] == 0) == (change == "all padding")
    assert (values["contrastive"] == 0) == (batch_size == 1)


def test_odd_batches_are_finite_on_two_ranks():
    cases = [(("pretraining", change, size), {"micro_batch": 2}) for change, size in ODD]
    first, second = on_ranks(2, steps, cases)
    assert first == second
    assert all(math.isfinite(value) for values in first for value in values.values())
    assert all(values["captioning"] > 0 for values in first)  # the second rank's captions are whole
    assert first[3] == pytest.approx(step("pretraining", "scale 100"), rel=1e-11)  # scale^2 of the rounding


def exchanged() -> tuple[Any, ...]:
    """What the collectives give on this rank."""
    ranks = current()
    x = torch.arange(4.0).view(2, 2).add(10 * ranks.rank).requires_grad_()
    everyone = gathered(x, ranks)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1) * (ranks.rank + 1)
    (everyone * weights).sum().backward()
    assert x.grad is not None
    texts = gathered_texts("é" * ranks.rank, ranks)
    return everyone.tolist(), x.grad.tolist(), summed([1.5, ranks.rank], ranks).tolist(), texts


def test_what_ranks_tell_each_other():
    rows = [[0.0, 1.0], [2.0, 3.0], [10.0, 11.0], [12.0, 13.0]]
    first, second = on_ranks(2, exchanged)
    assert first == (rows, [[3.0, 3.0], [6.0, 6.0]], [3.0, 1.0], ["", "é"])
    assert second == (rows, [[9.0, 9.0], [12.0, 12.0]], [3.0, 1.0], ["", "é"])
    assert summed([1.5, torch.tensor(2)], ALONE).tolist() == [1.5, 2.0] and gathered_texts("a", ALONE) == ["a"]


def reached_by_one() -> list[Any]:
    """Gradients where a parameter is reached by the first rank's loss only, by both, and by none."""
    ranks = current()
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    sums = SummedGradients(parameters, ranks, bucket_bytes=16)
    sums.expect()
    loss = parameters[1].sum()
    if ranks.first:
        loss = loss + 2 * parameters[0].sum()
    loss.backward()
    sums.finish()
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def test_gradients_that_only_some_ranks_have():
    assert on_ranks(2, reached_by_one) == [[[2.0] * 3, [2.0] * 3, None]] * 2


def different() -> None:
    """Ranks that begin with different weights."""
    SummedGradients([torch.nn.Parameter(torch.full((3,), 1.0 + current().rank))], current())


def test_ranks_that_begin_differently_are_refused():
    assert {end.error.partition(":")[0] for end in ends_of_ranks(2, different)} == {"TrainingError"}


def hung() -> None:
    """The second rank stops moving; the first waits for it."""
    from opencoca.parallel.mesh import lost_peers_named

    if not current().first:
        os.kill(os.getpid(), signal.SIGSTOP)
    with lost_peers_named(current()):
        summed([1.0], current())


def test_a_rank_that_hangs_is_an_error_of_the_others():
    began = time.monotonic()
    first, second = ends_of_ranks(2, hung, timeout_s=8, group_timeout_s=3)
    assert first.error.startswith("TrainingError: rank 0 lost another of the 2 ranks"), first
    assert first.code == 1 and second.code is None  # the second one is stopped, until it is killed
    assert time.monotonic() - began < 40
