"""How far a figure may be trusted: bootstrap intervals, paired tests of two models, digests of what was measured.

Everything is drawn from a seed, so the same values give the same interval, and the same resamples serve every model.
Values that are equal are drawn together: ten thousand resamples of right and wrong answers are ten thousand draws of
one multinomial, and cost milliseconds, whatever the number of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from opencoca.errors import ConfigError, DataError

RESAMPLES = 10_000
CONFIDENCE = 0.95
DISTINCT = 128  # more different values are drawn as so many groups of neighbours; see `bootstrap_interval`

Values = Sequence[float] | Tensor | np.ndarray


class Interval(NamedTuple):
    """The bounds of a mean."""

    low: float
    high: float


class Comparison(NamedTuple):
    """How much better a model is than another on the same samples.

    difference: of the means, this minus the other. interval: of the difference, by paired bootstrap. p: of a sign-flip
    test, two-sided: how often a difference this large comes about if the models are interchangeable on every sample.
    samples: how many both have.
    """

    difference: float
    interval: Interval
    p: float
    samples: int


def bootstrap_interval(
    values: Values, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """The percentile interval of the mean of values [I], from `resamples` draws of I values with replacement.

    Of more than 128 different values, neighbours are drawn as one with their mean: the interval of normal values is
    0.1% too short by that, and the cost doesn't grow with I.

    Where all values are 0, or all are 1, resampling would claim certainty: then the bounds are the exact binomial ones.

    Raises: DataError for no values or some that aren't finite; ConfigError for settings that make no sense.
    """
    array = _checked(values)
    if resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"resamples {resamples} must be 1 or more and confidence {confidence} between 0 and 1")
    tail = (1 - confidence) / 2
    if array.min() == array.max():
        only, count = float(array[0]), len(array)
        if only == 0:
            return Interval(0.0, 1 - tail ** (1 / count))
        return Interval(tail ** (1 / count) if only == 1 else only, only)
    low, high = np.quantile(resampled_means(array, resamples, seed), [tail, 1 - tail])
    return Interval(float(low), float(high))


def compare(ours: Values, theirs: Values, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """The paired comparison of two models' values [I] of the same samples in the same order.

    Source: paired bootstrap (Efron); sign-flip permutation test (Fisher), with (1 + hits) / (1 + draws) as p.
    Raises: DataError for different numbers of samples.
    """
    first, second = _checked(ours), _checked(theirs)
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} samples can't be paired; measure both models on the same ones")
    differences = first - second
    mean = float(differences.mean())
    if not differences.any():
        return Comparison(0.0, Interval(0.0, 0.0), 1.0, len(first))
    low, high = np.quantile(resampled_means(differences, resamples, seed), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Comparison(mean, Interval(float(low), float(high)), _sign_flip(differences, resamples, seed), len(first))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values made larger for how many tests there are, by Holm's step-down rule."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def digest(parts: Iterable[object]) -> str:
    """16 hex digits that tell a list of things apart, as of their text; each is delimited."""
    hashed = hashlib.sha256()
    for part in parts:
        encoded = str(part).encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()[:16]


def _checked(values: Values) -> np.ndarray:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"values of the shape {list(array.shape)} have no mean to resample; give a list of 1 or more")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"value {where} is {array[where]}; leave samples without a value out, and count them")
    return array


def resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The means of `resamples` draws with replacement."""
    alike, counts = _alike(values)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return drawn @ alike / len(values)


def _sign_flip(differences: np.ndarray, resamples: int, seed: int) -> float:
    """The share of random signs whose sum is at least as far from 0 as what was observed."""
    sizes, counts = _alike(np.abs(differences[differences != 0]))
    plus = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(sizes)))
    sums = np.abs((2 * plus - counts) @ sizes)
    slack = 1e-9 * np.abs(differences).sum()  # equal sums must count, whatever their last bits
    return float(1 + np.count_nonzero(sums >= abs(differences.sum()) - slack)) / (1 + resamples)


def _alike(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values and how often each occurs; of very many, the means of groups of neighbours."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= DISTINCT:
        return distinct, counts
    groups = np.array_split(np.sort(values), DISTINCT)
    return np.array([group.mean() for group in groups]), np.array([len(group) for group in groups])
