"""Copies of the model on every rank: gradients are summed in buckets, while the backward pass still goes on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opencoca.errors import TrainingError
from opencoca.parallel.collectives import gathered_values
from opencoca.parallel.mesh import Ranks

BUCKET_BYTES = 25 * 2**20


class SummedGradients:
    """Sums gradients over ranks: `expect()` before the last backward pass of a step, `finish()` after it.

    The buckets are reduced in one order on all ranks, each as soon as it and those before it are whole. A parameter
    that no rank's loss reached keeps no gradient; one that some rank's did gets the others' as zeros.

    Differs: torch's DistributedDataParallel averages, and wants every forward pass to go through its wrapper.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._buckets: list[list[nn.Parameter]] = []
        size = bucket_bytes
        for parameter in reversed([p for p in parameters if p.requires_grad]):  # backward reaches the last ones first
            room = parameter.numel() * parameter.element_size()
            other = self._buckets and self._buckets[-1][0].dtype != parameter.dtype
            if size + room > bucket_bytes or other:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(parameter)
            size += room
        self._expecting = False
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))
        check_same(self._buckets, ranks)

    def expect(self) -> None:
        """Gradients that arrive from now on are whole."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._under_way: list[tuple[dist.Work | None, Tensor]] = []
        self._expecting = True

    def _arrived(self, number: int) -> None:
        if self._expecting:
            self._missing[number] -= 1
            while len(self._under_way) < len(self._buckets) and self._missing[len(self._under_way)] == 0:
                self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._under_way)]
        reached = torch.tensor([p.grad is not None for p in bucket]).to(bucket[0])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([*(part.reshape(-1) for part in parts), reached])
        self._under_way.append((dist.all_reduce(flat, async_op=True), flat))

    @torch.no_grad()
    def finish(self) -> None:
        """Every rank's gradients are the sums when this returns."""
        self._expecting = False
        while len(self._under_way) < len(self._buckets):
            self._send()
        for bucket, (work, flat) in zip(self._buckets, self._under_way, strict=True):
            if work is not None:
                work.wait()
            *sums, reached = flat.split([*(p.numel() for p in bucket), len(bucket)])
            for number, (parameter, total) in enumerate(zip(bucket, sums, strict=True)):
                if parameter.grad is not None or reached[number]:  # looked at, and waited for, only where it matters
                    parameter.grad = total.view_as(parameter)
        self._under_way = []


def check_same(buckets: list[list[nn.Parameter]], ranks: Ranks) -> None:
    """Raises: TrainingError where the ranks don't hold the same weights."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whose sums are exact in any order
    own = [int(p.detach().contiguous().view(integers[p.element_size()]).sum()) for bucket in buckets for p in bucket]
    if any(theirs != own for theirs in gathered_values(own, ranks)):
        raise TrainingError(
            "the ranks begin with different weights; `prepare` must do the same on all of them, whatever their number"
        )
