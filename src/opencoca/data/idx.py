"""Pictures and labels in MNIST's idx files, gzipped or not: Fashion-MNIST and its relatives, as a source."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from opencoca.data.sample import Sample
from opencoca.errors import DataError

PARTS = {"train": "train", "test": "t10k", "val": "train"}  # the file's prefix of each split
VAL_SHARE = 0.1  # of the official training pictures
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
LARGEST = 1 << 30  # bytes of a file, unpacked
FASHION_PACKAGE = {
    "dataset-fashion-mnist": {
        "source": "debian",
        "version": "0.0~git20200523.55506a9-1",
        "file": "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "sha256": "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "licence": "MIT",
    }
}


class IdxSource:
    """A split of an idx folder; each caption is "a photo of the LABEL", and the attribute `label` the label."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, names: Sequence[str], split: str) -> None:
        self._pictures, self.names = pictures, tuple(names)
        self.label_numbers = labels.tolist()
        self.keys = [f"{split}-{i}" for i in range(len(pictures))]
        self.skipped: list[tuple[str, str]] = []
        self.shards, self.splits = [range(len(pictures))], ("train", "val", "test")
        self.fingerprint = hashlib.sha256(pictures.tobytes() + labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i: int, /) -> Sample:
        file = io.BytesIO()
        Image.fromarray(self._pictures[i]).save(file, "PNG", compress_level=1)
        label = self.names[self.label_numbers[i]]
        return Sample(self.keys[i], file.getvalue(), f"a photo of the {label}", {"label": label})


def is_idx(folder: Path) -> bool:
    """True for a folder with MNIST's files in it."""
    return folder.is_dir() and _file(folder, "t10k-images-idx3-ubyte") is not None


def open_idx(folder: Path, split: str, names: Sequence[str] | None = None) -> IdxSource:
    """A split of an idx folder: train and val (a tenth of the official training pictures), or test.

    names: of the labels, in order; by default Fashion-MNIST's where the folder's name says so, else digits.

    Raises: DataError for a file that is missing or damaged, labels without a name, or another split.
    """
    if split not in PARTS:
        raise DataError(f"{folder} has no split {split!r}; its splits are: {', '.join(PARTS)}")
    if names is None:
        names = FASHION if "fashion" in str(folder.resolve()).lower() else DIGITS
    pictures = _read(folder, f"{PARTS[split]}-images-idx3-ubyte", 3)
    labels = _read(folder, f"{PARTS[split]}-labels-idx1-ubyte", 1)
    if len(pictures) != len(labels):
        raise DataError(f"{folder} has {len(pictures)} pictures and {len(labels)} labels ({split}); fetch it again")
    if len(labels) and labels.max() >= len(names):
        raise DataError(f"{folder} has the label {labels.max()}, and {len(names)} names; give one for each")
    rows = np.arange(len(pictures))
    if split != "test":
        held_out = rows % round(1 / VAL_SHARE) == 0  # the official order is mixed
        rows = rows[held_out if split == "val" else ~held_out]
    return IdxSource(pictures[rows], labels[rows], names, split)


def _file(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.gz", folder / name, folder / name.replace("-idx", ".idx"))
    return next((path for path in candidates if path.is_file()), None)


def _read(folder: Path, name: str, axes: int) -> np.ndarray:
    """The numbers of an idx file of bytes. Raises: DataError if it is missing, damaged or another kind."""
    path = _file(folder, name)
    if path is None:
        raise DataError(f"{folder} has no {name}.gz; fetch the data again")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}); fetch it again") from error
    head = 4 * (1 + axes)
    if len(content) < head or content[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{path} is no idx file of bytes with {axes} axes; fetch it again")
    shape = struct.unpack(f">{axes}I", content[4:head])
    if len(content) - head != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} holds {len(content) - head} numbers instead of {'x'.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
