"""The smallest model that still has every part, for tests."""

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


def tiny() -> Config:
    """About 100k parameters; a few seconds on any processor."""
    return Config(
        recipe="tiny",
        model=ModelConfig(
            vision=VisionConfig(image_size_px=16, patch_size_px=4, width=32, depth=2, num_heads=2, mlp_width=64),
            text=TextConfig(
                vocab_size=320,
                context_length=16,
                width=48,
                unimodal_depth=2,
                multimodal_depth=2,
                num_heads=3,
                mlp_width=96,
            ),
            pooler=PoolerConfig(num_queries=5),
        ),
        optim=OptimConfig(steps=20, peak_lr=3e-3, warmup_steps=2, ema_decay=0.9),
        data=DataConfig(folder="data/tiny", batch_size=8, max_shift_px=1),
        run=RunConfig(checkpoint_every_steps=5, log_every_steps=5, tensorboard=False),
    )
