"""The quickstart's recipe: a small CoCa on OpenMoji pictures, for two processor cores and five minutes."""

from __future__ import annotations

from opencoca.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PoolerConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)


def quickstart() -> Config:
    """WIP."""
    return Config(
        recipe="openmoji",
        model=ModelConfig(
            vision=VisionConfig(image_size_px=48, patch_size_px=8, width=192, depth=5, num_heads=3, mlp_width=768),
            text=TextConfig(
                vocab_size=1000,
                context_length=32,
                width=192,
                unimodal_depth=3,
                multimodal_depth=2,
                num_heads=3,
                mlp_width=768,
                tie_output=True,
            ),
            pooler=PoolerConfig(num_queries=16),
        ),
        optim=OptimConfig(steps=600, peak_lr=1e-3, warmup_steps=60, weight_decay=0.05),
        data=DataConfig(folder="data/openmoji", batch_size=128, max_shift_px=2, tokenizer="openmoji"),
        run=RunConfig(),
    )
