"""What `Index` needs of a store of embeddings: the protocol that folders on disk and other stores share."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from opencoca.search.filters import Filters


class Picture(NamedTuple):
    """A picture that is indexed.

    id: stays the same when the file moves. path: where it was seen last. caption: "" where none was made. date: when it
    was taken, else last changed. bytes: of its file.
    """

    id: int
    path: Path
    caption: str
    date: datetime.datetime
    bytes: int


class Backend(Protocol):
    """Pictures with unit-norm embeddings, to be searched exactly or nearly so.

    model: fingerprint of the model that made the embeddings. width: their length E.
    """

    @property
    def model(self) -> str: ...

    @property
    def width(self) -> int: ...

    def __len__(self) -> int: ...

    def nearest(self, query: np.ndarray, k: int, filters: Filters) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [K] and cosine similarities float32 [K] of the nearest to a unit-norm float32 [E], the best first.

        K is k, or fewer where fewer pass the filters. Equal scores are ordered by id.
        """
        ...

    def pictures(self, ids: Sequence[int]) -> list[Picture]:
        """The pictures with these ids, in their order.

        Raises: DataError for an unknown id.
        """
        ...

    def embeds(self, ids: Sequence[int] | None = None) -> np.ndarray:
        """Embeddings float16 or float32 [I,E] of these ids, or of all in the order of `ids()`."""
        ...

    def ids(self) -> np.ndarray:
        """All ids, int64 [I], ascending."""
        ...
