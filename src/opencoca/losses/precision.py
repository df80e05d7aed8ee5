"""In which precision losses compute: at least fp32, whatever autocast says; float64 stays float64."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or unchanged where it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which matrix products have the type of their operands.

    Autocast would run the similarities in bf16 again, whatever their inputs: 0.2 nats off at scale 100.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def product_dtype(left: Tensor, right: Tensor) -> torch.dtype:
    """The type in which a matrix product of both runs here: autocast's, unless one of them is float64."""
    widest = torch.promote_types(left.dtype, right.dtype)
    kind = left.device.type
    if widest != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return widest


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right, written into `out`, which may be wider than they are."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if out.device.type == "cuda":  # the only device that writes its fp32 sums out unrounded
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def add_product(left: Tensor, right: Tensor, out: Tensor, first: bool) -> Tensor:
    """Adds left @ right to `out`, or writes it there if this is the first; `out` may be wider than they are."""
    if first:
        return product(left, right, out)
    if out.dtype == left.dtype:
        return out.addmm_(left, right)
    if out.device.type == "cuda":
        return torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    return out.add_(left @ right)
