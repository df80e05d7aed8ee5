"""Many short texts in little memory: one run of bytes, and where each text ends."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np


class Texts(Sequence[str]):
    """A list of texts that takes their UTF-8 bytes and 8 bytes more for each, where a list of str takes 60 and more.

    Equal to any sequence of the same texts.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._content: Any = bytearray()
        self._ends: Any = array("q")
        for text in texts:
            self.append(text)

    @classmethod
    def over(cls, content: Any, ends: np.ndarray) -> Texts:
        """Texts that lie in a buffer already (a mapped file, say), each up to its end in bytes."""
        made = cls()
        made._content, made._ends = content, ends
        return made

    def append(self, text: str) -> None:
        """Adds a text at the end. Raises: UnicodeEncodeError if it isn't Unicode (half of a surrogate pair)."""
        self._content += text.encode()
        self._ends.append(len(self._content))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        i %= len(self)
        start = int(self._ends[i - 1]) if i else 0
        return str(bytes(self._content[start : int(self._ends[i])]), "utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield str(bytes(self._content[start : int(end)]), "utf-8", "replace")
            start = int(end)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Texts({list(self[:3])}{', ...' if len(self) > 3 else ''}; {len(self)})"

    def buffers(self) -> tuple[bytes, np.ndarray]:
        """The bytes of all texts, and where each ends (little-endian int64)."""
        return bytes(self._content), np.asarray(self._ends, dtype="<i8")

    def digest(self) -> str:
        """sha256 of all texts in their order."""
        digest = hashlib.sha256(np.asarray(self._ends, dtype="<i8").tobytes())
        digest.update(self._content)
        return digest.hexdigest()


class LazyTexts(Sequence[str]):
    """Texts that are made when they are asked for: `make` gives the one with an index from 0 on."""

    def __init__(self, length: int, make: Callable[[int], str]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        return self._make(i % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
