"""Picture files with captions: what tables, COCO's json and folders come to."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from opencoca.data import storage
from opencoca.data.sample import Sample
from opencoca.data.sources.captions import UnfitError, cleaned
from opencoca.data.texts import LazyTexts, Texts
from opencoca.errors import DataError


class FileSource:
    """Pictures in files of their own, below one folder or URL; the key of each is its path as it was given.

    Attributes: keys, captions (the first of each), skipped, ignored (how many repeats), columns (what was found where),
      splits (the names of all splits that the data tell), fingerprint, shards.
    """

    def __init__(self, root: str, keys: Texts, captions: Texts, ends: array, pairs: Pairs) -> None:
        self.root, self.keys = root, keys
        self.skipped: list[tuple[str, str]] = pairs.skipped
        self.ignored, self.columns, self.splits = pairs.ignored, pairs.columns, tuple(pairs.splits)
        self.shards = [range(len(keys))]
        self._captions, self._ends = captions, ends
        digest = hashlib.sha256((keys.digest() + captions.digest()).encode())
        digest.update(ends.tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def captions(self) -> Sequence[str]:
        """The first caption of each sample."""
        return LazyTexts(len(self), lambda i: self._captions[self._ends[i - 1] if i else 0])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        key = self.keys[i]
        i %= len(self.keys)
        first, *more = self._captions[self._ends[i - 1] if i else 0 : self._ends[i]]
        picture = storage.read_file(storage.joined(self.root, key))
        return Sample(key, picture, first, {"picture": picture_digest(picture)}, tuple(more))


class Pairs:
    """Gathers (picture, caption) rows; rows of one picture become one sample, and nothing is left out uncounted."""

    def __init__(self, local: bool = True) -> None:
        self.local = local
        self.skipped: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()
        self.columns: dict[str, str] = {}
        self.splits: dict[str, None] = {}
        self._captions: dict[str, list[str]] = {}

    def add(self, row: str, path: Any, captions: Iterable[Any]) -> None:
        """Adds what a row says of a picture; a row that is unfit is noted under its name."""
        try:
            path = safe_path(path, self.local)
        except UnfitError as error:
            self.skipped.append((row, str(error)))
            return
        good, unfit = [], []
        for caption in captions:
            try:
                good.append(cleaned(caption))
            except UnfitError as error:
                unfit.append(str(error))
        if not good:
            self.skipped.append((row, unfit[0] if unfit else "it has no caption"))
            return
        self.ignored.update(unfit)
        known = self._captions.setdefault(path, [])
        for caption in good:
            if caption in known:
                self.ignored["the same caption of the same picture again"] += 1
            else:
                known.append(caption)

    def finish(self, root: str, name: str) -> FileSource:
        """The source of what was gathered.

        Raises: DataError if there is nothing in it.
        """
        if not self._captions:
            raise nothing_left(name, self.skipped)
        keys, captions, ends = Texts(), Texts(), array("q")
        for path, texts in self._captions.items():
            keys.append(path)
            for text in texts:
                captions.append(text)
            ends.append(len(captions))
        self._captions = {}
        return FileSource(root, keys, captions, ends, self)


def nothing_left(name: str, skipped: Sequence[tuple[str, str]]) -> DataError:
    """The error for data of which nothing can be used."""
    if not skipped:
        return DataError(f"{name} has no pictures with captions; name other data")
    row, reason = skipped[0]
    first = reason if any(f"/{word}".endswith(f"/{row}") for word in reason.split()) else f"{row}: {reason}"
    lead = f"none of {len(skipped)} could be used; the first: "
    return DataError(lead + first if first.startswith(f"{name} ") else f"{name}: {lead}{first}")


def safe_path(value: Any, local: bool = True) -> str:
    """The path of a picture that a table names, as a path below the table's folder or an absolute one.

    Raises: UnfitError for URLs and commands, for paths that lead out of the folder by .., and for absolute paths in
      tables that aren't on this machine.
    """
    if not isinstance(value, str) or not value.strip():
        raise UnfitError("it names no picture")
    path = value.strip()
    if "\0" in path or len(path) > 4096:
        raise UnfitError("its path holds a NUL" if "\0" in path else f"its path has {len(path)} characters")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UnfitError("its path isn't UTF-8") from error
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
        raise UnfitError(f"its picture {path[:60]!r} is a URL or a command; download pictures first, as by img2dataset")
    if ".." in PureWindowsPath(path).parts:  # knows both separators
        raise UnfitError(f"its path {path[:60]!r} leads out of the folder (..)")
    if not local and (PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive):
        raise UnfitError(f"its path {path[:60]!r} is absolute, and its table is on another machine")
    return path


def picture_digest(picture: bytes) -> str:
    """What samples of the very same picture file share."""
    return hashlib.sha256(picture).hexdigest()[:16]
