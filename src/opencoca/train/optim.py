"""Parameter groups, optimizers and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from opencoca.config import OptimConfig
from opencoca.train.muon import Muon


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; or Muon for the hidden matrices, and AdamW for the rest.

    Every parameter is in exactly one group, and each group carries its `peak_lr`. Weight decay falls on matrices
    only: not on norms, biases, embeddings, positions, queries and the temperature. AdamW is fused: torch has the
    kernel for CPU and CUDA alike.
    """
    hidden, decayed, kept = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or not name.endswith("weight") or name.endswith("tokens.weight"):
            kept.append(parameter)
        elif config.optimizer == "muon" and ("blocks." in name or "attention." in name):
            hidden.append(parameter)
        else:
            decayed.append(parameter)
    adamw_groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak_lr": config.peak_lr},
        {"params": kept, "weight_decay": 0.0, "peak_lr": config.peak_lr},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in adamw_groups if group["params"]],
            lr=config.peak_lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
    ]
    if hidden:
        group = {"params": hidden, "peak_lr": config.muon_peak_lr}
        optimizers.append(Muon([group], config.muon_peak_lr, config.muon_momentum, config.weight_decay))
    return optimizers


def schedule(step: int, config: OptimConfig) -> float:
    """The share of its peak rate that 0-based `step` trains with: linear warm-up, then linear or cosine decay.

    The rate would reach 0 at step `config.steps`, so the last step is still a small one.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
