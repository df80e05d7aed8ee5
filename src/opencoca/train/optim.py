"""Which parameters are trained, by which optimizer, and at which rate."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from opencoca.config import OptimConfig
from opencoca.config_training import rates_of_parts
from opencoca.errors import ConfigError
from opencoca.train.adafactor import Adafactor
from opencoca.train.muon import Muon

_LAYER = re.compile(r"(encoder|unimodal|multimodal)\.(?:picture_)?blocks\.(\d+)\.")
_EMBEDDINGS = re.compile(
    r"(encoder\.(patch\.|class_D|registers_PD|positions_PD|norm_input\.)|unimodal\.(tokens\.|positions_TD|cls_D)|multimodal\.mask_TD)"
)

_BY_MUON = ("blocks.", "attention.", "encoder.patch.")  # whose matrices it moves, where it is asked for


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Takes the parts that `config.frozen` names out of training: their gradients aren't computed.

    A name stands for the parameter or module of that name, with all that is inside it.

    Raises: ConfigError for a name that nothing has, and where nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied head has two names
    for part in config.frozen:
        inside = [parameter for name, parameter in parameters.items() if _is_in(name, part)]
        if not inside:
            parts = dict.fromkeys(name.partition(".")[0] for name in parameters)
            raise ConfigError(f"optim.frozen {part!r} is no part of the model; its parts are {', '.join(parts)}")
        for parameter in inside:
            parameter.requires_grad_(False)
    if not trained_parameters(model):
        raise ConfigError(f"optim.frozen {', '.join(config.frozen)} leaves nothing to train; freeze less")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that aren't frozen, by name: those that have an optimizer's state and a moving average."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW or Adafactor for all parameters; or Muon for the hidden matrices and the patches', and AdamW for the rest.

    Every parameter that isn't frozen is in exactly one group, and each group carries its `peak_lr`, which
    `config.layer_decay` lowers towards the input and `config.part_rates` changes for whole parts. Weight decay falls on
    matrices only: not on norms, biases, embeddings, positions, queries and the temperature. AdamW is fused: torch has
    the kernel for CPU and CUDA alike.

    Raises: ConfigError where all parameters are frozen, or a part that has a rate of its own isn't in the model.
    """
    trained = trained_parameters(model)
    if not trained:
        raise ConfigError("all parameters are frozen, so there is nothing to train; freeze less")
    layers = layers_above(name for name, _ in model.named_parameters())
    factors = rate_factors(model, config)
    groups: dict[tuple[str, int, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained.items():
        if parameter.ndim != 2 or not name.endswith("weight") or name.endswith("tokens.weight"):
            kind = "kept"
        elif config.optimizer == "muon" and any(part in name for part in _BY_MUON):
            kind = "hidden"
        else:
            kind = "decayed"
        groups[kind, layers[name] if config.layer_decay < 1 else 0, factors[name]].append(parameter)

    def made(kind: str, weight_decay: float, peak_lr: float) -> list[dict]:
        return [
            {"params": members, "weight_decay": weight_decay, "peak_lr": peak_lr * factor * config.layer_decay**above}
            for (its_kind, above, factor), members in groups.items()
            if its_kind == kind
        ]

    usual = made("decayed", config.weight_decay, config.peak_lr) + made("kept", 0.0, config.peak_lr)
    hidden = made("hidden", config.weight_decay, config.muon_peak_lr)
    optimizers: list[torch.optim.Optimizer] = []
    if usual and config.optimizer == "adafactor":
        optimizers.append(Adafactor(usual, config.peak_lr, config.beta1, config.beta2, config.weight_decay))
    elif usual:
        betas = (config.beta1, config.beta2)
        optimizers.append(torch.optim.AdamW(usual, lr=config.peak_lr, betas=betas, eps=config.eps, fused=True))
    if hidden:
        optimizers.append(Muon(hidden, config.muon_peak_lr, config.muon_momentum, config.weight_decay))
    return optimizers


def rate_factors(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    """By what `config.part_rates` multiplies each parameter's rate, by its name.

    Raises: ConfigError for a name that nothing has.
    """
    rates = rates_of_parts(config.part_rates)
    names = [name for name, _ in model.named_parameters()]
    for part in rates:
        if not any(_is_in(name, part) for name in names):
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise ConfigError(f"optim.part_rates {part!r} is no part of the model; its parts are {', '.join(parts)}")
    fitting = {name: [part for part in rates if _is_in(name, part)] for name in names}
    return {name: rates[max(parts, key=len)] if parts else 1.0 for name, parts in fitting.items()}


def _is_in(name: str, part: str) -> bool:
    """Whether a parameter is the part of that name, or inside of it."""
    return name == part or name.startswith(f"{part}.")


def layers_above(names: Iterable[str]) -> dict[str, int]:
    """How many layers stand between each parameter's output and the heads, which is the power of `layer_decay`.

    0: poolers, projections, vocabulary head, temperature, the norms behind the last layers, and what a task adds.
    1: the last block of the encoder, and that of the multimodal half. The unimodal half stands below the multimodal
    one, as in one stack. One more than there are layers: patches, class token, tokens, [CLS] and their
    positions, and the masks that stand for texts below the multimodal half.

    Source: BEiT and MAE, whose layer i of n has the power n + 1 - i, embeddings being layer 0.
    """
    names = list(names)
    depths = {"encoder": 0, "unimodal": 0, "multimodal": 0}
    found = {name: (match[1], int(match[2])) for name in names if (match := _LAYER.search(name))}
    for part, layer in found.values():
        depths[part] = max(depths[part], layer + 1)
    stacked = {**depths, "unimodal": depths["unimodal"] + depths["multimodal"]}
    above = {}
    for name in names:
        if name in found:
            part, layer = found[name]
            above[name] = stacked[part] - layer
        else:
            embeds = _EMBEDDINGS.search(name)
            above[name] = stacked[embeds[1].partition(".")[0]] + 1 if embeds else 0
    return above


def first_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The state that `optimizer` gives a parameter at its first step: the names, shapes and shards to restore into."""
    if isinstance(optimizer, Adafactor):
        return optimizer.first_state(parameter)
    if isinstance(optimizer, Muon):
        return {"momentum": torch.zeros_like(parameter)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter), "step": step}


def schedule(step: int, config: OptimConfig) -> float:
    """The share of its peak rate that 0-based `step` trains with: linear warm-up, then linear or cosine decay.

    The rate would reach 0 at step `config.steps`, so the last step is still a small one.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
