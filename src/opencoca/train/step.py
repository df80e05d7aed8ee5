"""One update: forward, backward, clip, step, clamp. What it computes depends neither on ranks nor on micro-batches.

Rows that are compared with all others are read twice where there are several micro-batches: once without a graph, for
what they are compared by; then, with the gradient of the comparison known, once more each with a graph.

Source: GradCache, arXiv 2101.06983 (Gao et al. 2021), here with gathering and beside a loss of its own per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from opencoca.config import Config
from opencoca.data.pixels import normalised
from opencoca.errors import TrainingError
from opencoca.parallel.collectives import gathered, summed
from opencoca.parallel.mesh import Ranks
from opencoca.train.engine import Engine
from opencoca.train.micro import in_one_bucket, micro_batches, on_device
from opencoca.train.optim import schedule
from opencoca.train.state import TrainState
from opencoca.train.task import Compared, Task
from opencoca.train.watch import SpikeGuard
from opencoca.types import Batch

MAX_LOG_SCALE = math.log(100.0)
LEFT_OUT = "left_out"  # in what `update` returns: the step changed no weight, because its loss was a spike


class NotFiniteError(TrainingError):
    """A step whose loss or gradient isn't finite, with what was measured."""

    def __init__(self, message: str, values: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.values = values


def update(
    state: TrainState,
    task: Task,
    batch: Batch,
    config: Config,
    autocast: torch.autocast,
    engine: Engine | None = None,
    guard: SpikeGuard | None = None,
    riders: Callable[[], Mapping[str, float]] = dict,
) -> dict[str, Tensor]:
    """Trains on one batch, in place, and returns the global losses and the gradient norm before clipping.

    Args:
        batch: this rank's rows of the global batch, on the CPU or the model's device; every rank has as many.
        guard: is told each loss and may leave the step out.
        riders: gives numbers to be summed over ranks and returned with the losses, at no cost.

    Raises: NotFiniteError, on all ranks, before any weight changes where the loss or a gradient isn't finite.
    """
    optim = config.optim
    engine = engine or Engine().begin(state.model)
    rate = schedule(state.step, optim)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak_lr"]
    total, terms, common = _gradients(task, batch, config, autocast, engine)
    gradient_norm = engine.clip(optim.clip_norm)
    is_bad = ~torch.isfinite(gradient_norm + total)
    riding = riders()
    sums = summed([total, *terms.values(), is_bad, *riding.values()], engine.ranks)
    loss, *of_terms, bad = sums[: 2 + len(terms)]
    values = {"loss": loss, **dict(zip(terms, of_terms, strict=True)), **common, "gradient_norm": gradient_norm}
    values |= dict(zip(riding, sums[2 + len(terms) :], strict=True))
    if bad or not loss.isfinite():
        raise NotFiniteError(
            f"step {state.step}: the gradient norm is {gradient_norm.item()} with loss {loss.item()}; "
            f"weights are unchanged. Lower optim.peak_lr ({optim.peak_lr}), or look at the batch: "
            f"{', '.join(batch.keys[:8])} ...",
            values,
        )
    is_spike = guard is not None and guard.judge(loss.item())
    state.step += 1
    if is_spike:
        return values | {LEFT_OUT: torch.ones(())}
    for optimizer in state.optimizers:
        optimizer.step()
    with torch.no_grad():
        state.model.log_scale.clamp_(0.0, MAX_LOG_SCALE)
    state.update_average(optim.ema_decay)
    return values


def _gradients(
    task: Task, batch: Batch, config: Config, autocast: torch.autocast, engine: Engine
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Makes the gradients of the global loss; returns this rank's shares of it and of its terms, and what is common."""
    counts = _global_counts(task, batch, engine.ranks)
    rows = len(batch.keys) * engine.ranks.world
    parts = list(micro_batches(batch, config.run.micro_batch))
    apart = task.reads_buckets_apart or batch.word_noise is not None
    if engine.is_cut_up and apart:  # each call of a block gathers its weights: all ranks must make as many
        parts = [in_one_bucket(part) for part in parts]
    parts = [on_device(engine.device, part) for part in parts]
    cached = None
    if len(parts) > 1 and type(task).compare is not Task.compare:
        cached = _Cached(task, parts, config, autocast, engine)
    total, terms, common = torch.zeros(()), {}, {}
    for number, part in enumerate(parts):
        with autocast:
            sums, compared = engine.call(task.forward, _ready(part, config))
            shares = task.means(sums, counts, rows)
            if cached is None and compared is not None:
                common = compared.common
                shares = _comparison(task, compared, len(batch.keys), engine.ranks) | shares
            loss = task.total(shares)
            reached = loss.detach()
            if cached is not None and compared is not None:
                loss = loss + cached.surrogate(number, compared)
        engine.backward(loss, last=number == len(parts) - 1)
        total = reached if number == 0 else total + reached
        terms = {name: share.detach() + terms.get(name, 0.0) for name, share in shares.items()}
    if cached is not None:
        total, terms, common = total + cached.loss, cached.terms | terms, cached.compared.common
    logged = {name: value.detach().reshape(-1)[0] for name, value in common.items()}
    return total, terms, logged


class _Cached:
    """The comparison of all rows, made before any micro-batch has a graph, and its gradients for each of them."""

    def __init__(
        self, task: Task, parts: list[Batch], config: Config, autocast: torch.autocast, engine: Engine
    ) -> None:
        seen: list[Compared] = []
        for part in parts:
            with torch.no_grad(), autocast:
                seen.append(engine.call(task.embed, _ready(part, config)))
        rows = {name: torch.cat([of.rows[name] for of in seen]) for name in seen[0].rows}
        self.compared = Compared(_leaves(rows), _leaves(seen[0].common))
        self._sizes, self._last = [len(part.keys) for part in parts], len(parts) - 1
        with autocast:
            terms = _comparison(task, self.compared, sum(self._sizes), engine.ranks)
            loss = task.total(terms)
        loss.backward()
        self.loss, self.terms = loss.detach(), {name: term.detach() for name, term in terms.items()}

    def surrogate(self, number: int, again: Compared) -> Tensor:
        """A scalar that has the comparison's gradient for the rows of one micro-batch, and is worth nothing else."""
        first = sum(self._sizes[:number])
        pairs = [
            (again.rows[name], row.grad[first : first + self._sizes[number]])
            for name, row in self.compared.rows.items()
            if row.grad is not None
        ]
        if number == self._last:  # once is enough; with the last one, so that gradients are whole in this backward pass
            pairs += [(again.common[n], x.grad) for n, x in self.compared.common.items() if x.grad is not None]
        return torch.stack([(value * gradient).sum() for value, gradient in pairs]).sum()


def _comparison(task: Task, compared: Compared, rows: int, ranks: Ranks) -> dict[str, Tensor]:
    """This rank's shares of the terms that need every row of the global batch."""
    everyone = {name: gathered(x, ranks) for name, x in compared.rows.items()}
    terms = task.compare(compared.rows, everyone, compared.common, ranks.rank * rows)
    return terms if ranks.world == 1 else {name: term / ranks.world for name, term in terms.items()}


def _ready(batch: Batch, config: Config) -> Batch:
    return batch._replace(pixels=normalised(batch.pixels, config.pixels))


def _global_counts(task: Task, batch: Batch, ranks: Ranks) -> dict[str, float]:
    counts = task.counts(batch)
    if ranks.world == 1 or not counts:
        return dict(counts)
    return dict(zip(counts, summed(list(counts.values()), ranks).tolist(), strict=True))


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: x.detach().requires_grad_() if x.is_floating_point() else x for n, x in tensors.items()}
