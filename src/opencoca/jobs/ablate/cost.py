"""What a training step costs, in floating-point operations and in seconds, and how many steps equal costs buy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from opencoca.config import Config, ModelConfig
from opencoca.jobs.ablate.settings import Setting, Stage
from opencoca.jobs.ablate.variants import MANY
from opencoca.model.flops import ForwardFlops, forward_flops


def pair_operations(setting: Setting, stage: Stage, model: ModelConfig, lengths: Sequence[int]) -> float:
    """Operations that training spends on a pair, on average over captions of these lengths (start and end counted).

    A trained part costs three forward passes, a frozen one its own; parts that the objective doesn't read cost none.
    """
    parts = _mean_forward(setting, stage, model, lengths)
    return sum(cost * (1 if name in stage.frozen else 3) for name, cost in parts.items())


def stage_steps(setting: Setting, config: Config, joint: float, lengths: Sequence[int]) -> list[int]:
    """Steps of each stage. One stage has as many as the configuration says; more share the operations of as many steps
    of `joint` per pair."""
    if len(setting.stages) == 1:
        return [config.optim.steps]
    budget = joint * config.optim.steps
    return [
        max(1, round(budget * stage.share / pair_operations(setting, stage, config.model, lengths)))
        for stage in setting.stages
    ]


def _mean_forward(setting: Setting, stage: Stage, model: ModelConfig, lengths: Sequence[int]) -> dict[str, float]:
    """Mean operations of a pair's forward pass, by part, of the parts that the objective reads."""
    counts = {length: lengths.count(length) for length in set(lengths)}
    total: dict[str, float] = dict.fromkeys(ForwardFlops._fields, 0.0)
    for length, count in counts.items():
        for name, cost in _forward(setting, stage, model, length).items():
            total[name] += cost * count / len(lengths)
    read = {
        "joint": ForwardFlops._fields,
        "contrastive": ("encoder", "generative_pooler", "contrastive_pooler", "unimodal"),
        "captioning": ("encoder", "generative_pooler", "unimodal", "multimodal", "head"),
        "labels": ("encoder", "contrastive_pooler"),  # the head's pooler costs what a parallel contrastive one does
    }[stage.objective]
    if stage.objective == "contrastive" and model.pooler.arrangement == "parallel":
        read = tuple(name for name in read if name != "generative_pooler")
    return {name: total[name] for name in read}


def _forward(setting: Setting, stage: Stage, model: ModelConfig, length: int) -> dict[str, float]:
    patches = model.vision.train_patches
    pooler = model.pooler
    if setting.variant == "no_pooler":
        pooler = dataclasses.replace(pooler, num_queries=patches or model.vision.read_patches)
    if stage.objective == "labels":
        pooler = dataclasses.replace(pooler, arrangement="parallel")
    model = dataclasses.replace(model, pooler=pooler)
    counted = forward_flops(
        model, 1, length, None, patches, token_drop=model.text.token_drop, read_queries=pooler.train_queries
    )
    costs = {name: float(cost) for name, cost in counted._asdict().items()}
    if setting.variant == "no_pooler":
        costs["generative_pooler"] = 0.0
    if setting.variant.startswith("many_cls"):
        costs["unimodal"] = float(forward_flops(model, 1, length + MANY - 1, None, patches).unimodal)
    if stage.objective == "captioning":  # no [CLS], and the last token predicts nothing
        costs["unimodal"] = float(forward_flops(model, 1, length - 2, None, patches).unimodal)
    return costs


def cpu_seconds(steps: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """The least processor seconds of each call over some repeats, in turn, so that drift hits all alike.

    Of one thread; what others do on the machine counts less in them than in the clock's, though not nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(steps, float("inf"))
    try:
        for turn in range(repeats + 1):
            for name, call in steps.items():
                began = time.process_time()
                call()
                if turn:
                    best[name] = min(best[name], time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    return best
