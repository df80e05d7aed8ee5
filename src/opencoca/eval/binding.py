"""Binding: which of two people has which skin tone.

The caption of a picture with two people names two tones from left to right; with the tones exchanged it is the caption
of another picture. A model that sees what is there, but not where, can't tell the two: chance is one half.
"""

from __future__ import annotations

import re
import time

from opencoca.data.openmoji import load_table
from opencoca.errors import DataError
from opencoca.eval.captioned import Captioned
from opencoca.eval.embed import embed_pictures
from opencoca.eval.registry import Data, Options, Place
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

SPLIT = "test_pictures"
TWO_TONES = re.compile(r"(?P<who>.*), (?P<left>\S+) skin tone and (?P<right>\S+) skin tone")


def exchanged(caption: str) -> str | None:
    """The caption with its two skin tones exchanged; None where it doesn't name two."""
    found = TWO_TONES.fullmatch(caption)
    return found and f"{found['who']}, {found['right']} skin tone and {found['left']} skin tone"


class Binding:
    """Each picture of two tones, its caption against the exchanged one: by similarity, and by the caption's likelihood.

    Left out are pictures that OpenMoji draws alike for both captions, where there is no right answer.
    """

    def __init__(self, name: str, pictures: Captioned, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures, options
        self.key = digest([name, pictures.stamp])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model; a tie counts against it."""
        began, pictures = time.perf_counter(), self._pictures
        drawing_of = {row.caption: row.picture for row in load_table()}
        embedded = embed_pictures(predictor, pictures.read, pictures.keys, self._options.cache, pictures.stamp)
        rows, texts, twins, same = [], [], [], 0
        for row, (caption, *_) in enumerate(embedded.captions):
            twin = exchanged(caption)
            if twin is None:
                continue
            if caption in drawing_of and drawing_of[caption] == drawing_of.get(twin):
                same += 1
                continue
            rows.append(row)
            texts.append(caption)
            twins.append(twin)
        if not rows:
            raise DataError(f"{self.name}: no picture of two people with two skin tones in {pictures.split!r}")
        embeds_IE = embedded.embeds[rows]
        margins_I = (embeds_IE * (predictor.embed_texts(texts) - predictor.embed_texts(twins))).sum(dim=1)
        shown = [pictures.read(embedded.places[row]).picture for row in rows]
        by_score_I = predictor.score(shown, texts) - predictor.score(shown, twins)
        per_sample = {"contrastive": (margins_I > 0).double(), "score": (by_score_I > 0).double()}
        keys = [pictures.keys[embedded.places[row]] for row in rows]
        facts = {
            "split": pictures.split,
            "split_digest": digest([f"{key} {text}" for key, text in zip(keys, texts, strict=True)]),
            "samples": len(rows),
            "chance": 0.5,
            "drawn_alike_and_left_out": same,
            "skipped": skipped_facts([*pictures.skipped, *embedded.skipped]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        figures = {metric: float(right.mean()) for metric, right in per_sample.items()}
        return EvaluationResult(self.name, figures, "contrastive", per_sample, keys, facts)


def make(name: str, data: Data, options: Options) -> Binding:
    """openmoji/binding, on `--data openmoji=PATH#SPLIT`."""
    path, split = data["openmoji"]
    return Binding(name, Captioned(Place(path, split or SPLIT), options), options)
