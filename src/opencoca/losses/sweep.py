"""Losses whose large matrix exists for a few rows at a time: value and gradients come out of one sweep over it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the compiler, for 2 s
from torch.autograd.function import once_differentiable

Sweep = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]
# On 2 CPU cores, products of 128 rows run at 85% of the speed of 320 rows, of 640 at 72%. On a GPU: not measured.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}

# Loops over chunks, written in place, and lists of unknown length are nothing for torch.compile: it leaves these alone.
not_compiled = _disable_dynamo


def swept(sweep: Sweep, *inputs: Tensor) -> Tensor:
    """The scalar that `sweep(wanted, *inputs)` gives, differentiable by `inputs`.

    The sweep returns the value and its gradient by each input, None where `wanted` (one bool per input) doesn't ask
    for one; it may ask for none. The gradients are the caller's to overwrite.
    """
    wanted = tuple(torch.is_grad_enabled() and x.requires_grad for x in inputs)
    return _Swept.apply(sweep, *inputs) if any(wanted) else sweep(wanted, *inputs)[0]  # pyright: ignore


class _Swept(torch.autograd.Function):
    """A scalar whose gradients are known before anybody asks for them.

    The backward pass scales them in place and hands them over, so that nobody holds a second copy of a gradient as
    large as the vocabulary's matrix. With retain_graph, the next backward pass sweeps once more.
    """

    @staticmethod
    def forward(ctx: Any, sweep: Sweep, *inputs: Tensor) -> Tensor:
        ctx.sweep = sweep
        ctx.save_for_backward(*inputs)
        value, ctx.gradients = sweep(ctx.needs_input_grad[1:], *inputs)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = ctx.sweep(ctx.needs_input_grad[1:], *ctx.saved_tensors)[1]
        return None, *(None if gradient is None else gradient.mul_(outer) for gradient in gradients)


def chunks(rows: int, columns: int, like: Tensor, chunk: int = 0, most: int = 0) -> list[tuple[int, int]]:
    """Cuts `rows` rows into runs (first, last) of like size, `chunk` rows at most.

    A chunk of 0 takes what is fast on the device of `like` for `columns` elements of its type in a row: enough rows
    that the matrix products run at full speed, few enough that what comes between them stays near the processor; and
    at most `most` rows, if given.
    """
    if chunk <= 0:
        budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cpu"])
        chunk = max(1, budget // max(1, columns * like.element_size()))
        chunk = min(chunk, most or chunk)
    count = math.ceil(rows / chunk)
    edges = [rows * i // count for i in range(count + 1)] if count else [0]
    return list(itertools.pairwise(edges))


def longest(runs: Sequence[tuple[int, int]]) -> int:
    """Rows of the longest run."""
    return max((last - first for first, last in runs), default=0)
