"""The same classes in another style: two sets of labelled pictures, compared on the classes that both have."""

from __future__ import annotations

import time

import numpy as np
import torch

from opencoca.errors import DataError
from opencoca.eval.embed import embed_labels, embed_pictures
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.robustness.pictures import band, open_pictures
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor
from opencoca.ranking import top_k


class StyleShift:
    """Accuracy in each style, where the labels are the classes that both styles have, by name.

    A class is a sample: its share of pictures found in each style, and the difference. The headline is acc1_other, the
    accuracy in the other style; drop is how much lower it is, retained how much of the accuracy is left.
    """

    def __init__(self, name: str, own: Labelled, other: Labelled, options: Options) -> None:
        names = [{one[0].casefold(): i for i, one in reversed(list(enumerate(some.names)))} for some in (own, other)]
        there = [set(some.truths) for some in (own, other)]
        self._shared = [
            (names[0][key], names[1][key])
            for key in names[0]
            if key in names[1] and names[0][key] in there[0] and names[1][key] in there[1]
        ]
        self._shared.sort()
        if len(self._shared) < 2:
            raise DataError(
                f"the two styles share {len(self._shared)} classes by name; give two sets with the same class names"
            )
        if options.limit is not None:
            count = min(max(options.limit, 2), len(self._shared))
            self._shared = [self._shared[i * len(self._shared) // count] for i in range(count)]
        self.name, self._own, self._other, self._options = name, own, other, options
        self.key = digest([name, own.stamp, own.digest, other.stamp, other.digest, len(self._shared)])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, options = time.perf_counter(), self._options
        names = [self._own.names[i] for i, _ in self._shared]
        labels = embed_labels(predictor, names, self._own.templates, options.cache)
        found, skipped, counts = [], [], []
        for side, pictures in enumerate((self._own, self._other)):
            row_of = {pair[side]: row for row, pair in enumerate(self._shared)}
            kept = [i for i, truth in enumerate(pictures.truths) if truth in row_of]
            keys = [pictures.ids[i] for i in kept]

            def read(i: int, kept=kept, pictures=pictures):
                return pictures.read(kept[i])

            stamp = digest([pictures.stamp, *kept])
            embedded = embed_pictures(predictor, read, keys, options.cache, stamp)
            skipped += [*pictures.skipped, *embedded.skipped]
            if not embedded.places:
                raise DataError(f"{self.name}: no picture of the {('first', 'other')[side]} style can be read")
            truths = torch.tensor([row_of[pictures.truths[kept[place]]] for place in embedded.places])
            right = (top_k(embedded.embeds, labels, k=1)[1][:, 0] == truths).double()
            total = torch.zeros(len(names), dtype=torch.double).index_add_(0, truths, torch.ones_like(right))
            found.append(torch.zeros(len(names), dtype=torch.double).index_add_(0, truths, right) / total)
            counts.append(len(embedded.places))
        both = found[0].isfinite() & found[1].isfinite()
        own, other = found[0][both], found[1][both]
        per_sample = {"acc1_other": other, "acc1": own, "drop": own - other}
        figures = {name: float(values.mean()) for name, values in per_sample.items()}
        if figures["acc1"]:
            figures["retained"] = figures["acc1_other"] / figures["acc1"]
        ids = [names[row][0] for row in np.flatnonzero(both.numpy())]
        facts = {
            "split_digest": digest([self._own.digest, self._other.digest, *ids]),
            "samples": len(ids),
            "classes": len(names),
            "pictures": dict(zip(("first", "other"), counts, strict=True)),
            "chance": 1 / len(names),
            "templates": list(self._own.templates),
            "bands": [band("accuracy by style", "the same classes in both", {"first": own, "other": other})],
            "skipped": skipped_facts(skipped),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return EvaluationResult(self.name, figures, "acc1_other", per_sample, ids, facts)


def make(name: str, data: Data, options: Options) -> StyleShift:
    """The classes of `--data classes=PATH` in the style of `--data style=PATH`."""
    return StyleShift(name, open_pictures(data["classes"]), open_pictures(data["style"]), options)
