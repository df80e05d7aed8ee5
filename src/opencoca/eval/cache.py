"""What was worked out per sample and is kept, so that a rerun is instant and an interrupted one goes on.

Work is done in blocks of samples, each kept in a file of its own as soon as it is finished. A block is found again by
the model's fingerprint, what was done, and the stamp of the data; nothing else can bring it back.
"""

from __future__ import annotations

import weakref
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opencoca.eval.statistics import digest
from opencoca.files import replacing

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor

BLOCK = 512
METHOD = 1  # raised when something is worked out in another way, so that what is kept from before is left alone
Arrays = dict[str, np.ndarray]

_fingerprints: weakref.WeakKeyDictionary[Predictor, str] = weakref.WeakKeyDictionary()


def fingerprint(predictor: Predictor) -> str:
    """`predictor.fingerprint()`, worked out once for each predictor: it reads all weights."""
    if predictor not in _fingerprints:
        _fingerprints[predictor] = predictor.fingerprint()
    return _fingerprints[predictor]


@dataclass(frozen=True)
class Cache:
    """A folder of finished blocks, or none: then everything is worked out anew."""

    folder: Path | None = None

    def place(self, *key: object) -> Path | None:
        """The path that belongs to a key, without an ending."""
        return None if self.folder is None else self.folder / digest((METHOD, *key))

    def in_blocks(
        self, key: Sequence[object], count: int, work: Callable[[range], Arrays], block: int = BLOCK
    ) -> Arrays:
        """What `work` gives for samples 0 to count-1, a block of them at a time, put together by name.

        Each array has a row per sample. A block that is kept already isn't worked out again; one that is damaged is.
        """
        parts = []
        place = self.place(*key, count, block)
        for first in range(0, count, block):
            file = place and place / f"{first:08d}.npz"
            kept = _read(file) if file else None
            if kept is None:
                kept = work(range(first, min(first + block, count)))
                if file:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(file) as partial, partial.open("wb") as opened:
                        np.savez(opened, allow_pickle=False, **kept)
            parts.append(kept)
        if not parts:
            return {}
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read(file: Path) -> Arrays | None:
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
