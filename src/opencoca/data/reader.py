"""One training pair at a time: read, decoded, changed. What can't be read is replaced, and said to be.

No torch in here: worker processes run this, and are small.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import numpy as np

from opencoca.config import PixelConfig
from opencoca.data.augment import Augmentation
from opencoca.data.decode import decode_square, require_decoder
from opencoca.data.draws import sample_draw, uniforms
from opencoca.data.sample import Sample
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError

REPLACEMENTS = 100  # in a row that can't be read either: then something is wrong with all of them


class Skip(NamedTuple):
    """A sample that couldn't be read: `kind` is the reason without what is particular to it, to be counted by."""

    key: str
    reason: str
    kind: str


class Drawn(NamedTuple):
    """What is known of a pair beside its pixels.

    draw is what its random numbers are made of (`sample_draw`); samples with one drawing show the very same picture;
    captions are all of the picture's.
    """

    key: str
    draw: int
    caption: str
    drawing: str | None
    skips: tuple[Skip, ...]
    captions: tuple[str, ...]


class PairReader:
    """Reads pairs of a source. The same arguments give the same pair in every process.

    Decoded pictures (uint8, at the model's size) are kept up to `cache_bytes`, so that a small set is decoded once;
    none are where a random part of each is read. Samples have `pictures` of them each, which are changed alike.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        image_size_px: int,
        pixels: PixelConfig,
        augmentation: Augmentation,
        captions: Literal["sample", "first"] = "first",
        first_caption: float = 0.0,
        pictures: int = 1,
        cache_bytes: int = 0,
    ) -> None:
        require_decoder(pixels)
        self.source, self.seed, self.image_size_px, self.pixels = source, seed, image_size_px, pixels
        self.augmentation, self.captions, self.pictures = augmentation, captions, pictures
        self.first_caption = first_caption
        self._room = 0 if augmentation.crops else cache_bytes // (pictures * 3 * image_size_px**2)
        self._cache: dict[int, np.ndarray] = {}
        self.turn: AbstractContextManager[object] = contextlib.nullcontext()  # threads take turns at the source

    @property
    def channels(self) -> int:
        """Channels that a sample's pictures have together."""
        return 3 * self.pictures

    def read(self, epoch: int, index: int, pixels_CHW: np.ndarray) -> Drawn:
        """A pair, whose picture is written into pixels_CHW; another, drawn from (seed, epoch, sample), if it can't be.

        Several pictures of a sample stand behind each other, three channels each.

        Raises: DataError if as many as REPLACEMENTS in its place can't be read either.
        """
        skips: list[Skip] = []
        for place in self._places(epoch, index):
            key = self.source.keys[place]
            draw = sample_draw(self.seed, epoch, key)
            try:
                with self.turn:
                    sample = self.source[place]
                squares = [self.augmentation.apply(square, draw) for square in self._squares(place, sample, draw)]
            except DataError as error:
                skips.append(Skip(key, str(error), kind_of(str(error), key)))
                continue
            for number, square_HWC in enumerate(squares):
                pixels_CHW[3 * number : 3 * number + 3] = square_HWC.transpose(2, 0, 1)
            drawing = sample.attributes.get("picture")
            caption, drawing = self._caption(sample, draw), str(drawing) if drawing else None
            return Drawn(key, draw, caption, drawing, tuple(skips), sample.captions)
        raise DataError(
            f"neither {skips[0].key} nor {REPLACEMENTS} samples drawn in its place can be read "
            f"({skips[-1].reason}); run `coca data check`"
        )

    def _places(self, epoch: int, index: int) -> Iterator[int]:
        """The sample, and then those that may take its place."""
        yield index
        draw = sample_draw(self.seed, epoch, self.source.keys[index])
        yield from (uniforms(draw, "replacement", REPLACEMENTS) * len(self.source)).astype(int).tolist()

    def _squares(self, index: int, sample: Sample, draw: int) -> np.ndarray:
        squares = self._cache.get(index)
        if squares is None:
            if len(sample.pictures) != self.pictures:
                raise DataError(f"{sample.key} has {len(sample.pictures)} pictures, and {self.pictures} are read")
            name = f"the picture of {sample.key}"
            crop = (
                (lambda width, height: self.augmentation.box(draw, width, height)) if self.augmentation.crops else None
            )
            size = self.image_size_px
            squares = np.stack([decode_square(one, size, self.pixels, crop, name) for one in sample.pictures])
            if len(self._cache) < self._room:
                self._cache[index] = squares
        return squares

    def _caption(self, sample: Sample, draw: int) -> str:
        if self.captions == "first" or not sample.more_captions:
            return sample.caption
        turn, place = uniforms(draw, "caption", 2)[::-1]  # the first number has always been the place
        return sample.captions[int(place * len(sample.captions)) if turn >= self.first_caption else 0]


def kind_of(reason: str, key: str) -> str:
    """The reason without what is particular to one sample: its key, paths, numbers, details in parentheses."""
    for own in (key, key.partition("/")[2]):  # a mixture's source doesn't know of the number in front
        reason = reason.removeprefix(f"the picture of {own}") if own else reason
    short = re.sub(r" ?\([^()]*\)", "", reason).partition(";")[0]
    return re.sub(r"\d+(?:,\d{3})*", "#", re.sub(r"\S*[/\\]\S*", "a file", short)).strip(" :")
