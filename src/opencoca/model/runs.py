"""Captions of several lengths as one matrix [X,D]: run after run, each run's rows as long as its longest caption.

What looks at one position at a time (linear layers, norms) takes all positions in one call; only attention takes the
runs one by one, so a run more costs little and saves its padding everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.types import TextBucket


class Run(NamedTuple):
    """Rows first .. last - 1, `length` positions of each; `keep` [b,T,S] says what each sees, if not all before it."""

    first: int
    last: int
    length: int
    keep: Tensor | None = None

    @classmethod
    def of(cls, bucket: TextBucket, more: int = 0, keep: Tensor | None = None) -> Run:
        """A bucket's run, with so many positions more than its captions have ids."""
        return cls(bucket.first, bucket.last, bucket.length + more, keep)


def of_rows(x_BTD: Tensor, runs: Sequence[Run]) -> tuple[Tensor, ...]:
    """Each run's rows; all runs together are all rows. (A slice for each would make as many gradients of all rows.)"""
    return x_BTD.split([run.last - run.first for run in runs])


def packed(x_BTD: Tensor, runs: Sequence[Run]) -> Tensor:
    """The positions [X,D] of all runs; what stands behind a run's length is left out."""
    return joined([part_BTD[:, : run.length] for part_BTD, run in zip(of_rows(x_BTD, runs), runs, strict=True)])


def apart(x_XD: Tensor, runs: Sequence[Run], dim: int = 0) -> list[Tensor]:
    """Each run's part as [b,T,D], b rows of its length; with `dim`, the positions stand there instead of in front."""
    parts = x_XD.split([(run.last - run.first) * run.length for run in runs], dim)
    return [part.unflatten(dim, (run.last - run.first, run.length)) for part, run in zip(parts, runs, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The positions [X,D] of each run's rows [b,T,D]; what `apart` takes apart."""
    flat = [part_BTD.flatten(0, 1) for part_BTD in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """All runs' rows [B,T,D], zeros behind those shorter than `length`."""
    return torch.cat([F.pad(part_BTD, (0, 0, 0, length - part_BTD.shape[1])) for part_BTD in parts])
