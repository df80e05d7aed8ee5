"""What the loader asks of data, whatever form it has on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opencoca.data.sample import Sample


class Source(Protocol):
    """Pictures with captions, by index. It can be pickled for a worker process, which opens its files again.

    keys: one per sample, unique; for big sets they are made when they are asked for.
    fingerprint: a digest of the keys in their order, and of contents where their digests are known.
    skipped: (key, reason) of what was found unfit when the source was opened; it has no index.
    shards: runs of indices that lie in one file each, one behind the other, so that a shuffle in windows of them reads
      remote storage in order.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]: ...

    @property
    def shards(self) -> Sequence[range]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample:
        """The sample. Raises: DataError if this one can't be read; others may still be good."""
        ...
