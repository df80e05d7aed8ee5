"""Adafactor: Adam whose second moments of a matrix are kept as one number per row and one per column.

Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018), Algorithms 4 and 5,
with the settings of CoCa (section 4.1): first moments with beta1, a fixed beta2, decoupled weight decay; the step is
the learning rate itself, neither relative to the weights nor decayed by the optimizer.
Differs: `beta2` doesn't grow with the steps but is corrected for its bias, as Adam's (section 4). First moments are of
the clipped updates and start from 0 without a correction, as in the implementations that came after the paper.
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*: one call for many tensors, as torch's own optimizers use them

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from opencoca.train.sharding import along_columns, along_rows, local, row_group

MIN_FACTORED = 128  # matrices with a side below this keep every second moment: there is little to save
_EPSILON = 1e-30  # is added to squared gradients (epsilon 1 of the paper), so that none is 0


class Adafactor(torch.optim.Optimizer):
    """Adafactor with first moments and decoupled weight decay, for parameters of any shape, sharded by rows or not.

    State of a parameter: momentum and step; for a matrix with both sides from `min_factored` on, row [outputs] and
    column [inputs], moving averages of the squared gradient's means; for all others square, that of the squares.

    clip_update: a parameter's update is scaled down to this root mean square where it is larger; inf turns it off.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        beta1: float,
        beta2: float,
        weight_decay: float,
        clip_update: float = 1.0,
        min_factored: int = MIN_FACTORED,
    ) -> None:
        self.min_factored = min_factored
        settings = {"beta1": beta1, "beta2": beta2, "clip_update": clip_update}
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, **settings})

    def is_factored(self, parameter: Tensor) -> bool:
        """Whether a parameter's second moments are kept by rows and columns; `parameter` has its whole shape."""
        return parameter.ndim == 2 and min(parameter.shape) >= self.min_factored

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; parameters without a gradient stay as they are. Every rank must call it.

        Gradients are used up: the updates are computed in their memory.
        """
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, group)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= self.first_state(parameter)
        states = [self.state[parameter] for parameter in parameters]
        updates = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        self._divide(parameters, states, updates, group["beta2"])
        if group["clip_update"] < math.inf:
            norms = torch._foreach_norm(updates)
            torch._foreach_div_(norms, [parameter.numel() ** 0.5 for parameter in parameters])
            mean_squares = torch.stack(_sums_over_ranks([norm.square() for norm in norms], parameters))
            scales = (group["clip_update"] / mean_squares.sqrt()).clamp(max=1.0)
            torch._foreach_mul_(updates, scales.unbind())
        momenta = [local(state["momentum"]) for state in states]
        torch._foreach_lerp_(momenta, updates, 1.0 - group["beta1"])
        weights = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])

    def _divide(
        self, parameters: list[nn.Parameter], states: list[dict[str, Tensor]], updates: list[Tensor], beta2: float
    ) -> None:
        """Moves second moments on by the gradients in `updates`, and divides those by the moments' roots, in place."""
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        # (1 - beta2) / (1 - beta2 ** step): so much does the newest square count, and the weights of all add up to 1
        logarithm = math.log(beta2) if beta2 else -math.inf
        shares = (beta2 - 1.0) / torch.expm1(torch.stack(steps).to(updates[0].dtype) * logarithm)
        rows: list[Tensor] = []
        columns: list[Tensor] = []
        factored = [i for i, state in enumerate(states) if "row" in state]
        for i in factored:
            squares = updates[i].square().add_(_EPSILON)
            rows.append(squares.mean(dim=1))
            columns.append(squares.sum(dim=0) / len(parameters[i]))
        columns = _sums_over_ranks(columns, [parameters[i] for i in factored])
        means = dict(zip(factored, zip(rows, columns, strict=True), strict=True))
        for i, (state, update, share) in enumerate(zip(states, updates, shares.unbind(), strict=True)):
            if i not in means:
                square = local(state["square"]).lerp_(update.square().add_(_EPSILON), share)
                update.mul_(square.rsqrt())
                continue
            row = local(state["row"]).lerp_(means[i][0], share)
            column = local(state["column"]).lerp_(means[i][1], share)
            # the mean of `row` over all ranks' rows is that of `column`, which every rank has
            update.mul_((column.mean() / row).sqrt_()[:, None]).mul_(column.rsqrt())

    def first_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step, each tensor sharded as that parameter needs it."""
        state = {
            "momentum": torch.zeros_like(parameter),
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        }
        if not self.is_factored(parameter):
            return state | {"square": torch.zeros_like(parameter)}
        part = local(parameter)
        return state | {
            "row": along_rows(part.new_zeros(part.shape[0]), parameter),
            "column": along_columns(part.new_zeros(part.shape[1]), parameter),
        }


def _sums_over_ranks(parts: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """Sums of each parameter's part over the ranks that share its rows, in one message per group of ranks."""
    shared: dict[ProcessGroup, list[int]] = defaultdict(list)
    for i, parameter in enumerate(parameters):
        group = row_group(parameter)
        if group is not None:
            shared[group].append(i)
    sums = list(parts)
    for group, members in shared.items():
        message = torch.cat([parts[i].flatten() for i in members])
        dist.all_reduce(message, group=group)
        received = message.split([parts[i].numel() for i in members])
        for i, values in zip(members, received, strict=True):
            sums[i] = values.view_as(parts[i])
    return sums
