"""What one CoCa training step costs, in captioning-only and contrastive-only steps of the same size (Table 8b).

By floating-point operations for Base with 12 decoder layers in all, and by time for a medium model. The
contrastive-only model reads text with all 12 layers (docs/decisions/0002); the 6-layer one stands beside it.
"""

from __future__ import annotations

import dataclasses
import statistics

import torch
from common import alternating_seconds, summaries, write_result

from opencoca import recipes
from opencoca.config import ModelConfig, PoolerConfig, TextConfig, VisionConfig
from opencoca.losses import captioning_loss, contrastive_loss
from opencoca.model.coca import CoCa
from opencoca.model.flops import forward_flops
from opencoca.model.init import build
from opencoca.train.machine import keep_freed_memory

BATCH, TEXT_LENGTH, REPEATS = 8, 64, 21
MEDIUM = ModelConfig(
    vision=VisionConfig(image_size_px=288, patch_size_px=18, width=384, depth=12, num_heads=6, mlp_width=1536),
    text=TextConfig(
        vocab_size=16_000,
        context_length=64,
        width=384,
        unimodal_depth=6,
        multimodal_depth=6,
        num_heads=6,
        mlp_width=1536,
    ),
    pooler=PoolerConfig(num_queries=256),
)


def with_depths(config: ModelConfig, unimodal: int, multimodal: int) -> ModelConfig:
    """The same model with other decoder depths."""
    text = dataclasses.replace(config.text, unimodal_depth=unimodal, multimodal_depth=multimodal)
    return dataclasses.replace(config, text=text)


def operations(config: ModelConfig, text_length: int) -> dict[str, float]:
    """Forward operations of the objectives, as ratios."""
    coca = forward_flops(config, 1, text_length)
    halves = config.text.unimodal_depth
    deep = forward_flops(with_depths(config, 2 * halves, 0), 1, text_length)
    captioning = coca.total - coca.contrastive_pooler - coca.unimodal // (text_length + 1)
    contrastive = deep.total - deep.multimodal - deep.head
    shallow = coca.total - coca.multimodal - coca.head
    return {
        "coca_over_captioning": coca.total / captioning,
        "coca_over_contrastive": coca.total / contrastive,
        "coca_over_contrastive_with_half_the_text_layers": coca.total / shallow,
    }


def captioning_step(model: CoCa, pixels: torch.Tensor, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Captioning alone: no contrastive pooler, no [CLS] position."""
    patches = model.encoder(pixels)
    picture = model.generative_pooler(patches)
    _, tokens = model.unimodal(ids[:, :-1], valid[:, :-1])
    return captioning_loss(model.caption_logits(model.decode(picture, tokens)), ids[:, 1:], valid[:, 1:])


def contrastive_step(model: CoCa, pixels: torch.Tensor, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Contrastive alone: no multimodal half, no head."""
    image, text = model.encode_image(pixels).embed, model.encode_text(ids, valid).embed
    return contrastive_loss(image, text, image, text, model.log_scale.exp())


def coca_step(model: CoCa, pixels: torch.Tensor, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Both losses from one pass."""
    output = model(pixels, ids, valid)
    contrastive = contrastive_loss(
        output.image_embed, output.text_embed, output.image_embed, output.text_embed, output.scale
    )
    return contrastive + 2 * captioning_loss(model.caption_logits(output.decoded), ids[:, 1:], valid[:, 1:])


def main() -> None:
    """Measures and writes the result."""
    keep_freed_memory()
    base = with_depths(recipes.paper.base().model, 6, 6)
    figures = {f"operations_base_{length}_tokens": operations(base, length) for length in (16, 32, 64)}
    figures["operations_medium_64_tokens"] = operations(MEDIUM, TEXT_LENGTH)

    torch.manual_seed(0)
    pixels = torch.randn(BATCH, 3, 288, 288)
    ids = torch.randint(3, MEDIUM.text.vocab_size, (BATCH, TEXT_LENGTH))
    valid = torch.ones_like(ids, dtype=torch.bool)
    models = {
        "coca": (build(MEDIUM), coca_step),
        "captioning": (build(MEDIUM), captioning_step),
        "contrastive": (build(with_depths(MEDIUM, 12, 0)), contrastive_step),
        "contrastive_with_half_the_text_layers": (build(with_depths(MEDIUM, 6, 0)), contrastive_step),
    }

    def step(name: str) -> None:
        model, objective = models[name]
        model.zero_grad(set_to_none=True)
        objective(model, pixels, ids, valid).backward()

    seconds = alternating_seconds({name: lambda name=name: step(name) for name in models}, REPEATS)
    times = summaries(seconds)
    ratios = {
        statistic: {
            f"coca_over_{name}": times["coca"][statistic] / timed[statistic]
            for name, timed in times.items()
            if name != "coca"
        }
        for statistic in ("median_s", "min_s")
    }
    ratios["median_of_turns"] = {  # each step against the CoCa step of the same turn, seconds apart
        f"coca_over_{name}": statistics.median(a / b for a, b in zip(seconds["coca"], taken, strict=True))
        for name, taken in seconds.items()
        if name != "coca"
    }
    write_result(
        "step_cost",
        {
            **figures,
            "time_medium_64_tokens": ratios,
            "seconds": times,
            "batch": BATCH,
            "parameters_medium": sum(p.numel() for p in models["coca"][0].parameters()),
        },
    )


if __name__ == "__main__":
    main()
