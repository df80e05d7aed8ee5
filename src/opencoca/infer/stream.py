"""Pictures through the encoder as a stream: memory doesn't grow with their number, and a bad one doesn't stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from opencoca.data.pixels import open_picture, to_square
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.types import ImageFeatures

OnBad = Callable[[Path, DataError], None]


def encoded(predictor: Predictor, paths: Iterable[Path], on_bad: OnBad) -> Iterator[tuple[list[Path], ImageFeatures]]:
    """The readable pictures and their features, up to `predictor.batch_size` at a time, in the order of `paths`.

    A picture is shrunk as soon as it is read, so one batch of large photographs costs no more memory than another.
    `on_bad` is called with each picture that can't be read.
    """
    size_px, fit = predictor.config.model.vision.image_size_px, predictor.config.pixels.fit
    good: list[Path] = []
    squares: list[np.ndarray] = []
    for path in paths:
        try:
            squares.append(to_square(open_picture(path), size_px, fit))
        except DataError as error:
            on_bad(path, error)
            continue
        good.append(path)
        if len(good) == predictor.batch_size:
            yield good, predictor.encode_images(squares)
            good, squares = [], []
    if good:
        yield good, predictor.encode_images(squares)
