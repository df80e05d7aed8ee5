"""What the loop knows of evaluations: small objects that yield (name, value). `jobs` wires real ones."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opencoca import checkpoint, errors
from opencoca.config import Config
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.parallel.collectives import gathered_values
from opencoca.parallel.mesh import Ranks
from opencoca.train.state import TrainState


class Evaluation(Protocol):
    """One measurement of a model, such as zero-shot accuracy on a split; the same object serves loop and command."""

    name: str

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        """Yields metric names, without the evaluation's own, and values."""
        ...


def evaluate(
    evaluations: list[Evaluation],
    state: TrainState,
    config: Config,
    ranks: Ranks,
    prepare: Callable[[CoCa], None] | None = None,
    is_cut_up: bool = False,
) -> dict[str, float]:
    """All metrics of the weights that would be shipped; the first rank measures, the others wait for its values.

    These weights stand in a copy of the model, so that an interruption leaves the trained ones as they are. Where ranks
    hold parts of them (`is_cut_up`), the first one puts a whole model together, made and `prepare`d as at the start.
    """
    model = _whole_model(state, config, ranks, prepare) if is_cut_up else state.model
    if model is not None and state.average and not is_cut_up:
        model = copy.deepcopy(state.model)
        checkpoint.load_weights(model, state.average, "the moving average")
    # captions are generated token by token, and each length would be compiled anew
    stance = torch.compiler.set_stance("force_eager") if config.run.compile else contextlib.nullcontext()
    with stance:
        return on_first(ranks, lambda: run_evaluations(evaluations, model) if model is not None else {})


def run_evaluations(evaluations: list[Evaluation], model: CoCa) -> dict[str, float]:
    """All metrics under `evaluation/metric` keys, measured with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return {f"{e.name}/{metric}": value for e in evaluations for metric, value in e(model)}
    finally:
        model.train(was_training)


def on_first(ranks: Ranks, action: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `action` gives on the first rank, told to all of them.

    Raises: on all ranks, what it raises there.
    """
    if ranks.world == 1:
        return action()
    values, failure = None, None
    if ranks.first:
        try:
            values = action()
        except Exception as error:
            failure = error
    said = None if failure is None else [type(failure).__name__, str(failure)]
    answer = gathered_values([values, said], ranks)[0]
    if failure is not None:
        raise failure
    if answer[1] is not None:
        kind, text = answer[1]
        raise getattr(errors, kind, RuntimeError)(f"rank 0: {text}")
    return answer[0]


def _whole_model(
    state: TrainState, config: Config, ranks: Ranks, prepare: Callable[[CoCa], None] | None
) -> CoCa | None:
    """A model of its own with the weights to ship, on the first rank; every rank must call it."""
    weights: dict[str, Tensor] = {}
    for name, part in state.weights().items():
        tensor: Any = part.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.first:
            weights[name] = tensor
    if not ranks.first:
        return None
    model = build(config.model, config.run.seed, state.model.log_scale.device)
    if prepare is not None:
        prepare(model)
    checkpoint.load_weights(model, weights, "the ranks' parts")
    return model
