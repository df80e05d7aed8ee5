"""The paper's three models and its pretraining settings (arXiv 2205.01917, Table 1 and section 4.1)."""

from __future__ import annotations

from opencoca.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TextConfig, VisionConfig


def base() -> Config:
    """CoCa-Base: 86M encoder, 297M decoder, 383M in all.

    Source: Table 1. The printed totals fix 12 + 12 decoder layers and an untied output; some summaries print 6 + 6.
    """
    return _paper("paper.base", width=768, depth=12, mlp=3072, decoder_mlp=3072, halves=12, heads=12, tie=False)


def large() -> Config:
    """CoCa-Large: 303M encoder, 484M decoder, 787M in all. Source: Table 1."""
    return _paper("paper.large", width=1024, depth=24, mlp=4096, decoder_mlp=4096, halves=12, heads=16, tie=False)


def coca() -> Config:
    """CoCa: 1.01B encoder, 1.09B decoder, 2.10B in all.

    Source: Table 1. The total of 2.1B is reached with 18 + 18 decoder layers and a tied output (untied: 2.19B).
    """
    return _paper("paper.coca", width=1408, depth=40, mlp=6144, decoder_mlp=5632, halves=18, heads=16, tie=True)


def _paper(
    name: str, *, width: int, depth: int, mlp: int, decoder_mlp: int, halves: int, heads: int, tie: bool
) -> Config:
    return Config(
        recipe=name,
        model=ModelConfig(
            vision=VisionConfig(
                image_size_px=288, patch_size_px=18, width=width, depth=depth, num_heads=heads, mlp_width=mlp
            ),
            text=TextConfig(
                vocab_size=64_000,
                context_length=64,
                width=width,
                unimodal_depth=halves,
                multimodal_depth=halves,
                num_heads=heads,
                mlp_width=decoder_mlp,
                tie_output=tie,
            ),
        ),
        optim=OptimConfig(
            steps=500_000,
            optimizer="adafactor",
            peak_lr=8e-4,
            warmup_steps=10_000,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.01,
        ),
        data=DataConfig(folder="data/pretrain", batch_size=65_536, text_buckets=8, bucket_gain=8),
        run=RunConfig(checkpoint_every_steps=1_000, log_every_steps=100),
    )
