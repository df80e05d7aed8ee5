"""GELU of a linear layer and its gradients in C (`native/gelu.c`), for training on a processor.

torch passes over an MLP's widest activations to lay out the bias, for GELU, for its gradient and for the bias's. Here
these are two passes. docs/decisions/0018 says what this gives.
"""

from __future__ import annotations

import functools
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opencoca.model import native

INTERFACE = 1  # goes up with every change of what C is given
BLOCKS = 32  # of rows, whose biases' gradients C sums apart


@functools.cache
def library() -> Any:
    """The library for this processor; None where there is none."""
    name = native.instructions()
    return None if name is None else load(name)


def load(name: str) -> Any:
    """The library for processors with these instructions, "avx2" or "avx512", or None."""
    found = native.open_library(name, "opencoca_gelu_interface", 1_000_000 * INTERFACE + BLOCKS)
    if found is not None:
        found.opencoca_bias_gelu.argtypes = [*[c_void_p] * 5, c_int64, c_int64, c_int]
        found.opencoca_bias_gelu.restype = None
    return found


def computes(linear: nn.Linear, x: Tensor) -> bool:
    """Whether `linear_gelu` is for this: a step that trains a plain linear layer in float32 on a processor."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    if type(linear) is not nn.Linear or linear.bias is None or type(linear.weight) is not nn.Parameter:
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or linear.weight.dtype != torch.float32:
        return False
    trains = x.requires_grad or linear.weight.requires_grad or linear.bias.requires_grad
    return trains and not torch.is_autocast_enabled("cpu") and library() is not None


def linear_gelu(linear: nn.Linear, x: Tensor) -> Tensor:
    """GELU of the layer's outputs; where `computes` says so."""
    return _BiasGelu.apply(nn.functional.linear(x, linear.weight), linear.bias)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        x, bias = x.contiguous(), bias.contiguous()
        out = torch.empty_like(x)
        width = bias.numel()
        library().opencoca_bias_gelu(
            *(x.data_ptr(), bias.data_ptr(), None, out.data_ptr(), None),
            *(x.numel() // width, width, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        gradient, width = gradients[0].contiguous(), bias.numel()
        of_x, sums = torch.empty_like(x), x.new_empty(BLOCKS, width)
        library().opencoca_bias_gelu(
            *(part.data_ptr() for part in (x, bias, gradient, of_x, sums)),
            *(x.numel() // width, width, torch.get_num_threads()),
        )
        return of_x, sums[0].clone()
