"""The pictures of a fine-tuning: which of them train and which are held out, so that no copy is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opencoca.config import PixelConfig
from opencoca.data.groups import joined
from opencoca.data.pixels import open_picture, to_square
from opencoca.data.sample import Sample
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError

FEWEST = 20  # pictures, below which neither training nor a figure means anything
FEWEST_HELD_OUT = 5
MOST_MEASURED = 500


class Chosen:
    """Some samples of a source, as a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self._indices = source, list(indices)
        self.keys = [source.keys[i] for i in self._indices]
        self.skipped: Sequence[tuple[str, str]] = []
        self.shards = [range(len(self._indices))]
        digest = hashlib.sha256(source.fingerprint.encode())
        digest.update("\n".join(self.keys).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int, /) -> Sample:
        return self._source[self._indices[i]]


@dataclass(frozen=True)
class Split:
    """Sources of both sides, and (key, reason) of each sample that is on neither."""

    train: Chosen
    val: Chosen
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Held:
    """Held-out pictures, uint8 [I,H,W,3] at the model's size, each with its captions; decoded once."""

    source: Chosen
    pictures: np.ndarray
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def texts(self) -> list[str]:
        """The different captions, in order of appearance: what retrieval ranks."""
        return list(dict.fromkeys(text for captions in self.captions for text in captions))


def split_by_picture(source: Source, share: float) -> Split:
    """Holds out about `share` of the pictures, the same ones whenever the same pictures come in.

    A picture's side depends on the digest of its file alone, and pictures with equal bytes, one `picture` or one
    `concept` among their attributes are one. A sample that can't be read is on neither side.

    Raises: DataError where too few pictures are left on a side, or all captions are the same.
    """
    if not 0 < share < 1:
        raise DataError(f"--val {share:g} is no share of the pictures; give one above 0 and below 1, such as 0.1")
    skipped = list(source.skipped)
    rows, marks = _read(source, skipped)
    _require_enough(len(rows), FEWEST, "pictures", skipped)
    held_out = _chosen(joined(marks), share)
    train = [i for i, out in zip(rows, held_out, strict=True) if not out]
    val = [i for i, out in zip(rows, held_out, strict=True) if out]
    if not train:
        raise DataError(f"all {len(rows)} pictures are copies of a few; give more different ones")
    return Split(Chosen(source, train), Chosen(source, val), skipped)


def split_as_told(train: Source, val: Source) -> Split:
    """The data's own splits, but for held-out samples whose picture or concept is among those to train on.

    Raises: DataError where too few pictures are left on a side, or all captions are the same.
    """
    skipped = [*train.skipped, *val.skipped]
    rows, marks = _read(train, skipped)
    _require_enough(len(rows), FEWEST - FEWEST_HELD_OUT, "pictures to train on", skipped)
    known = {mark for row in marks for mark in row}
    kept = []
    for i, row in zip(*_read(val, skipped), strict=True):
        if known.isdisjoint(row):
            kept.append(i)
        else:
            skipped.append((val.keys[i], "it is held out, and a copy of it is among the pictures to train on"))
    _require_enough(len(kept), FEWEST_HELD_OUT, "held-out pictures", skipped)
    return Split(Chosen(train, rows), Chosen(val, kept), skipped)


def _read(source: Source, skipped: list[tuple[str, str]]) -> tuple[list[int], list[tuple[str, ...]]]:
    """The samples that can be read, and for each what it shares with its copies; others go to `skipped`."""
    rows: list[int] = []
    marks: list[tuple[str, ...]] = []
    captions: set[str] = set()
    for i in range(len(source)):
        try:
            sample = source[i]
        except DataError as error:
            skipped.append((source.keys[i], str(error)))
            continue
        rows.append(i)
        captions |= set(sample.captions)
        named = [f"{n} {sample.attributes[n]}" for n in ("picture", "concept") if sample.attributes.get(n)]
        marks.append((hashlib.sha256(sample.picture).hexdigest(), *named))
    if len(captions) == 1 and len(rows) > 1:
        raise DataError(f"all {len(rows)} captions are {captions.pop()!r}; give captions that tell pictures apart")
    return rows, marks


def _require_enough(count: int, fewest: int, what: str, skipped: list[tuple[str, str]]) -> None:
    if count < fewest:
        first = f" ({len(skipped)} couldn't be used; {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise DataError(f"there are {count} {what}{first}; give {fewest} or more")


def _chosen(names: Sequence[str], share: float) -> list[bool]:
    """Which rows are held out: whole names, in order of their hash, until the share is reached."""
    wanted = max(FEWEST_HELD_OUT, round(share * len(names)))
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    out: set[str] = set()
    count = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f"held out {name}".encode()).digest()):
        if count >= wanted:
            break
        if count + sizes[name] <= max(2 * wanted, FEWEST_HELD_OUT):  # a huge family stays on the training side
            out.add(name)
            count += sizes[name]
    if count < FEWEST_HELD_OUT:
        raise DataError(
            f"only {count} of {len(names)} pictures can be held out, since the others are copies of each other; "
            "give more different ones"
        )
    return [name in out for name in names]


def held(source: Source, size_px: int, pixels: PixelConfig, most: int = MOST_MEASURED) -> Held:
    """Up to `most` samples, evenly spaced, decoded; those that can't be read are left out.

    Raises: DataError where none is left.
    """
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int).tolist()
    kept, squares, captions = [], [], []
    for i in rows:
        try:
            sample = source[i]
            squares.append(to_square(open_picture(sample.picture, name=f"picture {sample.key}"), size_px, pixels))
        except DataError:
            continue
        kept.append(i)
        captions.append(sample.captions)
    if not kept:
        raise DataError(f"none of {len(rows)} held-out pictures can be read; look at them with `coca data check`")
    return Held(Chosen(source, kept), np.stack(squares), tuple(captions))
