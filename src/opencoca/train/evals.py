"""What the loop knows of evaluations: small objects that yield (name, value). `jobs` wires real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from opencoca.model.coca import CoCa


class Evaluation(Protocol):
    """One measurement of a model, such as zero-shot accuracy on a split; the same object serves loop and command."""

    name: str

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        """Yields metric names, without the evaluation's own, and values."""
        ...


def run_evaluations(evaluations: list[Evaluation], model: CoCa) -> dict[str, float]:
    """All metrics under `evaluation/metric` keys, measured with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return {f"{e.name}/{metric}": value for e in evaluations for metric, value in e(model)}
    finally:
        model.train(was_training)
