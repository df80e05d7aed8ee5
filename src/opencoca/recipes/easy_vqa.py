"""The recipe of a model that answers questions about one coloured shape: the smallest that does so reliably."""

from __future__ import annotations

from opencoca.config import (
    Config,
    DataConfig,
    GenerationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PoolerConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)


def easy_vqa() -> Config:
    """Trains in minutes on one processor core.

    Command: `coca vqa data/easy-vqa --recipe easy_vqa --run runs/easy-vqa`.
    Figures and hardware: benchmarks/results/vqa.json.
    """
    return Config(
        recipe="easy_vqa",
        model=ModelConfig(
            vision=VisionConfig(
                image_size_px=64, patch_size_px=8, width=64, depth=2, num_heads=2, mlp_width=128, max_patches=20
            ),
            text=TextConfig(
                vocab_size=330,
                context_length=32,
                width=64,
                unimodal_depth=1,
                multimodal_depth=2,
                num_heads=2,
                mlp_width=128,
            ),
            pooler=PoolerConfig(num_queries=8),
        ),
        optim=OptimConfig(
            steps=4000, peak_lr=3e-3, warmup_steps=100, schedule="cosine", weight_decay=0.05, ema_decay=0.995
        ),
        data=DataConfig(folder="data/easy-vqa", batch_size=192, clump_size=4),
        loss=LossConfig(contrastive_weight=0.0, captioning_weight=0.5),
        generation=GenerationConfig(beams=1),
        run=RunConfig(log_every_steps=50, eval_every_steps=200, checkpoint_every_steps=200, tensorboard=False),
    )
