"""The quickstart's recipe: a small CoCa on OpenMoji pictures, for two processor cores and five minutes."""

from __future__ import annotations

from opencoca.config import (
    Config,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    PoolerConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)


def quickstart() -> Config:
    """4.4M parameters, 340 steps of 128 pairs: 15 epochs of 2,773 pictures.

    Command: coca quickstart. Figures and hardware: benchmarks/results/quickstart.json. What was tried on the way there,
    on `val` alone: docs/LOG.md.
    """
    return Config(
        recipe="openmoji",
        model=ModelConfig(
            vision=VisionConfig(
                image_size_px=48,
                patch_size_px=8,
                width=192,
                depth=4,
                num_heads=3,
                mlp_width=768,
                max_patches=24,
                train_patches=18,
            ),
            text=TextConfig(
                vocab_size=1000,
                context_length=32,
                width=192,
                unimodal_depth=2,
                multimodal_depth=2,
                num_heads=3,
                mlp_width=768,
                tie_output=True,
            ),
            pooler=PoolerConfig(num_queries=16),
        ),
        optim=OptimConfig(
            steps=340,
            optimizer="muon",
            peak_lr=8e-3,
            muon_peak_lr=0.02,
            warmup_steps=12,
            weight_decay=0.05,
        ),
        # some draws read "dark skin tone", or "woman, dark skin tone", instead of the whole: tones are learnt sooner
        data=DataConfig(
            folder="data/openmoji",
            batch_size=128,
            captions="sample",
            first_caption=0.6,
            clump_size=6,
            tokenizer="openmoji",
        ),
        pixels=PixelConfig(mean=(0.82, 0.82, 0.82), std=(0.3, 0.3, 0.3)),
        generation=GenerationConfig(beams=16, match_weight=0.2),  # docs/LOG.md, 2026-11-23
        run=RunConfig(precision="fp32", log_every_steps=10, eval_every_steps=50, checkpoint_every_steps=50),
    )
