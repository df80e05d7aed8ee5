"""A model cut up over ranks (torch's FSDP2), and what makes its blocks cheaper: recomputing and compiling them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from opencoca.parallel.mesh import Ranks


class Whole(nn.Module):
    """Calls a function with a model whose parameters are whole for as long as it runs.

    FSDP gathers weights around a module's `forward` only; here any function of the model is that forward. The model
    keeps its own parameter names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(model, *args)` returns."""
        return function(self.model, *args)


def cut_up(model: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, bf16: bool) -> Whole:
    """The model, every block's weights and then the rest cut up over ranks, in place.

    With `bf16`, on GPUs, blocks are gathered in bf16 and their gradients summed in fp32. What isn't in a block stays
    fp32 when it is gathered (the temperature must), and autocast does the rest; so it does on a CPU, whose norms take
    no bf16 weights with fp32 activations. Gradients are summed, not averaged.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(
            block, mesh=mesh, mp_policy=policy if bf16 and ranks.device.type == "cuda" else MixedPrecisionPolicy()
        )
    whole = Whole(model)
    fully_shard(whole, mesh=mesh, reshard_after_forward=False)
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows sums only
    return whole


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Makes blocks forget their activations and compute them again in the backward pass; names stay."""
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return cast(Tensor, checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs))
