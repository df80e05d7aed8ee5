"""Several sources as one: those of a location whose files or folders tell splits."""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from opencoca.data.sample import Sample
from opencoca.data.texts import LazyTexts


class JoinedSource:
    """Several sources, one behind the other; each has a name, which stands before its keys: val/cat.jpg."""

    def __init__(self, sources: Sequence[Any], names: Sequence[str]) -> None:
        self.sources, self.names, self.splits = list(sources), list(names), tuple(dict.fromkeys(names))
        self._ends: list[int] = []
        self.shards: list[range] = []
        self.skipped: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()
        self.columns: dict[str, str] = {}
        for name, source in zip(self.names, self.sources, strict=True):
            first = self._ends[-1] if self._ends else 0
            self.shards += [range(first + run.start, first + run.stop) for run in source.shards]
            self._ends.append(first + len(source))
            self.skipped += [(f"{name}/{key}", reason) for key, reason in source.skipped]
            ignored = source.ignored  # prepared shards only count them
            self.ignored += ignored if isinstance(ignored, Counter) else Counter(members=ignored)
            self.columns |= getattr(source, "columns", {})
        self.keys = LazyTexts(len(self), self._key)
        self.captions = LazyTexts(len(self), self._caption)
        self.fingerprint = hashlib.sha256("\n".join(s.fingerprint for s in self.sources).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        number, within = self.place(i)
        sample = self.sources[number][within]
        return sample._replace(key=f"{self.names[number]}/{sample.key}")

    def _key(self, i: int) -> str:
        number, within = self.place(i)
        return f"{self.names[number]}/{self.sources[number].keys[within]}"

    def _caption(self, i: int) -> str:
        number, within = self.place(i)
        return self.sources[number].captions[within]

    def place(self, i: int) -> tuple[int, int]:
        """The number of a sample's source, and its index there."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        number = bisect.bisect_right(self._ends, i)
        return number, i - (self._ends[number - 1] if number else 0)

    def close(self) -> None:
        """Closes the files of all sources."""
        for source in self.sources:
            if hasattr(source, "close"):
                source.close()
