"""Calibration: one temperature, and one bias for "none of these", fitted on a few labelled pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from opencoca.errors import CheckpointError, ConfigError, DataError, unwritable
from opencoca.files import replacing

FORMAT, VERSION = "opencoca-calibration", 1
FACTORS = (0.01, 100.0)
BIASES = (-100.0, 100.0)
# Weak beliefs that keep a fit finite where every picture is right: they weigh less than one picture.
FACTOR_SPREAD, BIAS_SPREAD = 1.5, 10.0


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities: `factor` times them, and `bias` on the neutral column; by default as trained.

    nll_before, nll_after: mean negative log-likelihood, in nats, of the `pictures` that it was fitted on.
    model: the fingerprint of the model it was fitted for.
    """

    method: str = "contrastive"
    unknown: bool = False
    multi_label: bool = False
    factor: float = 1.0
    bias: float = 0.0
    pictures: int = 0
    nll_before: float = 0.0
    nll_after: float = 0.0
    model: str = ""

    def check(self, method: str, unknown: bool, multi_label: bool) -> None:
        """Refuses, with ConfigError, to be used with settings other than it was fitted with."""
        wanted = {"method": method, "unknown": unknown, "multi_label": multi_label}
        fitted = {name: getattr(self, name) for name in wanted}
        if fitted != wanted:
            raise ConfigError(f"the calibration was fitted with {fitted}, not {wanted}; use the same, or fit another")

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all."""
        text = json.dumps({"format": FORMAT, "version": VERSION} | dataclasses.asdict(self), indent=2)
        try:
            with replacing(Path(path)) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(unwritable(path, error)) from error

    @classmethod
    def load(cls, path: str | Path, model: str) -> Calibration:
        """What `save` wrote, for the model with this fingerprint (`Predictor.fingerprint()`).

        Raises: CheckpointError if it is missing, damaged, or of another model.
        """
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT or values.pop("version") != VERSION:
                raise ValueError("another format")
            defaults = dataclasses.asdict(cls())
            for name, default in defaults.items():
                if type(values[name]) is not type(default):
                    raise ValueError(f"{name} is {values[name]!r}")
            found = cls(**{name: values[name] for name in defaults})
            if not (math.isfinite(found.bias) and FACTORS[0] <= found.factor <= FACTORS[1]):
                raise ValueError(f"factor {found.factor}, bias {found.bias}")
        except OSError as error:
            raise CheckpointError(f"can't read {path} ({error.strerror}); fit a calibration and save it") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no calibration ({error}); fit it again") from error
        if found.model != model:
            raise CheckpointError(
                f"{path} was fitted for another model ({found.model[:12]}, not {model[:12]}); fit it with this one"
            )
        return found


def fit(logits: Tensor, targets: Tensor, settings: Calibration) -> Calibration:
    """The settings with the factor and bias of the least mean negative log-likelihood.

    Args: logits [I,L] or [I,L+1] with the neutral column; targets bool [I,L+1], the last column where no label is true.
    Raises: DataError where there is nothing to fit on.
    """
    unknown, multi_label = settings.unknown, settings.multi_label
    labels = targets.shape[1] - 1
    if len(targets) == 0:
        raise DataError("there are no pictures to calibrate on; give at least one, better ten")
    if unknown and not multi_label and not targets[:, labels].any():
        raise DataError("no picture is none of the labels; give some with truth None, or calibrate without unknown")
    if not logits.isfinite().all():
        raise DataError("the model's logits are not finite; its weights or the pictures' embeddings are damaged")
    logits, targets = logits.double(), targets.double()
    has_neutral = logits.shape[1] > labels

    def loss(factor: float, bias: float) -> float:
        logits_IL = adjusted(logits, labels, factor, bias)
        if multi_label:
            against_IL = logits_IL[:, :labels] - logits_IL[:, labels:]
            terms = F.binary_cross_entropy_with_logits(against_IL, targets[:, :labels], reduction="none").sum(dim=1)
        else:
            terms = -(logits_IL.log_softmax(dim=-1) * targets[:, : logits_IL.shape[1]]).sum(dim=1)
        return terms.mean().item()

    def best_bias(log_factor: float) -> float:
        if not has_neutral:
            return 0.0
        factor = math.exp(log_factor)
        return _minimum(
            lambda bias: len(logits) * loss(factor, bias) + 0.5 * (bias / BIAS_SPREAD) ** 2, *BIASES, tolerance=1e-3
        )

    def objective(log_factor: float) -> float:
        bias = best_bias(log_factor)
        belief = 0.5 * (log_factor / FACTOR_SPREAD) ** 2 + 0.5 * (bias / BIAS_SPREAD) ** 2
        return len(logits) * loss(math.exp(log_factor), bias) + belief

    low, high = map(math.log, FACTORS)
    steps = [low + (high - low) * i / 20 for i in range(21)]
    best = min(range(21), key=[objective(step) for step in steps].__getitem__)
    log_factor = _minimum(objective, steps[max(0, best - 1)], steps[min(20, best + 1)], tolerance=1e-4)
    factor, bias = math.exp(log_factor), best_bias(log_factor)
    return dataclasses.replace(
        settings,
        factor=factor,
        bias=bias,
        pictures=len(logits),
        nll_before=loss(1.0, 0.0),
        nll_after=loss(factor, bias),
    )


def adjusted(logits: Tensor, labels: int, factor: float, bias: float) -> Tensor:
    """factor times logits [I,L] or [I,L+1], with the bias on the neutral column behind the first `labels`."""
    scaled = factor * logits
    if scaled.shape[1] > labels:
        scaled[:, labels] += bias
    return scaled


def _minimum(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a function with one valley is least between low and high, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = function(a), function(b)
    while high - low > tolerance:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = function(b)
    return (low + high) / 2
