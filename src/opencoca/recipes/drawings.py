"""The recipe of the model that ships: a CoCa of drawings and icons, trained on one processor core in about an hour."""

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


def drawings() -> Config:
    """9.3M parameters, 2,000 steps of 128 pairs: 9 epochs of 28,924 samples, in four emoji styles and clip art.

    Command: `coca data get drawings` for the data, then `coca train drawings --run runs/drawings`.
    Figures and hardware: benchmarks/results/drawings.json.
    """
    return Config(
        recipe="drawings",
        model=ModelConfig(
            vision=VisionConfig(
                image_size_px=72, patch_size_px=12, width=256, depth=5, num_heads=4, mlp_width=1024, max_patches=28
            ),
            text=TextConfig(
                vocab_size=4000,
                context_length=32,
                width=256,
                unimodal_depth=2,
                multimodal_depth=2,
                num_heads=4,
                mlp_width=1024,
                tie_output=True,
            ),
            pooler=PoolerConfig(num_queries=16),
        ),
        optim=OptimConfig(
            steps=2000,
            optimizer="muon",
            peak_lr=6e-3,
            muon_peak_lr=0.02,
            warmup_steps=50,
            weight_decay=0.05,
        ),
        data=DataConfig(folder="data/drawings", batch_size=128),
        pixels=PixelConfig(mean=(0.84, 0.82, 0.79), std=(0.26, 0.27, 0.3), fit="pad"),
        # on val, 8 beams find 16% of the names of seen emoji and greedy decoding 24%: long lists of keywords win
        generation=GenerationConfig(beams=1),
        run=RunConfig(precision="fp32", log_every_steps=20, eval_every_steps=250, checkpoint_every_steps=100),
    )
