"""Attention among few positions in C (`native/attention.c`), for training on a processor.

torch's kernel is made for long sequences; among 18 patches or 9 words it takes three to six times as long, and wants
heads where a linear layer has positions. docs/decisions/0018 says what this gives.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_int, c_int64
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opencoca.model import native

MOST = 80  # queries, and keys, of a sequence
WIDE = 32  # a head's vector is a multiple of this
WHOLE = 16  # rows of weights are filled up to a multiple of this
INTERFACE = 1  # goes up with every change of what C is given


class CRun(Structure):
    _fields_: ClassVar = [
        (name, c_int64) for name in ("sequences", "queries", "keys", "query_row", "key_row", "weights")
    ]


class CAttention(Structure):
    _fields_: ClassVar = [
        (name, c_int64)
        for name in (
            *("runs", "heads", "wide", "causal", "q", "kv", "weights", "out"),
            *("out_gradient", "q_gradient", "kv_gradient"),
        )
    ]


class Span(NamedTuple):
    """So many sequences one after another, each with so many queries and keys."""

    sequences: int
    queries: int
    keys: int


@functools.cache
def library() -> Any:
    """The library for this processor; None where there is none."""
    name = native.instructions()
    return None if name is None else load(name)


def load(name: str) -> Any:
    """The library for processors with these instructions, "avx2" or "avx512", or None."""
    size = 1_000_000 * INTERFACE + ctypes.sizeof(CRun) + ctypes.sizeof(CAttention)
    found = native.open_library(name, "opencoca_attention_interface", size)
    for function in ("opencoca_attend", "opencoca_attend_backward"):
        if found is not None:
            getattr(found, function).argtypes = [POINTER(CAttention), POINTER(CRun), c_int]
            getattr(found, function).restype = None
    return found


def attends(q: Tensor, kv: Tensor, num_heads: int) -> bool:
    """Whether `attend` is for these: a step that trains in float32 on a processor. Asks for no size that may change."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(q) is not Tensor:
        return False
    if q.device.type != "cpu" or q.dtype != torch.float32 or kv.dtype != torch.float32:
        return False
    trains = q.requires_grad or kv.requires_grad
    return trains and q.shape[-1] // num_heads % WIDE == 0 and library() is not None


def are_few(spans: Sequence[Span], causal: bool) -> bool:
    """Whether `attend` is for so many positions."""
    fit = all(0 < span.queries <= MOST and 0 < span.keys <= MOST for span in spans)
    return fit and not (causal and any(span.queries != span.keys for span in spans))


def attend(q_XD: Tensor, kv_YE: Tensor, num_heads: int, spans: Sequence[Span], causal: bool) -> Tensor:
    """What each query reads, all heads beside each other [X,D], of the keys and values of its own sequence.

    Args: q holds the projected queries of all sequences, kv [Y,2D] their keys and values beside each other, both in the
      order of `spans`. With `causal`, a sequence has as many keys as queries.
    """
    return _Attend.apply(q_XD.contiguous(), kv_YE.contiguous(), num_heads, tuple(spans), causal)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_XD: Tensor, kv_YE: Tensor, num_heads: int, spans: tuple[Span, ...], causal: bool) -> Tensor:
        runs, count = _runs(spans, num_heads)
        weights, out_XD = q_XD.new_empty(count), torch.empty_like(q_XD)
        told = CAttention(
            *(len(spans), num_heads, q_XD.shape[1] // num_heads, causal),
            *(part.data_ptr() for part in (q_XD, kv_YE, weights, out_XD)),
        )
        library().opencoca_attend(byref(told), runs, torch.get_num_threads())
        ctx.save_for_backward(q_XD, kv_YE, weights)
        ctx.told, ctx.runs = told, runs
        return out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_XD, kv_YE, weights = ctx.saved_tensors
        (gradient_XD,) = (gradient.contiguous() for gradient in gradients)
        of_q_XD, of_kv_YE = torch.empty_like(q_XD), torch.empty_like(kv_YE)
        told = CAttention(
            *(ctx.told.runs, ctx.told.heads, ctx.told.wide, ctx.told.causal),
            *(part.data_ptr() for part in (q_XD, kv_YE, weights)),
            *(0, gradient_XD.data_ptr(), of_q_XD.data_ptr(), of_kv_YE.data_ptr()),
        )
        library().opencoca_attend_backward(byref(told), ctx.runs, torch.get_num_threads())
        return of_q_XD, of_kv_YE, None, None, None


@functools.lru_cache(maxsize=256)
def _runs(spans: tuple[Span, ...], num_heads: int) -> tuple[Any, int]:
    """What C is told of the spans, and how many weights they have in all."""
    runs, query_row, key_row, weights = [], 0, 0, 0
    for span in spans:
        runs.append(CRun(*span, query_row, key_row, weights))
        query_row += span.sequences * span.queries
        key_row += span.sequences * span.keys
        weights += span.sequences * num_heads * span.queries * (-(-span.keys // WHOLE) * WHOLE)
    return (CRun * len(runs))(*runs), weights
