"""One update: forward, backward, clip, step, clamp."""

from __future__ import annotations

import math

import torch

from opencoca.config import Config
from opencoca.errors import TrainingError
from opencoca.train.optim import schedule
from opencoca.train.state import TrainState
from opencoca.train.task import Task
from opencoca.types import Batch

MAX_LOG_SCALE = math.log(100.0)


def update(
    state: TrainState, task: Task, batch: Batch, config: Config, autocast: torch.autocast
) -> dict[str, torch.Tensor]:
    """Trains on one batch, in place, and returns the losses and the gradient norm before clipping.

    Raises: TrainingError before any weight changes where the loss or a gradient isn't finite.
    """
    optim = config.optim
    rate = schedule(state.step, optim)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak_lr"]
    with autocast:
        loss = task.loss(state.model, batch)
    loss.total.backward()
    gradient_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm, foreach=True)
    if not torch.isfinite(gradient_norm + loss.total.detach()):
        raise TrainingError(
            f"step {state.step}: the gradient norm is {gradient_norm.item()} with loss {loss.total.item()}; "
            f"weights are unchanged. Lower optim.peak_lr ({optim.peak_lr}), or look at the batch: "
            f"{', '.join(batch.keys[:8])} ..."
        )
    for optimizer in state.optimizers:
        optimizer.step()
    with torch.no_grad():
        state.model.log_scale.clamp_(0.0, MAX_LOG_SCALE)
    state.step += 1
    state.update_average(optim.ema_decay)
    return {"loss": loss.total.detach(), **loss.parts, "gradient_norm": gradient_norm}
