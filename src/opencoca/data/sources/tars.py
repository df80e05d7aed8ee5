"""Tars of other makers as a source: read by index, nothing extracted, nothing run."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from opencoca.data import storage
from opencoca.data.sample import Sample
from opencoca.data.sources import tar_index
from opencoca.data.sources.captions import UnfitError, cleaned, parsed_json, texts_of
from opencoca.data.sources.tar_index import TarIndex, check_of, digest_of
from opencoca.data.texts import LazyTexts
from opencoca.errors import DataError

CAPTIONS = ("caption", "captions", "text", "texts", "title", "alt_text", "alt")  # in the .json of a sample
NEAR = 1 << 16  # members so near each other are read at once
NAMED = 5


class TarSource:
    """Samples of tars in webdataset's or img2dataset's layout; a key is TAR/KEY, the tar without its ending.

    A caption is the .txt, and those that the .json has under a known name; the .json is the attributes. With an index
    every sample is checked against its digest when it is read.

    Attributes: keys, captions (read when they are asked for), skipped, ignored (counts of other members), shards (the
      tars), fingerprint, index.
    """

    splits: tuple[str, ...] = ()

    def __init__(self, index: TarIndex, on_damage: str = "stop", names: Sequence[str] | None = None) -> None:
        """Args: names takes only these tars of the index.

        Raises: DataError if tars are missing or too short, with the samples that are lost; on_damage="count" notes them
          in `skipped` and goes on without.
        """
        self._files = storage.Files()
        self._given = (on_damage, names)
        self._prepare(index)

    def _prepare(self, index: TarIndex) -> None:
        on_damage, names = self._given
        self.index, self.root = index, index.root
        self.skipped, self.ignored = list(index.skipped), index.ignored
        self._names = [tar["file"] for tar in index.tars]
        starts = np.concatenate([[0], np.cumsum([tar["samples"] for tar in index.tars], dtype=np.int64)])
        wanted = set(self._names if names is None else names)
        if unknown := sorted(wanted - set(self._names)):
            more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
            raise DataError(f"{index.file or 'the index'} doesn't know {unknown[0]}{more}; {tar_index.REPAIR}")
        runs = []
        for number, tar in enumerate(index.tars):
            if tar["file"] not in wanted:
                continue
            rows = np.arange(starts[number], starts[number + 1])
            if index.has_digests:
                rows = self._there(rows, tar, on_damage)
            if len(rows):
                runs.append((number, rows))
        # Sample i is row `_row(i)` of the index: i itself, unless tars were chosen or are damaged.
        rows = np.concatenate([rows for _, rows in runs]) if runs else np.empty(0, np.int64)
        self._rows = None if len(rows) == len(index.keys) else rows
        ends = np.cumsum([len(rows) for _, rows in runs], dtype=np.int64)
        self._tars = [number for number, _ in runs]
        self._ends = ends
        self.shards = [range(int(end) - len(rows), int(end)) for end, (_, rows) in zip(ends, runs, strict=True)]
        self.keys = LazyTexts(len(rows), self._key)
        self.captions = LazyTexts(len(rows), lambda i: self._texts(i)[0][0])
        if not len(rows):
            reason = f"; the first: {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise DataError(f"{self.root}: its tars hold no picture with a caption{reason}; name other data")

    def _there(self, rows: np.ndarray, tar: dict[str, Any], on_damage: str) -> np.ndarray:
        """The rows that a tar still holds."""
        location = storage.joined(self.root, tar["file"])
        try:
            size, problem = storage.size_of(location), ""
        except DataError as error:
            size, problem = 0, str(error)
        if size == tar["bytes"]:
            return rows
        problem = problem or f"{location} has {size} bytes, its index says {tar['bytes']}"
        if size > tar["bytes"]:
            raise DataError(f"{problem}; {tar_index.REPAIR}")
        places = self.index.places[rows]
        ends = [places[field] + places[f"{field}_size"] for field in ("picture", "txt", "json")]
        whole = np.max(ends, axis=0) <= size if len(rows) else np.zeros(0, bool)
        lost = [f"{tar['file'].removesuffix('.tar')}/{self.index.keys[int(row)]}" for row in rows[~whole]]
        if on_damage != "count":
            named = ", ".join(lost[:NAMED]) + (", ..." if lost[NAMED:] else "")
            said = f"{len(lost)} samples are lost ({named})" if lost else "no sample is lost"
            raise DataError(f'{problem}: {said}; copy it again, or count the damage and go on (on_damage="count")')
        self.skipped += [(key, problem) for key in lost]
        return rows[whole]

    @property
    def fingerprint(self) -> str:
        """A digest of the keys in their order, and of contents: the tars' digests from an index, else their sizes."""
        rows = slice(None) if self._rows is None else self._rows
        digest = hashlib.sha256(self.index.keys.digest().encode())
        tars = [self.index.tars[number] for number in self._tars]
        digest.update("\n".join(f"{tar['file']} {tar.get('sha256', tar['bytes'])}" for tar in tars).encode())
        if not self.index.has_digests:
            digest.update(self.index.places[rows].tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        key = self.keys[i]
        i %= len(self)
        (first, *more), attributes, picture = self._texts(i, with_picture=True)
        hash_of_picture = attributes.get("sha256")
        if "picture" not in attributes:
            known = isinstance(hash_of_picture, str) and hash_of_picture
            attributes["picture"] = str(hash_of_picture)[:16] if known else hashlib.sha256(picture).hexdigest()[:16]
        return Sample(key, picture, first, attributes, tuple(more))

    def _row(self, i: int) -> int:
        return i if self._rows is None else int(self._rows[i])

    def _tar(self, i: int) -> str:
        return self._names[self._tars[int(np.searchsorted(self._ends, i, side="right"))]]

    def _key(self, i: int) -> str:
        return f"{self._tar(i).removesuffix('.tar')}/{self.index.keys[self._row(i)]}"

    def _texts(self, i: int, with_picture: bool = False) -> tuple[list[str], dict[str, Any], bytes]:
        i %= len(self)
        place, location = self.index.places[self._row(i)], storage.joined(self.root, self._tar(i))
        fields = ("picture", "txt", "json") if with_picture else ("txt", "json")
        wanted = {field: (int(place[field]), int(place[f"{field}_size"])) for field in fields if place[field]}
        contents = self._read(location, wanted)
        key = f"{self._key(i)} in {location}"
        digests = int(place["digest"]), int(place["check"])
        if with_picture and self.index.has_digests and (digest_of(contents), check_of(contents)) != digests:
            raise DataError(f"{key} is damaged (its digest isn't the index's); copy the tar again")
        try:
            texts, attributes = _captions(contents)
        except UnfitError as error:
            raise DataError(f"{key} can't be used: {error}; repair or leave it out") from error
        return texts, attributes, contents.get("picture", b"")

    def _read(self, location: str, wanted: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        first, last = min(start for start, _ in wanted.values()), max(sum(place) for place in wanted.values())
        if last - first <= sum(size for _, size in wanted.values()) + NEAR:  # one request where storage is far away
            content = self._files.read(location, first, last - first)
            return {field: content[start - first : start - first + size] for field, (start, size) in wanted.items()}
        return {field: self._files.read(location, start, size) for field, (start, size) in wanted.items()}

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        self._files.close()

    def __getstate__(self) -> dict[str, Any]:
        state = {"_files": self._files, "_given": self._given, "index": self.index}
        if self.index.file:  # mapped again by the process that it goes to
            state["index"] = None
            state["file"] = self.index.file
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._files, self._given = state["_files"], state["_given"]
        self._prepare(state["index"] or tar_index.load(state["file"]))


def _captions(contents: dict[str, bytes]) -> tuple[list[str], dict[str, Any]]:
    """The captions and attributes of a sample. Raises: UnfitError if there is no caption to use."""
    attributes = parsed_json(contents["json"]) if contents.get("json") else {}
    if not isinstance(attributes, dict):
        raise UnfitError(f"its json is a {type(attributes).__name__}, not an object")
    attributes = copy.copy(attributes)
    texts: list[str] = []
    if contents.get("txt"):
        try:
            texts.append(cleaned(contents["txt"].decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise UnfitError(f"its caption isn't UTF-8 (byte {error.start})") from error
    problem = UnfitError("it has no caption")
    for name in CAPTIONS:
        for value in texts_of(attributes.get(name)) if attributes.get(name) is not None else []:
            try:
                texts.append(cleaned(value))
            except UnfitError as error:
                problem = error
    if not texts:
        raise problem
    return list(dict.fromkeys(texts)), attributes
