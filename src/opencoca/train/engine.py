"""How a model is run on its ranks: copied or cut up, its blocks compiled or computed again, its gradients summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opencoca.config import RunConfig
from opencoca.model.blocks import Block, PictureBlock
from opencoca.parallel.ddp import SummedGradients
from opencoca.parallel.fsdp import Whole, cut_up, recompute
from opencoca.parallel.mesh import ALONE, Ranks

RECOMPILE_LIMIT = 64
BYTES_PER_PARAMETER = 20  # weight, gradient, two moments and a moving average, in fp32


class Engine:
    """Runs functions of a model and sums its gradients; `arrange` first, then `begin`, then step after step.

    One process with neither option set runs the model as it is.
    """

    def __init__(self, run: RunConfig | None = None, ranks: Ranks = ALONE, bf16: bool = False) -> None:
        self.run, self.ranks, self.bf16 = run or RunConfig(), ranks, bf16
        self.model: nn.Module | None = None
        self._whole: Whole | None = None
        self._sums: SummedGradients | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        assert self.model is not None
        return next(self.model.parameters()).device

    @property
    def is_cut_up(self) -> bool:
        """Whether each rank holds only its part of the weights."""
        return self._whole is not None

    def arrange(self, model: nn.Module) -> None:
        """Changes a new model before its optimizers are made: blocks that recompute or are compiled, weights cut up."""
        blocks = [module for module in model.modules() if isinstance(module, Block | PictureBlock)]
        if self.run.checkpoint_activations:
            recompute(blocks)
        if self.run.compile:
            # kinds of blocks, with and without a graph, at one length and at any: more than torch's usual limit of 8
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            for block in blocks:
                block.compile()
        if self.ranks.world > 1 and parallel_mode(self.run, model, self.ranks) == "fsdp":
            self._whole = cut_up(model, blocks, self.ranks, self.bf16)

    def begin(self, model: nn.Module) -> Engine:
        """Ready to train this model, whose weights stand now."""
        self.model = model
        if self.ranks.world > 1 and self._whole is None:
            self._sums = SummedGradients(model.parameters(), self.ranks)
        return self

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(model, *args)` returns, with weights that are whole meanwhile."""
        assert self.model is not None
        return function(self.model, *args) if self._whole is None else self._whole(function, *args)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Adds the loss's gradients; after the `last` one of a step they are those of all ranks."""
        if self._sums is not None and last:
            self._sums.expect()
        loss.backward()
        if self._sums is not None and last:
            self._sums.finish()

    def clip(self, most: float) -> Tensor:
        """The norm of all gradients over all parts, which are scaled down in place to one of `most` at most."""
        assert self.model is not None
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = _norm([cast(Tensor, parameter.grad) for parameter in trained])
        torch.nn.utils.clip_grads_with_norm_(trained, most, norm, foreach=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """The root of the sum of all squares; on a CPU by products of each with itself, twice as fast as norms."""
    plain = all(gradient.device.type == "cpu" and not isinstance(gradient, DTensor) for gradient in gradients)
    if not plain or len({gradient.dtype for gradient in gradients}) != 1:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)
    flat = [gradient.flatten() for gradient in gradients]
    return torch.stack([values.dot(values) for values in flat]).sum().sqrt()


def parallel_mode(run: RunConfig, model: nn.Module, ranks: Ranks) -> str:
    """ "ddp" or "fsdp"; "auto" takes copies where one with its optimizer fits into half of a device's memory."""
    if run.parallel != "auto":
        return run.parallel
    if ranks.device.type != "cuda":
        return "ddp"
    need = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    return "ddp" if need <= torch.cuda.get_device_properties(ranks.device).total_memory / 2 else "fsdp"
