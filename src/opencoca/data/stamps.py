"""Tux Paint's stamps as captioned pictures: photographs and drawings of single things, each with an English sentence.

The stamps are under the GPL-2 and aren't part of this package: `coca data get stamps` fetches Debian's own archive of
them. What this module writes is plain: a folder of PNG files, and a CSV file of paths, captions and splits.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opencoca.config import PixelConfig
from opencoca.data.drawings import render
from opencoca.data.groups import joined
from opencoca.data.pixels import open_picture, to_square
from opencoca.errors import DataError, unwritable

FOLDER = "usr/share/tuxpaint/stamps"  # inside the package
CREDIT = "Tux Paint stamps, copyright Bill Kendrick and contributors, GPL-2"
PACKAGE = {
    "tuxpaint-stamps-default": {
        "source": "debian",
        "version": "2022.06.04-1",
        "file": "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "sha256": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "licence": "GPL-2",
    }
}
TABLE = "captions.csv"
SPLITS = {"test": 0.2, "val": 0.3, "train": 1.0}  # shares, counted up
RENDER_PX = 256
LOOK_PX = 12  # pictures are compared at this size
ALIKE = 5.0  # levels of 255 by which two copies of a picture may differ there, root mean square
PALE = 0.25  # and as a share of the picture's own contrast, since pale pictures all look alike
# Words that don't tell what is shown: two captions that differ in these only are one concept.
EMPTY_WORDS = {
    "a", "an", "the", "some", "of", "in", "on", "with", "and", "or", "is", "it", "its", "to", "for", "from", "by",
    "at", "very", "pair", "small", "little", "big", "large", "happy", "sad", "cartoon", "red", "green", "blue",
    "yellow", "orange", "pink", "purple", "brown", "black", "white", "grey", "gray", "blonde", "old", "new",
    "outline", "filled",
}  # fmt: skip
FIELDS = ("path", "caption", "split", "concept")


class Stamp(NamedTuple):
    """One picture on its way: where it is from, its PNG file, its caption."""

    name: str
    picture: bytes
    caption: str


class Prepared(NamedTuple):
    """What `prepare` wrote: pictures by split, and how many were left out for each reason."""

    counts: dict[str, int]
    left_out: dict[str, int]


def prepare(folder: Path, unpacked: Path) -> Prepared:
    """Writes `pictures/` and `captions.csv` into `folder`, whole or not at all; what was there is replaced.

    The table has the paths from `folder`, the captions, the splits (train, val, test) and the concept that a picture
    belongs to. A concept is in one split only. It joins stamps with the same caption but for empty words, numbered
    versions of one drawing, and pictures that look the same. Which split it falls into depends on its name alone.

    Raises: DataError where `unpacked` holds no stamps, or the folder can't be written.
    """
    found = list(_stamps(unpacked / FOLDER))
    left_out = Counter(one for one in found if isinstance(one, str))
    stamps = [one for one in found if isinstance(one, Stamp)]
    if not stamps:
        raise DataError(f"{unpacked / FOLDER} holds no stamps; unpack Debian's tuxpaint-stamps-default there")
    rows = []
    partial = folder.with_name(f".partial-{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "pictures").mkdir(parents=True)
        for stamp, concept in zip(stamps, concepts(stamps), strict=True):
            path = f"pictures/{stamp.name.replace('/', '-')}.png"
            (partial / path).write_bytes(stamp.picture)
            rows.append((path, stamp.caption, split_of(concept), concept))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([FIELDS, *rows])
        (partial / TABLE).write_text(text.getvalue(), encoding="utf-8")
        (partial / "CREDIT.txt").write_text(f"{CREDIT}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise DataError(unwritable(folder, error)) from error
    return Prepared({split: sum(row[2] == split for row in rows) for split in SPLITS}, dict(left_out))


def split_of(concept: str) -> str:
    """The split that a concept is in, from its name alone."""
    share = int.from_bytes(hashlib.sha256(concept.encode()).digest()[:8], "little") / 2**64
    return next(split for split, limit in SPLITS.items() if share < limit)


def concepts(stamps: Sequence[Stamp]) -> list[str]:
    """For each stamp the name of its concept: the first, in order of the alphabet, of all that belong together."""
    marks: list[list[str]] = []
    for stamp in stamps:
        place, _, name = stamp.name.rpartition("/")
        series = re.sub(r"[\d_-]+[a-z]?$", "", name)  # flower2, flower-3a: versions of one drawing
        marks.append([concept_of(stamp.caption) or stamp.name, *([f"{place}/{series}/"] if series else [])])
    for i, j in _look_alike(stamps):
        for row in (i, j):
            marks[row].append(f"{i} looks like {j}")
    return joined(marks)


def concept_of(caption: str) -> str:
    """What a caption speaks of: its telling words without their plural, in order of the alphabet."""
    words = re.findall(r"\w+", re.sub(r"\([^)]*\)", "", caption.lower()))
    telling = {re.sub(r"(?<=[^s])s$", "", word) for word in words if word not in EMPTY_WORDS}
    return " ".join(sorted(telling))


def sentence(text: str) -> str:
    """The first sentence of a stamp's file: its English one; the lines that follow are translations."""
    line = text.lstrip("\ufeff \n").partition("\n")[0].strip()
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])|\s\((?=[A-Z])", line)[0].strip()


def _stamps(folder: Path) -> Iterator[Stamp | str]:
    """Each stamp in order of its name, or why it is left out. Where there are both, PNG is taken and not SVG."""
    for path in sorted(folder.rglob("*.txt")):
        caption = sentence(path.read_text(encoding="utf-8", errors="replace"))
        png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
        if not caption:
            yield "it has no sentence"
        elif png.is_file():
            yield Stamp(path.relative_to(folder).with_suffix("").as_posix(), png.read_bytes(), caption)
        elif svg.is_file():
            try:
                drawn = render(svg.read_text(encoding="utf-8"), RENDER_PX)
            except (DataError, UnicodeDecodeError):
                yield "its SVG can't be drawn, or opencoca[demo] isn't installed"
                continue
            file = io.BytesIO()
            drawn.save(file, "PNG")
            yield Stamp(path.relative_to(folder).with_suffix("").as_posix(), file.getvalue(), caption)
        else:
            yield "it has no picture"


def _look_alike(stamps: Sequence[Stamp]) -> Iterator[tuple[int, int]]:
    """Pairs of stamps whose pictures are the same to the eye, on white and at a small size."""
    small = PixelConfig(fit="pad")
    looks_IX = np.stack(
        [to_square(open_picture(s.picture, name=s.name), LOOK_PX, small).ravel().astype(np.float32) for s in stamps]
    )
    contrast_I = looks_IX.std(axis=1)
    for i in range(1, len(stamps)):
        differs = np.sqrt(np.square(looks_IX[:i] - looks_IX[i]).mean(axis=1))
        for j in np.flatnonzero((differs < ALIKE) & (differs < PALE * np.minimum(contrast_I[:i], contrast_I[i]))):
            yield i, int(j)
