"""What an evaluation gives: its figures, the value of each sample behind them, and the facts that make them comparable.

An evaluation is an object with a `name` that is called with a `Predictor`; see `Evaluation`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor

COUNTS = ("cider", "spider", "brier", "nll", "factor", "gap_cider")  # figures whose names begin so are no fractions
NAMED = 20  # skipped items that are named in a result; all are counted
FORMAT, VERSION = "opencoca-evaluation", 1


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one model.

    name: "imagenet/zeroshot". figures: fractions, not percents. headline: the key of `figures` that matters most.
    per_sample: for each metric one float per sample, whose mean is the figure of that name; what the bootstrap and the
      paired tests take. A figure that is no mean over samples (BLEU of a set) has no entry here, and no interval.
    sample_ids: one per sample, the same for every model, so that results can be paired.
    facts: split digest, templates, preprocessing, counts, seconds; "skipped" as `skipped_facts` makes it.
    """

    name: str
    figures: dict[str, float]
    headline: str
    per_sample: dict[str, Tensor] = field(default_factory=dict)
    sample_ids: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.headline not in self.figures:
            raise DataError(
                f"{self.name}: the headline {self.headline!r} is not among its figures {list(self.figures)}"
            )
        for metric, values in self.per_sample.items():
            if values.shape != (len(self.sample_ids),):
                raise DataError(
                    f"{self.name}: {metric} has the shape {list(values.shape)} for {len(self.sample_ids)} samples; "
                    "give one number for each"
                )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, the per-sample values included; numbers that aren't finite become null."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "figures": {key: finite_or_none(value) for key, value in self.figures.items()},
            "headline": self.headline,
            "higher_is_better": self.higher_is_better,
            "facts": self.facts,
            "sample_ids": self.sample_ids,
            "per_sample": {key: [_short(v) for v in values.tolist()] for key, values in self.per_sample.items()},
        }

    @classmethod
    def from_json(cls, content: Any, where: str | Path = "a result") -> EvaluationResult:
        """The result that `to_json` wrote. Raises: DataError for anything else, naming the field."""
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
            raise DataError(
                f"{where} holds no {FORMAT} of version {VERSION}; write it with this version of `coca eval`"
            )
        try:
            return cls(
                name=str(content["name"]),
                figures={str(key): _number(value) for key, value in content["figures"].items()},
                headline=str(content["headline"]),
                per_sample={
                    str(key): torch.tensor([_number(value) for value in values], dtype=torch.float64)
                    for key, values in content["per_sample"].items()
                },
                sample_ids=[str(one) for one in content["sample_ids"]],
                facts=dict(content["facts"]),
                higher_is_better=bool(content["higher_is_better"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where} is damaged ({type(error).__name__}: {error}); write it again") from error


class Evaluation(Protocol):
    """What measures a model. `key`, where there is one, tells its data and settings apart: results are cached by it."""

    name: str

    def __call__(self, predictor: Predictor, /) -> EvaluationResult: ...


def skipped_facts(skipped: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Items that were left out, for `facts["skipped"]`: how many, how many per reason, and the first by name."""
    listed = list(skipped)
    return {
        "count": len(listed),
        "reasons": dict(Counter(_reason(reason) for _, reason in listed).most_common(NAMED)),
        "first": [f"{name}: {reason}" for name, reason in listed[:NAMED]],
    }


def skipped_count(result: EvaluationResult) -> int:
    """How many items an evaluation left out."""
    skipped = result.facts.get("skipped")
    if isinstance(skipped, dict):
        return int(skipped.get("count", 0))
    return len(skipped) if isinstance(skipped, list) else 0


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises: DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} isn't JSON ({str(error)[:80]}); write it again") from error


def finite_or_none(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return float(value) if math.isfinite(value) else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _short(value: float) -> float | int | None:
    """The value as JSON; 0 and 1, which most are, without a point."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def _reason(reason: str) -> str:
    """A reason without what names the one item, so that alike ones count together: at most its first clause."""
    return reason.split(";")[0].split("(")[0].split(":")[0].strip()[:80]
