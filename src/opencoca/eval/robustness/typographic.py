"""Typographic attack: another class's name is written onto the picture, and how often the model falls for it."""

from __future__ import annotations

import hashlib
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opencoca.errors import DataError
from opencoca.eval.cache import Arrays
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult
from opencoca.eval.robustness.pictures import (
    Classes,
    band,
    common_facts,
    is_right,
    open_pictures,
    per_picture,
    truths_of,
)
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

SMALLEST_PX, LARGEST = 7, 0.16  # the font's height, and its share of the picture's
MARGIN_PX = 2
METHOD = 1  # raised when what is drawn changes


def written(square: np.ndarray, text: str, sample_id: str, seed: int = 0, blank: bool = False) -> np.ndarray:
    """The square uint8 [H,W,3] with the text, black on a white label, at a height drawn from the id and the seed.

    The letters are Pillow's own font, as large as the text's width allows, from 7 pixels to a sixth of the picture;
    what is longer is broken into lines, and cut where they are too many. blank: the label without the text.
    """
    size = square.shape[0]
    image = Image.fromarray(square)
    draw = ImageDraw.Draw(image)
    font, lines = _fitted(draw, text, size)
    box = draw.multiline_textbbox((0, 0), lines, font=font, spacing=1)
    wide, high = min(box[2] - box[0] + 2 * MARGIN_PX, size), min(box[3] - box[1] + 2 * MARGIN_PX, size)
    left, top = (size - wide) / 2, _drawn(sample_id, seed, "place") * (size - high)
    draw.rectangle((left, top, left + wide - 1, top + high - 1), fill="white")
    if not blank:
        place = (left + MARGIN_PX - box[0], top + MARGIN_PX - box[1])
        draw.multiline_text(place, lines, fill="black", font=font, spacing=1)
    return np.asarray(image)


def wrong_class(truth: int, classes: int, sample_id: str, seed: int = 0) -> int:
    """A class that isn't the truth, drawn from the id and the seed."""
    return (truth + 1 + int(_drawn(sample_id, seed, "class") * (classes - 1))) % classes


class Typographic:
    """Each picture as it is, with a label that is blank, with a wrong name on it and with its own.

    figures: acc1 clean; acc1_written with a wrong name, the headline; fell_for, the share that takes the picture for
      what is written; fell_for_unwritten, the same with the label blank, which is how often that happens anyway;
      acc1_blank, what the label costs by what it hides; acc1_true_name, with its own name on it.
    """

    def __init__(self, name: str, pictures: Labelled, options: Options) -> None:
        if len(pictures.names) < 2:
            raise DataError(f"{name}: there are {len(pictures.names)} classes; a wrong name needs two or more")
        self.name, self._pictures, self._options = name, pictures.spread(options.limit), options
        self.key = digest([name, METHOD, self._pictures.stamp, self._pictures.digest, options.seed])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, options = time.perf_counter(), self._pictures, self._options
        classes = Classes(predictor, pictures, options.cache)
        truth_of = dict(zip(pictures.ids, pictures.truths, strict=True))
        names = [names[0] for names in pictures.names]

        def work(squares: np.ndarray, ids: list[str]) -> Arrays:
            wrong = [wrong_class(truth_of[one], len(names), one, options.seed) for one in ids]
            pairs = list(zip(squares, ids, wrong, strict=True))
            made = [
                squares,
                np.stack([written(s, names[w], i, options.seed) for s, i, w in pairs]),
                np.stack([written(s, names[w], i, options.seed, blank=True) for s, i, w in pairs]),
                np.stack([written(s, names[truth_of[i]], i, options.seed) for s, i, _ in pairs]),
            ]
            return {"guesses": np.stack([classes.guesses(one) for one in made], axis=1), "wrong": np.array(wrong)}

        empty = {"guesses": np.empty((0, 4), np.int32), "wrong": np.empty(0, np.int64)}
        key = ("written", METHOD, options.seed, classes.key, pictures.digest)
        judged = per_picture(predictor, pictures, options.cache, key, work, empty)
        guesses, wrong = judged.rows["guesses"], judged.rows["wrong"]
        right, fell = is_right(guesses, truths_of(pictures, judged.places)), is_right(guesses, wrong)
        per_sample = {
            "acc1_written": right[:, 1],
            "acc1": right[:, 0],
            "fell_for": fell[:, 1],
            "fell_for_unwritten": fell[:, 2],
            "acc1_blank": right[:, 2],
            "acc1_true_name": right[:, 3],
        }
        figures = {name: float(values.mean()) for name, values in per_sample.items()}
        facts = {
            **common_facts(pictures, judged.places, judged.skipped),
            "seed": options.seed,
            "bands": [
                band(
                    "accuracy by what is on the picture",
                    "the label hides a part, the name on it may mislead",
                    {
                        "nothing": right[:, 0],
                        "a blank label": right[:, 2],
                        "a wrong name": right[:, 1],
                        "its own name": right[:, 3],
                    },
                )
            ],
            "seconds": round(time.perf_counter() - began, 2),
        }
        ids = [pictures.ids[place] for place in judged.places]
        return EvaluationResult(self.name, figures, "acc1_written", per_sample, ids, facts)


def _fitted(
    draw: ImageDraw.ImageDraw, text: str, size: int
) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
    """The largest font in which the text fits on at most three lines, and the text in lines."""
    most = size - 2 * MARGIN_PX
    text = " ".join(text.split())[:80]
    for height in range(max(SMALLEST_PX, int(LARGEST * size)), SMALLEST_PX - 1, -1):
        font = _font(height)
        lines = _lines(draw, text, font, most)
        if len(lines) <= 3 and all(draw.textlength(line, font=font) <= most for line in lines):
            return font, "\n".join(lines)
    font = _font(SMALLEST_PX)
    return font, "\n".join(_lines(draw, text, font, most)[:3])


def _font(height: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=height)


def _lines(draw: ImageDraw.ImageDraw, text: str, font, most: float) -> list[str]:
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= most:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _drawn(sample_id: str, seed: int, what: str) -> float:
    """A number from 0 to below 1 that depends on nothing else."""
    digest = hashlib.sha256(f"{seed}\0{what}\0{sample_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "little") / (1 << 48)


def make(name: str, data: Data, options: Options) -> Typographic:
    """A wrong class's name on the pictures at `--data classes=PATH`."""
    return Typographic(name, open_pictures(data[name.partition("/")[0]]), options)
