"""Zero-shot accuracy under the 15 common corruptions at 5 severities, beside that on the pictures as they are."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from opencoca.eval.cache import Arrays
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult
from opencoca.eval.robustness import corruptions
from opencoca.eval.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from opencoca.eval.robustness.pictures import Classes, common_facts, is_right, open_pictures, per_picture, truths_of
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

METHOD = 1  # raised when a corruption changes, so that what was kept is measured again
KINDS = {
    "noise": corruptions.NOISE,
    "blur": corruptions.BLUR,
    "weather": corruptions.WEATHER,
    "digital": corruptions.DIGITAL,
}


class Corrupted:
    """Every picture as it is and under each corruption at each severity, among all classes.

    figures: acc1 on clean pictures; mean_corruption_acc over all corruptions and severities, which is the headline;
      relative_drop = 1 - mean_corruption_acc / acc1; each corruption's mean over severities.
    """

    def __init__(self, name: str, pictures: Labelled, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures.spread(options.limit), options
        self.key = digest([name, METHOD, self._pictures.stamp, self._pictures.digest, options.seed])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, options = time.perf_counter(), self._pictures, self._options
        classes = Classes(predictor, pictures, options.cache)

        def work(squares: np.ndarray, ids: list[str]) -> Arrays:
            changed = np.empty((len(squares), len(CORRUPTIONS), len(SEVERITIES)), np.int32)
            for row, name in enumerate(CORRUPTIONS):
                for column, severity in enumerate(SEVERITIES):
                    made = [corrupted(s, name, severity, i, options.seed) for s, i in zip(squares, ids, strict=True)]
                    changed[:, row, column] = classes.guesses(np.stack(made))
            return {"clean": classes.guesses(squares), "changed": changed}

        empty = {
            "clean": np.empty(0, np.int32),
            "changed": np.empty((0, len(CORRUPTIONS), len(SEVERITIES)), np.int32),
        }
        key = ("corrupted", METHOD, options.seed, classes.key)
        judged = per_picture(predictor, pictures, options.cache, key, work, empty)
        truths = truths_of(pictures, judged.places)
        clean, right = is_right(judged.rows["clean"], truths), is_right(judged.rows["changed"], truths)
        per_sample = {
            "mean_corruption_acc": right.mean(dim=(1, 2)),
            "acc1": clean,
            **{f"severity_{severity}": right[:, :, i].mean(dim=1) for i, severity in enumerate(SEVERITIES)},
            **{name: right[:, i].mean(dim=1) for i, name in enumerate(CORRUPTIONS)},
        }
        figures = {name: float(values.mean()) for name, values in per_sample.items()}
        if figures["acc1"]:
            figures["relative_drop"] = 1 - figures["mean_corruption_acc"] / figures["acc1"]
        facts = {
            **common_facts(pictures, judged.places, judged.skipped),
            "seed": options.seed,
            "method": "ImageNet-C's 15 corruptions, with lengths scaled to the picture; see docs/robustness.md",
            "seconds": round(time.perf_counter() - began, 2),
            **_drawn(clean.mean(), right.mean(dim=0)),
        }
        ids = [pictures.ids[place] for place in judged.places]
        return EvaluationResult(self.name, figures, "mean_corruption_acc", per_sample, ids, facts)


def _drawn(clean: torch.Tensor, right_CS: torch.Tensor) -> dict:
    """Accuracy over severity as a chart per kind of corruption and for all, and the whole table."""
    rows = {name: [float(clean), *right_CS[i].tolist()] for i, name in enumerate(CORRUPTIONS)}
    over = [0, *SEVERITIES]
    charts = [
        {
            "title": "all corruptions, mean",
            "curves": {"mean": _points(over, np.mean(list(rows.values()), axis=0).tolist())},
        },
        *(
            {
                "title": kind,
                "curves": {one.__name__.replace("_", " "): _points(over, rows[one.__name__]) for one in kinds},
            }
            for kind, kinds in KINDS.items()
        ),
    ]
    highest = max(max(values) for values in rows.values())
    for chart in charts:
        chart |= {
            "unit": "%",
            "x_label": "severity",
            "x_names": ["clean", *map(str, SEVERITIES)],
            "y_range": [0, 10 * max(1, math.ceil(10 * highest))],
        }
    grid = {
        "title": "accuracy by corruption and severity",
        "columns": ["clean", *map(str, SEVERITIES), "mean"],
        "rows": [
            {"name": name.replace("_", " "), "values": [*values, sum(values[1:]) / len(SEVERITIES)]}
            for name, values in rows.items()
        ],
    }
    return {"charts": charts, "grids": [grid]}


def _points(xs: list[int], fractions: list[float]) -> list[list[float]]:
    return [[float(x), 100 * y] for x, y in zip(xs, fractions, strict=True)]


def make(name: str, data: Data, options: Options) -> Corrupted:
    """Corruptions of the pictures at `--data classes=PATH`."""
    return Corrupted(name, open_pictures(data[name.partition("/")[0]]), options)
