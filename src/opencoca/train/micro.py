"""Batches cut into runs of rows, and moved to where they are trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from opencoca.types import Batch, TextBucket, caption_lengths


def micro_batches(batch: Batch, most: int) -> Iterator[Batch]:
    """The rows of a batch in runs of up to `most`, as even as can be; 0 for the batch as it is.

    Rows stand in order of caption length. Each bucket's part in a run is read at its own longest caption: the same
    values, with less padding.
    """
    rows = len(batch.keys)
    if most <= 0 or most >= rows:
        yield batch
        return
    count = -(-rows // most)
    edges = [rows * i // count for i in range(count + 1)]
    lengths = caption_lengths(batch.valid).tolist() if batch.buckets else []
    for first, last in itertools.pairwise(edges):
        inside = [(max(first, b.first), min(last, b.last)) for b in batch.buckets]
        buckets = [TextBucket(a - first, z - first, max(lengths[a:z])) for a, z in inside if a < z]
        rows_of = {n: x[first:last] for n, x in batch._asdict().items() if isinstance(x, Tensor)}
        yield batch._replace(**rows_of, keys=batch.keys[first:last], buckets=tuple(buckets))


def in_one_bucket(batch: Batch) -> Batch:
    """The batch with its captions in one run, as long as the longest."""
    rows, longest = len(batch.keys), int(caption_lengths(batch.valid).max())
    return batch._replace(buckets=(TextBucket(0, rows, longest),))


def on_device(device: torch.device, batch: Batch) -> Batch:
    """The batch with its tensors on `device`."""
    return batch._replace(
        **{n: x.to(device, non_blocking=True) for n, x in batch._asdict().items() if isinstance(x, Tensor)}
    )
