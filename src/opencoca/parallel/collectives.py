"""What ranks tell each other: tensors gathered with gradient, numbers summed, short texts. One rank tells itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opencoca.parallel.mesh import Ranks


def gathered(x: Tensor, ranks: Ranks) -> Tensor:
    """The rows [G,...] of all ranks, in rank order; every rank has as many [B,...].

    Each rank's loss depends on all rows, so this rank's rows get the sum of the gradients that all ranks have for them.
    """
    if ranks.world == 1:
        return x
    if x.is_floating_point():
        return _Gather.apply(x, ranks)  # pyright: ignore[reportReturnType]
    return _all_gather(x, ranks)


class _Gather(torch.autograd.Function):
    """Forward: all-gather. Backward: the sum over ranks, of which each takes its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _all_gather(x, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, ranks = gradients[0].contiguous(), ctx.ranks
        own = gradient.new_empty(len(gradient) // ranks.world, *gradient.shape[1:])
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        reduce_scatter(own, gradient)
        return own, None


def _all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    everyone = x.new_empty(ranks.world * len(x), *x.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the new name since 2.13
    all_gather(everyone, x.detach().contiguous())
    return everyone


def summed(values: Sequence[float | Tensor], ranks: Ranks) -> Tensor:
    """Each scalar summed over ranks, as a float64 vector on the CPU, for one small reduction."""
    device = next((x.device for x in values if isinstance(x, Tensor)), ranks.device)
    scalars = [torch.as_tensor(x, dtype=torch.float64, device=device).reshape(()) for x in values]
    stacked = torch.stack(scalars)
    if ranks.world > 1:
        stacked = stacked.to(ranks.device)
        dist.all_reduce(stacked)
    return stacked.cpu()


def gathered_texts(text: str, ranks: Ranks) -> list[str]:
    """Every rank's text, in rank order."""
    if ranks.world == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.world)]
    dist.all_gather(lengths, torch.tensor([len(data)]), group=ranks.patient)
    longest = max(int(length) for length in lengths)
    padded = [torch.empty(longest, dtype=torch.uint8) for _ in range(ranks.world)]
    dist.all_gather(padded, torch.nn.functional.pad(data, (0, longest - len(data))), group=ranks.patient)
    pairs = zip(padded, lengths, strict=True)
    return [bytes(row[: int(length) - 1].tolist()).decode() for row, length in pairs]


def gathered_values(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's value, in rank order; a value is anything that JSON can say."""
    return [value] if ranks.world == 1 else [json.loads(text) for text in gathered_texts(json.dumps(value), ranks)]


def wait_for_all(ranks: Ranks) -> None:
    """Returns once every rank is here, however long one of them takes."""
    if ranks.world > 1:
        gathered_texts("", ranks)
