"""A held-out split in memory, decoded once, for evaluations that run again and again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opencoca.config import PixelConfig
from opencoca.data.pixels import open_picture, to_square
from opencoca.data.sample import Sample
from opencoca.data.sources import open_source
from opencoca.errors import DataError


@dataclass(frozen=True)
class HeldOut:
    """One split: pictures uint8 [I,H,W,3] at the model's size, their captions and attributes."""

    name: str
    keys: tuple[str, ...]
    pictures: np.ndarray
    captions: tuple[str, ...]
    attributes: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, **wanted: str) -> np.ndarray:
        """Indices of the samples whose attributes have these values."""
        return np.flatnonzero([all(a.get(k) == v for k, v in wanted.items()) for a in self.attributes])


def load_held_out(folder: str | Path, split: str, image_size_px: int, pixels: PixelConfig) -> HeldOut:
    """Reads one split of a folder, in any form that `open_source` knows.

    Raises: DataError where the folder or split isn't there or is damaged.
    """
    reader = open_source(folder, split)
    samples = [reader[i] for i in range(len(reader))]
    if not samples:
        raise DataError(f"split {split!r} of {folder} has no samples; prepare the data again or name another split")
    return HeldOut(
        split,
        tuple(sample.key for sample in samples),
        np.stack([_square(sample, image_size_px, pixels) for sample in samples]),
        tuple(sample.caption for sample in samples),
        tuple(sample.attributes for sample in samples),
    )


def _square(sample: Sample, size_px: int, pixels: PixelConfig) -> np.ndarray:
    return to_square(open_picture(sample.picture, name=f"the picture of {sample.key}"), size_px, pixels)
