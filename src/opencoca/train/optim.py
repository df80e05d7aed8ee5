"""Parameter groups, optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from opencoca.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups: matrices, which decay, and the rest (norms, biases, embeddings, queries, temperature)."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and name.endswith("weight") and "unimodal.tokens" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW, fused: torch has the fused kernel on CPU and CUDA alike."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of 0-based `step`: linear warm-up to the peak, then linear or cosine decay to 0 at the last step."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.peak_lr * left
