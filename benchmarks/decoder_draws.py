"""What is saved by leaving text positions and picture tokens out of the multimodal decoder in training.

Operations of Base (paper.base) and of the published B/32, by the model's own count, which the tests hold against
torch's; and the time of a forward and backward pass of the medium model of `step_cost.py`.

    python benchmarks/decoder_draws.py
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from common import alternating_medians, write_result
from step_cost import MEDIUM

from opencoca import recipes
from opencoca.config import LossConfig, ModelConfig
from opencoca.model.flops import forward_flops
from opencoca.model.init import build
from opencoca.train.machine import keep_freed_memory
from opencoca.train.task import Pretraining
from opencoca.types import Batch

BATCH, LENGTHS = 8, (20, 64)
VARIANTS = {
    "whole": (0.0, 1.0),
    "half_of_the_words": (0.5, 1.0),
    "a_quarter_of_the_picture_tokens": (0.0, 0.25),
    "both": (0.5, 0.25),
}


def changed(config: ModelConfig, token_drop: float, share_read: float) -> ModelConfig:
    """The model that leaves out this share of the words and reads this share of the picture tokens."""
    queries = 0 if share_read == 1 else round(share_read * config.pooler.num_queries)
    text = dataclasses.replace(config.text, token_drop=token_drop)
    return dataclasses.replace(config, text=text, pooler=dataclasses.replace(config.pooler, train_queries=queries))


def operations(config: ModelConfig, length: int) -> dict[str, dict[str, float]]:
    """Of each variant: operations of the whole model, and of its multimodal half and head, as shares of all."""
    counted = {}
    for name, variant in VARIANTS.items():
        own = changed(config, *variant)
        counted[name] = forward_flops(own, 1, length, None, 0, own.text.token_drop, own.pooler.train_queries)
    whole = counted["whole"]
    return {
        name: {
            "step": flops.total / whole.total,
            "multimodal_and_head": (flops.multimodal + flops.head) / (whole.multimodal + whole.head),
        }
        for name, flops in counted.items()
    }


def batch(config: ModelConfig, length: int) -> Batch:
    """Random pairs with captions of one length, and what training draws for them."""
    size_px = config.vision.image_size_px
    ids = torch.randint(3, config.text.vocab_size, (BATCH, length))
    return Batch(
        torch.randn(BATCH, 3, size_px, size_px),
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.arange(2 * BATCH).view(BATCH, 2),
        tuple(map(str, range(BATCH))),
        word_noise=torch.rand(BATCH, length - 1) if config.text.token_drop else None,
        query_noise=torch.rand(BATCH, config.pooler.num_queries) if config.pooler.train_queries else None,
    )


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11, help="0 counts operations alone")
    repeats = parser.parse_args().repeats
    models = {"base": recipes.paper.base().model, "open_clip_b_32": recipes.open_clip.vit_b_32().model}
    figures = {
        "operations": {
            f"{name}_{length}_ids": operations(config, length) for name, config in models.items() for length in LENGTHS
        }
    }
    if repeats:
        figures |= measured(repeats)
    write_result("decoder_draws", figures)


def measured(repeats: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass of each variant, and their medians as shares of the whole model's."""
    keep_freed_memory()
    torch.manual_seed(0)
    shares, seconds = {}, {}
    for length in LENGTHS:
        steps = {name: step(changed(MEDIUM, *variant), length) for name, variant in VARIANTS.items()}
        times = alternating_medians(steps, repeats)
        shares[f"{length}_ids"] = {name: time["median_s"] / times["whole"]["median_s"] for name, time in times.items()}
        seconds[f"{length}_ids"] = times
    return {"time_medium": shares, "seconds": seconds, "batch": BATCH}


def step(config: ModelConfig, length: int) -> Callable[[], None]:
    """A forward and backward pass over one batch."""
    model, task, pairs = build(config), Pretraining(config, LossConfig()), batch(config, length)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        task.loss(model, pairs).total.backward()

    return run


if __name__ == "__main__":
    main()
