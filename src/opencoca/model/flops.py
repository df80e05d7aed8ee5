"""Floating-point operations of a forward pass, from the configuration: matrix products only, 2 per multiply-add."""

from __future__ import annotations

from typing import NamedTuple

from opencoca.config import ModelConfig, trained_positions


class ForwardFlops(NamedTuple):
    """Operations of each part, for one batch."""

    encoder: int
    generative_pooler: int
    contrastive_pooler: int
    unimodal: int
    multimodal: int
    head: int

    @property
    def total(self) -> int:
        """All parts: one CoCa forward pass. Training costs three times as much (backward is two)."""
        return sum(self)


def forward_flops(
    config: ModelConfig,
    batch: int,
    text_length: int,
    image_size_px: int | None = None,
    read_patches: int = 0,
    token_drop: float = 0.0,
    read_queries: int = 0,
) -> ForwardFlops:
    """Operations of CoCa's forward pass over `batch` pictures and captions of `text_length` ids, start and end counted.

    The last three are for training that reads fewer patches than inference does, or fewer text positions or picture
    tokens in the multimodal half. Causal attention is counted in full, as is usual for model-FLOPs utilisation.
    """
    vision, text, pooler = config.vision, config.text, config.pooler
    patches = ((image_size_px or vision.image_size_px) // vision.patch_size_px) ** 2
    patches = min(patches, read_patches or vision.max_patches or patches)
    positions = patches + vision.class_token
    queries, width, shared = pooler.num_queries, text.width, pooler.arrangement == "shared"
    contrastive_context = (queries, width) if pooler.arrangement == "cascade" else (positions, vision.width)
    with_cls, predicted = text_length + 1, trained_positions(text_length - 1, token_drop)
    encoder = _linear(patches, 3 * vision.patch_size_px**2, vision.width)
    encoder += vision.depth * _block(positions + vision.registers, vision.width, vision.mlp_width)
    unimodal = text.unimodal_depth * _block(with_cls, width, text.mlp_width)
    layer = _block(predicted, width, text.mlp_width) + _attention(predicted, width, read_queries or queries, width)
    if text.cross_attention == "after":
        layer += 2 * _linear(predicted, width, text.mlp_width)
    multimodal = text.multimodal_depth * layer
    projection = _linear(1, width, config.embed_dim) if config.project_embeds else 0
    return ForwardFlops(
        encoder=batch * encoder,
        generative_pooler=_pooler(batch, queries + shared, width, positions, vision.width),
        contrastive_pooler=batch * projection + (0 if shared else _pooler(batch, 1, width, *contrastive_context)),
        unimodal=batch * (unimodal + projection),
        multimodal=batch * multimodal,
        head=batch * _linear(predicted, width, text.vocab_size),
    )


def _linear(positions: int, inputs: int, outputs: int) -> int:
    return 2 * positions * inputs * outputs


def _attention(queries: int, width: int, context: int, context_width: int) -> int:
    projections = 2 * _linear(queries, width, width) + _linear(context, context_width, 2 * width)
    return projections + 2 * _linear(queries, width, context)


def _pooler(batch: int, queries: int, width: int, context: int, context_width: int) -> int:
    once = _linear(queries, width, width)  # the learnable queries are projected once for the whole batch
    return batch * (_attention(queries, width, context, context_width) - once) + once


def _block(positions: int, width: int, mlp_width: int) -> int:
    return _attention(positions, width, positions, width) + 2 * _linear(positions, width, mlp_width)
