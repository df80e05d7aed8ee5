"""How honest zero-shot probabilities are: calibration error, Brier score, likelihood, before and after a temperature.

The temperature is fitted on other pictures than it is judged on. Of N pictures with confidence c (the probability of
the first guess) and right or wrong r, in bins b of n_b pictures:

    ECE = sum_b n_b / N |mean of r in b - mean of c in b|

with 15 bins of equal width (as papers report it) or of equally many pictures. Both are above 0 for an honest model too,
by the noise of few pictures in a bin: `ece_floor` says how far.
"""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from opencoca.errors import ConfigError, DataError
from opencoca.eval.cache import Cache
from opencoca.eval.embed import embed_labels, embed_pictures
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult
from opencoca.eval.robustness.pictures import common_facts, open_pictures, truths_of
from opencoca.eval.statistics import digest
from opencoca.infer.calibration import Calibration, fit
from opencoca.infer.predictor import Predictor

BINS = 15
Kind = Literal["width", "mass"]


class Bin(NamedTuple):
    """One bin of a reliability diagram: how many pictures, their mean confidence, the share that is right."""

    count: int
    confidence: float
    accuracy: float


def reliability(confidence: Tensor, right: Tensor, kind: Kind = "width", bins: int = BINS) -> list[Bin]:
    """The bins that have pictures, from the least confident on.

    Args: confidence and right [I], from 0 to 1; kind "width": bins of equal width, a confidence on a border belongs to
      the lower one; "mass": of equally many pictures, in order of confidence, the first ones one larger where they
      can't be.
    Raises: ConfigError for fewer bins than 1 or another kind; DataError without pictures.
    """
    if bins < 1 or kind not in ("width", "mass"):
        raise ConfigError(f"{bins} bins of equal {kind!r} make no sense; take 1 or more of equal 'width' or 'mass'")
    if not len(confidence) or confidence.shape != right.shape:
        raise DataError(f"{len(confidence)} confidences and {len(right)} answers; give one of each, and at least one")
    confidence, right = confidence.double(), right.double()
    if kind == "width":
        place = (confidence * bins).ceil().clamp(1, bins).long() - 1
        groups = [torch.nonzero(place == b)[:, 0] for b in range(bins)]
    else:
        groups = list(confidence.argsort(stable=True).tensor_split(bins))
    return [Bin(len(g), float(confidence[g].mean()), float(right[g].mean())) for g in groups if len(g)]


def ece(confidence: Tensor, right: Tensor, kind: Kind = "width", bins: int = BINS) -> float:
    """The expected calibration error, from 0 to 1; see `reliability`."""
    found = reliability(confidence, right, kind, bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in found) / len(confidence)


def ece_floor(confidence: Tensor, kind: Kind = "width", bins: int = BINS, draws: int = 200) -> float:
    """The mean ECE if these confidences [I] were exactly true: what is below it says nothing."""
    generator = torch.Generator().manual_seed(0)
    confidence = confidence.double()
    right = torch.rand(draws, len(confidence), generator=generator, dtype=torch.double) < confidence
    return sum(ece(confidence, one, kind, bins) for one in right) / draws


def brier(probabilities: Tensor, truths: Tensor) -> Tensor:
    """The Brier score of each picture [I], from 0 to 2: the squared distance of probabilities [I,L] from the truth."""
    wanted = torch.zeros_like(probabilities).scatter_(1, truths[:, None], 1.0)
    return (probabilities - wanted).square().sum(dim=1)


def nll(logits: Tensor, truths: Tensor) -> Tensor:
    """The negative log-likelihood of the truth for each picture [I], in nats."""
    return -logits.log_softmax(dim=1).gather(1, truths[:, None])[:, 0]


class ZeroShotCalibration:
    """Zero-shot probabilities at the trained temperature, and at one that is fitted on the pictures of `val`.

    figures: ece (equal width, the headline), ece_mass, ece_floor (of equal width), brier, nll, confidence (mean) and
      acc1; with _after at the fitted temperature; factor, by which logits are multiplied for that. Labels are each
      set's own classes.
    """

    def __init__(self, name: str, pictures: Labelled, val: Labelled, options: Options) -> None:
        shared = set(pictures.ids) & set(val.ids) if pictures.stamp == val.stamp else set()
        if shared:
            raise DataError(
                f"{name}: test and val are the same {len(shared)} pictures; give others to fit on by --data val="
            )
        self.name, self._options = name, options
        self._pictures, self._val = pictures.spread(options.limit), val.spread(options.limit)
        self.key = digest(
            [name, BINS, *(one for some in (self._pictures, self._val) for one in (some.stamp, some.digest))]
        )

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, cache = time.perf_counter(), self._options.cache
        val_logits, val_truths, _, _ = _logits(predictor, self._val, cache, f"{self.name}, val")
        logits, truths, places, skipped = _logits(predictor, self._pictures, cache, self.name)
        wanted = torch.zeros(len(val_truths), val_logits.shape[1] + 1, dtype=torch.bool)
        wanted[torch.arange(len(val_truths)), val_truths] = True
        fitted = fit(val_logits, wanted, Calibration())
        figures: dict[str, float] = {}
        per_sample: dict[str, Tensor] = {}
        curves: dict[str, list[list[float]]] = {}
        facts: dict[str, Any] = {}
        for suffix, factor, words in (("", 1.0, "as trained"), ("_after", fitted.factor, "temperature fitted")):
            scaled = factor * logits
            probabilities = scaled.softmax(dim=1)
            confidence, guesses = probabilities.max(dim=1)
            right = (guesses == truths).double()
            figures[f"ece{suffix}"] = ece(confidence, right)
            figures[f"ece_mass{suffix}"] = ece(confidence, right, "mass")
            figures[f"ece_floor{suffix}"] = ece_floor(confidence)
            per_sample |= {
                f"brier{suffix}": brier(probabilities, truths),
                f"nll{suffix}": nll(scaled, truths),
                f"confidence{suffix}": confidence,
            }
            per_sample.setdefault("acc1", right)
            for kind in ("width", "mass"):
                rows = reliability(confidence, right, kind)
                facts[f"reliability_{kind}{suffix}"] = [one._asdict() for one in rows]
            curves[words] = [
                [100 * one.confidence, 100 * one.accuracy] for one in reliability(confidence, right, "mass")
            ]
        figures |= {name: float(values.mean()) for name, values in per_sample.items()}
        figures["factor"] = fitted.factor
        facts |= {
            **common_facts(self._pictures, places, skipped),
            "bins": f"{BINS} of equal width (ece) and of equally many pictures (ece_mass)",
            "fitted_on": f"{len(val_truths)} pictures of {len(self._val.names)} classes, digest {self._val.digest}",
            "seconds": round(time.perf_counter() - began, 2),
            "charts": [
                {
                    "title": "reliability: confidence and accuracy",
                    "unit": "%",
                    "x_label": "mean confidence of a bin, %",
                    "x_range": [0, 100],
                    "y_range": [0, 100],
                    "curves": curves,
                    "references": {"honest": [[0, 0], [100, 100]]},
                }
            ],
        }
        ids = [self._pictures.ids[place] for place in places]
        return EvaluationResult(self.name, figures, "ece", per_sample, ids, facts, higher_is_better=False)


def _logits(
    predictor: Predictor, pictures: Labelled, cache: Cache, name: str
) -> tuple[Tensor, Tensor, list[int], list[tuple[str, str]]]:
    """Logits float64 [I,L] at the trained scale, truths [I], places, and what was left out."""
    embedded = embed_pictures(predictor, pictures.read, pictures.ids, cache, pictures.stamp)
    if not embedded.places:
        raise DataError(f"{name}: none of {len(pictures)} pictures can be read; {embedded.skipped[0][1]}")
    labels = embed_labels(predictor, pictures.names, pictures.templates, cache)
    truths = torch.from_numpy(truths_of(pictures, embedded.places))
    logits = predictor.scale * embedded.embeds.double() @ labels.double().T
    return logits, truths, embedded.places, [*pictures.skipped, *embedded.skipped]


def make(name: str, data: Data, options: Options) -> ZeroShotCalibration:
    """Calibration on `--data classes=PATH`, with the temperature of `--data val=PATH`."""
    return ZeroShotCalibration(name, open_pictures(data["classes"]), open_pictures(data["val"]), options)
