"""Zero-shot accuracy at low resolution, and how much of it survives over several data sets.

Source: LR0.FM (2502.03950). Pictures are scaled down to n pixels bicubically and up again. Of one data set with
accuracy A_n at n pixels and A_HR on the pictures as they are:

    gamma_n = A_n / A_HR                                          relative robustness
    Gamma_n = gamma_n (1 - exp(-200 E^2)), E = A_HR - 1/classes   improved: near 0 where the model only guesses
    SAR_n   = the mean of gamma_n over data sets                  simple aggregated robustness
    WAR_n   = sum_D w_D Gamma_n^D / sum_D w_D                     weighted aggregated robustness

Differs: the high resolution is the model's own size, there 224 pixels; sizes that aren't below it are left out. The
weights are the paper's for its data sets, and stay the same where only some of them are there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from opencoca.errors import DataError
from opencoca.eval.cache import Arrays
from opencoca.eval.labelled import Labelled, open_labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.robustness.pictures import Classes, common_facts, is_right, open_pictures, per_picture, truths_of
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

SIZES = (8, 16, 32, 64, 128)  # 8 isn't the paper's; it shows where small models fail
ALPHA = 200.0
WEIGHTS = {
    "imagenet": 0.15556,
    "imagenet-a": 0.9705,
    "imagenet-v2": 0.28546,
    "imagenet-r": 0.01,
    "imagenet-sketch": 0.02146,
    "caltech101": 0.01,
    "dtd": 0.50592,
    "food101": 0.01,
    "sun397": 0.40756,
    "cars": 0.13584,
    "aircraft": 0.82295,
    "pets": 0.08995,
    "flowers": 0.08972,
    "eurosat": 1.0,
    "ucf101": 0.01,
}


def lowered(square: np.ndarray, size_px: int) -> np.ndarray:
    """The square uint8 [H,W,3], scaled down to size_px and back up bicubically."""
    height, width = square.shape[:2]
    small = Image.fromarray(square).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def gamma(accuracy: float, clean: float) -> float:
    """Relative robustness A_n / A_HR; nan where the model is never right."""
    return accuracy / clean if clean else math.nan


def improved_gamma(accuracy: float, clean: float, chance: float) -> float:
    """Relative robustness, drawn to 0 where the clean accuracy is near chance."""
    return gamma(accuracy, clean) * (1 - math.exp(-ALPHA * (clean - chance) ** 2))


def war(improved: Mapping[str, float]) -> float:
    """The mean of improved gammas by data set, with the paper's weights. Raises: DataError for a set without one."""
    unknown = [name for name in improved if name not in WEIGHTS]
    if unknown or not improved:
        raise DataError(f"there is no weight for {', '.join(unknown) or 'no data set'}; there are {', '.join(WEIGHTS)}")
    return sum(WEIGHTS[name] * value for name, value in improved.items()) / sum(WEIGHTS[name] for name in improved)


class LowResolution:
    """Accuracy at each size; the headline is the smallest of the paper's (16 pixels) where it is below the model's."""

    def __init__(self, name: str, pictures: Labelled, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures.spread(options.limit), options
        self.key = digest([name, SIZES, self._pictures.stamp, self._pictures.digest])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, options = time.perf_counter(), self._pictures, self._options
        full_px = predictor.config.model.vision.image_size_px
        sizes = [size for size in SIZES if size < full_px]
        if not sizes:
            raise DataError(
                f"the model sees {full_px} pixels, no more than the smallest size {SIZES[0]}; nothing to lower"
            )
        classes = Classes(predictor, pictures, options.cache)

        def work(squares: np.ndarray, ids: list[str]) -> Arrays:
            made = [classes.guesses(np.stack([lowered(one, size) for one in squares])) for size in sizes]
            return {"guesses": np.stack([*made, classes.guesses(squares)], axis=1)}

        empty = {"guesses": np.empty((0, len(sizes) + 1), np.int32)}
        judged = per_picture(predictor, pictures, options.cache, ("lowered", sizes, classes.key), work, empty)
        right = is_right(judged.rows["guesses"], truths_of(pictures, judged.places))
        per_sample = {f"acc1_{size}px": right[:, i] for i, size in enumerate(sizes)} | {"acc1": right[:, -1]}
        figures = {name: float(values.mean()) for name, values in per_sample.items()}
        clean, chance = figures["acc1"], 1 / len(pictures.names)
        for size in sizes:
            figures[f"gamma_{size}px"] = gamma(figures[f"acc1_{size}px"], clean)
            figures[f"improved_gamma_{size}px"] = improved_gamma(figures[f"acc1_{size}px"], clean, chance)
        headline = f"acc1_{next((size for size in sizes if size >= 16), sizes[0])}px"
        facts = {
            **common_facts(pictures, judged.places, judged.skipped),
            "high_resolution_px": full_px,
            "seconds": round(time.perf_counter() - began, 2),
            "charts": _charts({"accuracy": right.mean(dim=0)}, sizes, full_px, chance),
        }
        ids = [pictures.ids[place] for place in judged.places]
        return EvaluationResult(self.name, figures, headline, per_sample, ids, facts)


class Aggregated:
    """SAR and WAR over a folder that holds the paper's data sets, or some of them, each in a folder of its name."""

    def __init__(self, name: str, parts: dict[str, LowResolution], unused: list[tuple[str, str]]) -> None:
        self.name, self._parts, self._unused = name, parts, unused
        self.key = digest([name, *(part.key for part in parts.values())])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model on each; there are no per-sample values, so no interval either."""
        began = time.perf_counter()
        results = {name: part(predictor) for name, part in self._parts.items()}
        sizes = [int(key[5:-2]) for key in next(iter(results.values())).figures if key.startswith("acc1_")]
        figures = {}
        for size in sizes:
            figures[f"war_{size}px"] = war({n: r.figures[f"improved_gamma_{size}px"] for n, r in results.items()})
            gammas = [result.figures[f"gamma_{size}px"] for result in results.values()]
            figures[f"sar_{size}px"] = sum(gammas) / len(gammas)
        skipped = [(f"{name}, {key}", why) for name, part in self._parts.items() for key, why in part._pictures.skipped]
        facts = {
            "datasets": {name: result.figures["acc1"] for name, result in results.items()},
            "of": f"{len(results)} of the {len(WEIGHTS)} data sets of the paper",
            "split_digest": digest([result.facts["split_digest"] for result in results.values()]),
            "samples": sum(result.facts["samples"] for result in results.values()),
            "skipped": skipped_facts([*skipped, *self._unused]),
            "seconds": round(time.perf_counter() - began, 2),
            "grids": [
                {
                    "title": "accuracy by data set and resolution",
                    "columns": [*(f"{size} px" for size in sizes), "full"],
                    "rows": [
                        {"name": n, "values": [r.figures[k] for k in (*(f"acc1_{s}px" for s in sizes), "acc1")]}
                        for n, r in results.items()
                    ],
                }
            ],
        }
        return EvaluationResult(self.name, figures, f"war_{16 if 16 in sizes else sizes[0]}px", {}, [], facts)


def _charts(curves: Mapping[str, Tensor], sizes: list[int], full_px: int, chance: float) -> list[dict]:
    names = [*map(str, sizes), f"{full_px} (full)"]
    return [
        {
            "title": "accuracy by resolution",
            "unit": "%",
            "x_label": "pixels across, before it is enlarged again",
            "x_names": names,
            "curves": {name: [[i, 100 * float(y)] for i, y in enumerate(values)] for name, values in curves.items()},
            "references": {"chance": [[0, 100 * chance], [len(sizes), 100 * chance]]},
        }
    ]


def make(name: str, data: Data, options: Options) -> LowResolution:
    """Low resolution of the pictures at `--data classes=PATH`."""
    return LowResolution(name, open_pictures(data[name.partition("/")[0]]), options)


def make_aggregated(name: str, data: Data, options: Options) -> Aggregated:
    """SAR and WAR over the data sets in `--data datasets=FOLDER`. Raises: DataError where none is of the paper's."""
    folder = data["datasets"].path
    there = [one for one in sorted(folder.iterdir()) if one.is_dir()] if folder.is_dir() else []
    like = folder / "imagenet"
    parts = {
        one.name: LowResolution(one.name, open_labelled(one, like if like.is_dir() else None), options)
        for one in there
        if one.name in WEIGHTS
    }
    if not parts:
        raise DataError(f"{folder} has no folder of the names {', '.join(WEIGHTS)}; put the data sets there")
    unused = [
        (one.name, "it is no data set of the paper, and has no weight") for one in there if one.name not in WEIGHTS
    ]
    return Aggregated(name, parts, unused)
