"""Zero-shot accuracy under attack, through the classifier's own logits and its preprocessing from pixels on."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from opencoca.eval.cache import Arrays
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult
from opencoca.eval.robustness import attacks, library
from opencoca.eval.robustness.pictures import Classes, common_facts, is_right, open_pictures, per_picture, truths_of
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

LEVELS = (1, 2, 4, 8)  # of 255
MOST = 1000  # pictures, where no limit is given: an attack costs some 150 passes
BATCH = 32  # pictures whose gradients are held at once

CHAIN = tuple(f"pgd_{level}" for level in LEVELS)


def classifier(predictor: Predictor, labels: Tensor) -> attacks.Logits:
    """Pixels float [B,3,H,W] from 0 to 1 -> zero-shot logits [B,L] at the trained scale, with a gradient."""
    config, model = predictor.config.pixels, predictor.model
    dtype = next(model.parameters()).dtype
    mean, std = (torch.tensor(v, device=predictor.device)[:, None, None] for v in (config.mean, config.std))
    labels, scale = labels.to(predictor.device), predictor.scale

    def logits(pixels: Tensor) -> Tensor:
        embeds = model.encode_image(((pixels - mean) / std).to(dtype)).embed
        return scale * embeds.float() @ labels.T

    return logits


class Attacked:
    """FGSM and PGD at each eps. The headline is PGD at 8/255.

    Pictures that are wrong already count as wrong, and aren't attacked. One that PGD fools within a smaller eps counts
    as fooled within a larger one, in which that picture lies too. FGSM's single step of eps has no such claim, and may
    fool less at more.
    """

    def __init__(self, name: str, pictures: Labelled, options: Options) -> None:
        self.name, self._options = name, options
        self._pictures = pictures.spread(options.limit or MOST)
        parts = (self._pictures.stamp, self._pictures.digest, options.seed, LEVELS, attacks.STEPS, library.NAMES)
        self.key = digest([name, *parts, library.version()])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, options = time.perf_counter(), self._pictures, self._options
        classes = Classes(predictor, pictures, options.cache)
        logits = classifier(predictor, classes.embeds)
        truth_of = dict(zip(pictures.ids, pictures.truths, strict=True))
        ways, lacking = self._ways(logits, len(pictures.names))
        names = list(ways)

        def work(squares: np.ndarray, ids: list[str]) -> Arrays:
            stood = np.zeros((len(squares), 1 + len(names)), np.int32)
            for first in range(0, len(squares), BATCH):
                some = slice(first, first + BATCH)
                pixels = torch.from_numpy(squares[some]).permute(0, 3, 1, 2).float().div(255).to(predictor.device)
                truths = torch.tensor([truth_of[one] for one in ids[some]], device=predictor.device)

                now = np.zeros((len(truths), 1 + len(names)), bool)
                now[:, 0] = _right(logits, pixels, truths)
                for column, name in enumerate(names, 1):
                    before = column - 1 if name in CHAIN and name != CHAIN[0] else 0
                    standing = np.flatnonzero(now[:, before])
                    if len(standing):
                        own = torch.from_numpy(standing).to(predictor.device)
                        made = ways[name](pixels[own], truths[own], [ids[first + i] for i in standing])
                        now[standing, column] = _right(logits, made, truths[own])
                stood[some] = now
            return {"stood": stood}

        empty = {"stood": np.empty((0, 1 + len(names)), np.int32)}
        key = ("attacked", self.key, classes.key, names)
        judged = per_picture(predictor, pictures, options.cache, key, work, empty)
        stood = is_right(judged.rows["stood"], np.ones(len(judged.places)))
        per_sample = {"acc1": stood[:, 0]} | {name: stood[:, i] for i, name in enumerate(names, 1)}
        figures = {name: float(values.mean()) for name, values in per_sample.items()}
        facts = {
            **common_facts(pictures, judged.places, judged.skipped),
            "truths_digest": digest(truths_of(pictures, judged.places).tolist()),
            "seed": options.seed,
            "attack": f"L-infinity, eps of 255; PGD {attacks.STEPS} steps of {attacks.REACH:g} eps / {attacks.STEPS}",
            "not_measured": lacking,
            "seconds": round(time.perf_counter() - began, 2),
            "charts": [
                {
                    "title": "accuracy under attack",
                    "unit": "%",
                    "x_label": "eps, in levels of 255",
                    "curves": {
                        word: [[0, 100 * figures["acc1"]], *([e, 100 * figures[f"{word.lower()}_{e}"]] for e in LEVELS)]
                        for word in ("FGSM", "PGD")
                    },
                    "references": {"chance": [[0, 100 / len(pictures.names)], [LEVELS[-1], 100 / len(pictures.names)]]},
                }
            ],
        }
        ids = [pictures.ids[place] for place in judged.places]
        return EvaluationResult(self.name, figures, f"pgd_{LEVELS[-1]}", per_sample, ids, facts)

    def _ways(self, logits: attacks.Logits, classes: int) -> tuple[dict[str, Callable], dict[str, str]]:
        """Each attack by name, as (pixels, truths, ids) -> pixels, and the reason for each that can't be run."""
        ways: dict[str, Callable] = {}  # those of the chain first, each behind the one of less eps
        single: dict[str, Callable] = {}
        for level in LEVELS:

            def step(pixels, truths, ids, eps=level / 255):
                return attacks.fgsm(logits, pixels, truths, eps)

            def descent(pixels, truths, ids, eps=level / 255):
                start = attacks.starts(ids, tuple(pixels.shape[1:]), self._options.seed).to(pixels.device)
                return attacks.pgd(logits, pixels, truths, eps, start=start)

            ways[f"pgd_{level}"], single[f"fgsm_{level}"] = descent, step
        ways |= single
        if importlib.util.find_spec(library.PACKAGE) is None:
            return ways, {", ".join(library.NAMES): library.REPAIR}
        return ways | library.ways(logits, classes, LEVELS[-1] / 255), {}


def _right(logits: attacks.Logits, pixels: Tensor, truths: Tensor) -> np.ndarray:
    with torch.no_grad():
        return (logits(pixels).argmax(dim=1) == truths).cpu().numpy()


def make(name: str, data: Data, options: Options) -> Attacked:
    """Attacks on the pictures at `--data classes=PATH`."""
    return Attacked(name, open_pictures(data[name.partition("/")[0]]), options)
