"""The published checkpoints: OpenCLIP's CoCa, in our configuration's words."""

from __future__ import annotations

from opencoca.config import (
    Activation,
    Config,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    PoolerConfig,
    TextConfig,
    VisionConfig,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def layout(
    *,
    image_size_px: int,
    patch_size_px: int,
    vision_width: int,
    vision_depth: int,
    vision_heads: int,
    text_width: int,
    text_depth: int,
    multimodal_depth: int,
    text_heads: int,
    vision_mlp_width: int | None = None,
    text_mlp_width: int | None = None,
    num_queries: int = 255,
    pooler_heads: int = 8,
    vocab_size: int = 49408,
    context_length: int = 76,
    activation: Activation = "gelu",
) -> ModelConfig:
    """A model of OpenCLIP's layout; `num_queries` are those that the decoder reads, one more gives the embedding.

    Differs from the paper: a class token and a norm in front of the encoder, one pooler shared by both uses,
    projections into the joint space, [CLS] in the last position with its keys shifted by one, and cross-attention in
    blocks of their own.
    """
    return ModelConfig(
        vision=VisionConfig(
            image_size_px=image_size_px,
            patch_size_px=patch_size_px,
            width=vision_width,
            depth=vision_depth,
            num_heads=vision_heads,
            mlp_width=vision_mlp_width or 4 * vision_width,
            class_token=True,
            patch_bias=False,
            norm_input=True,
            activation=activation,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            context_length=context_length,
            width=text_width,
            unimodal_depth=text_depth,
            multimodal_depth=multimodal_depth,
            num_heads=text_heads,
            mlp_width=text_mlp_width or 4 * text_width,
            cls_place="at_end",
            cross_attention="after",
            activation=activation,
        ),
        pooler=PoolerConfig(num_queries=num_queries, arrangement="shared", num_heads=pooler_heads),
        project_embeds=True,
    )


def vit_b_32() -> Config:
    """CoCa ViT-B/32 as LAION published it: 253.560M parameters."""
    model = layout(
        image_size_px=224,
        patch_size_px=32,
        vision_width=768,
        vision_depth=12,
        vision_heads=12,
        text_width=512,
        text_depth=12,
        multimodal_depth=12,
        text_heads=8,
    )
    return settings("open_clip.vit_b_32", model)


def vit_l_14() -> Config:
    """CoCa ViT-L/14 as LAION published it: 638.450M parameters."""
    model = layout(
        image_size_px=224,
        patch_size_px=14,
        vision_width=1024,
        vision_depth=24,
        vision_heads=16,
        text_width=768,
        text_depth=12,
        multimodal_depth=12,
        text_heads=12,
    )
    return settings("open_clip.vit_l_14", model)


def settings(name: str, model: ModelConfig, pixels: PixelConfig | None = None) -> Config:
    """A whole configuration around a published model: CLIP's preprocessing, beam search, fine-tuning's usual rates."""
    return Config(
        recipe=name,
        model=model,
        optim=OptimConfig(steps=10_000, peak_lr=1e-5, warmup_steps=1_000, weight_decay=0.1, schedule="cosine"),
        data=DataConfig(folder="data/finetune", batch_size=128, text_buckets=8, bucket_gain=8),
        pixels=pixels or PixelConfig(mean=CLIP_MEAN, std=CLIP_STD, fill=0, indexed="nearest"),
        generation=GenerationConfig(beams=6, max_tokens=28, min_tokens=3, match_weight=0.0),
    )
