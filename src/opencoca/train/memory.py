"""How much memory a training step needs on one device, computed from the configuration before anything is trained.

The peak is what stays (weights, optimizer, moving average) and the most that activations and gradients need together.
The backward pass goes from the head to the encoder: with each part that it has passed, activations are freed and
gradients added, so the peak lies at one of the parts' borders. Activations of a block of width D and MLP width M, per
position, with a bytes per number (2 under bf16 autocast, else 4), in eager mode:

    8D                   input of both norms (the residual stream, fp32)
    a D c                input of the query and key-value projections (c = 2 casts under autocast, else 1)
    a 4D                 queries, keys, values, and what attention gives
    a (D + 2M)           input of the MLP, and its hidden layer before and after GELU
    4N                   attention's log-sum-exp per head

Cross-attention adds 4D + a 3D per position, and a 2D per picture token and layer; captions in several runs a D more for
each attention, whose heads are put together again. With `checkpoint_activations` a block
keeps its input alone, and one block at a time has the rest. Autocast keeps a bf16 copy of each matrix. The captioning
loss holds one chunk of logits, the contrastive loss one chunk of similarities (`losses.sweep`).

What it leaves out: the device's own context and kernels' workspaces (about 1 GB on a GPU), fragmentation, and what
`torch.compile` saves. `tests/unit/test_memory.py` compares it with measured peaks.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from opencoca.config import Config, ModelConfig, OptimConfig
from opencoca.losses.captioning import rows_at_most
from opencoca.losses.sweep import CHUNK_BYTES
from opencoca.model.coca import CoCa
from opencoca.train.optim import first_moments, freeze, make_optimizers, trained_parameters

PARTS = ("encoder", "poolers", "unimodal", "multimodal", "head")


class ParameterBytes(NamedTuple):
    """What a model's parameters take in all, in fp32: `trained` of it has gradients, `moments` is the optimizer's."""

    weights: int
    trained: int
    moments: int
    average: int
    matrices: int
    trained_by_part: dict[str, int]
    largest_block: int


class Memory(NamedTuple):
    """Bytes on one device; `peak` is below the sum of the rest, since gradients come while activations go."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    losses: int
    exchange: int
    peak: int


class Shape(NamedTuple):
    """What one device reads at a time: pairs of a micro-batch, and the padded length of their captions on average."""

    pairs: int
    text_length: float
    global_pairs: int
    accumulates: bool = False  # more than one micro-batch makes a step


def parameter_bytes(config: Config) -> ParameterBytes:
    """Counted on a model without memory, by the optimizers that training makes."""
    return _counted(config.model, config.optim)


@functools.lru_cache(maxsize=8)
def _counted(config: ModelConfig, optim: OptimConfig) -> ParameterBytes:
    with torch.device("meta"):
        model = CoCa(config)
    freeze(model, optim)
    trained = {name: 4 * parameter.numel() for name, parameter in trained_parameters(model).items()}
    moments = 0
    for optimizer in make_optimizers(model, optim):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            moments += sum(x.numel() * x.element_size() for x in first_moments(optimizer, parameter).values())
    by_part: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, size in trained.items():
        part = name.partition(".")[0]
        by_part[part if part in by_part else "poolers"] += size
    whole = [4 * parameter.numel() for parameter in model.parameters()]
    matrices = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    blocks = [*model.encoder.blocks, *model.unimodal.blocks, *model.multimodal.blocks]
    return ParameterBytes(
        weights=sum(whole),
        trained=sum(trained.values()),
        moments=moments,
        average=sum(trained.values()) if optim.ema_decay else 0,
        matrices=matrices,
        trained_by_part=by_part,
        largest_block=max(sum(4 * p.numel() for p in block.parameters()) for block in blocks),
    )


def memory(
    config: Config, shape: Shape, bf16: bool, world: int = 1, sharded: bool = False, device: str = "cuda"
) -> Memory:
    """The bytes that a step of `config` needs on one device of `world`.

    Args: bf16 is autocast; sharded cuts weights, gradients, optimizer and average up over ranks (FSDP2), else every
      device has a copy (DDP); device is "cuda" or "cpu", whose losses take chunks of different sizes.
    """
    counted = parameter_bytes(config)
    share = world if sharded else 1
    weights, gradients, moments, average = (
        -(-size // share) for size in (counted.weights, counted.trained, counted.moments, counted.average)
    )
    exchange = 0
    if sharded:  # two blocks gathered at a time in bf16 or fp32, one block's gradients in fp32, and what is in no block
        exchange = (2 * counted.largest_block // (2 if bf16 else 1)) + counted.largest_block
        exchange += (
            4 * config.model.text.vocab_size * config.model.text.width * (1 if config.model.text.tie_output else 2)
        )
    elif world > 1:
        exchange = counted.trained  # the flat buckets, all of which are under way at the end
    kept = activation_bytes(config, shape, bf16)
    if bf16 and not sharded:
        kept["encoder"] += counted.matrices // 2
    losses = _loss_bytes(config, shape, bf16, device)
    most = 0
    for reached in range(len(PARTS), -1, -1):  # the parts from `reached` on have been passed backwards
        held = sum(kept[part] for part in PARTS[:reached])
        done = sum(counted.trained_by_part[part] for part in PARTS[reached:]) // share
        working = _working_bytes(config, shape, bf16, PARTS[reached - 1]) if reached else 0
        if shape.accumulates:
            done = gradients
        most = max(most, held + done + (losses if reached == len(PARTS) else working))
    most = max(most, gradients + (exchange if not sharded else 0))
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=moments,
        average=average,
        activations=sum(kept.values()),
        losses=losses,
        exchange=exchange,
        peak=weights + moments + average + most + (exchange if sharded else 0),
    )


def activation_bytes(config: Config, shape: Shape, bf16: bool) -> dict[str, int]:
    """What the forward pass of a micro-batch keeps for the backward pass, by part; a frozen encoder keeps nothing."""
    model = config.model
    vision, text, pooler = model.vision, model.text, model.pooler
    a, casts = (2, 2) if bf16 else (4, 1)
    light = config.run.checkpoint_activations
    patches = vision.train_patches or vision.read_patches
    seen, words = patches + vision.class_token, shape.text_length
    queries = pooler.num_queries + (pooler.arrangement == "shared")
    decoded, read = (words - 1) * (1 - text.token_drop), pooler.train_queries or queries

    joined = a * text.width if config.data.text_buckets > 1 and not text.token_drop else 0

    def block(positions: float, width: int, mlp: int, heads: int, more: int = 0) -> float:
        if light:
            return positions * 4 * width
        per = 8 * width + a * width * casts + 4 * a * width + a * (width + 2 * mlp) + 4 * heads + more
        return positions * per

    def pooled(asked: int, context: float, context_width: int) -> float:
        read = context * (4 * context_width + casts * a * context_width / casts + 2 * a * text.width)
        return read + asked * (a * text.width + 8 * text.width + 4 * (pooler.num_heads or text.num_heads))

    encoder = patches * (a * 3 * vision.patch_size_px**2 + 4) + seen * 4 * vision.width * (1 + vision.norm_input)
    encoder += vision.depth * block(seen, vision.width, vision.mlp_width, vision.num_heads)
    poolers = pooled(queries, seen, vision.width)
    if pooler.arrangement == "cascade":
        poolers += pooled(1, queries, text.width)
    elif pooler.arrangement == "parallel":
        poolers += pooled(1, seen, vision.width)
    unimodal = (words + 1) * 4 * text.width
    unimodal += text.unimodal_depth * block(words + 1, text.width, text.mlp_width, text.num_heads, joined)
    layer = block(decoded, text.width, text.mlp_width, text.num_heads, joined)
    picture = read * 2 * a * text.width  # every layer's keys and values
    if bf16 or text.cross_attention == "after":
        picture += read * a * text.width  # and what they are projected from, where layers can't share it
    if not light:
        layer += decoded * (4 * text.width + 3 * a * text.width + 4 * text.num_heads + joined)
    if text.cross_attention == "after":
        layer += decoded * 4 * text.width
        if not light:
            layer += decoded * a * (text.width + 2 * text.mlp_width)
    multimodal = text.multimodal_depth * (layer + picture) + (words - 1) * 4 * text.width
    head = decoded * (4 + a) * text.width
    by_part = dict(zip(PARTS, (encoder, poolers, unimodal, multimodal, head), strict=True))
    if any(part == "encoder" for part in config.optim.frozen):
        by_part["encoder"] = 0
    return {part: math.ceil(shape.pairs * size) for part, size in by_part.items()}


def _loss_bytes(config: Config, shape: Shape, bf16: bool, device: str) -> int:
    """One chunk of logits with its gradient, the gradients by decoded and head; or one chunk of similarities."""
    text, loss = config.model.text, config.loss
    positions = math.ceil(shape.pairs * (shape.text_length - 1) * (1 - text.token_drop))
    budget = CHUNK_BYTES[device]
    rows = loss.caption_chunk or min(budget // (4 * text.vocab_size), rows_at_most(positions))
    rows = min(max(1, rows), positions)
    captioning = rows * text.vocab_size * (4 + (2 if bf16 else 0)) + positions * 4 * text.width
    captioning += 4 * text.vocab_size * text.width + (2 * text.vocab_size * text.width if bf16 else 0)
    rows = min(shape.pairs, loss.contrastive_chunk or max(1, budget // (4 * shape.global_pairs)))
    contrastive = 4 * shape.global_pairs * (rows + 6 * config.model.embed_dim)
    return max(captioning if loss.captioning_weight else 0, contrastive if loss.contrastive_weight else 0)


def _working_bytes(config: Config, shape: Shape, bf16: bool, part: str) -> int:
    """What one block of a part needs beside what is kept: its gradients, and its activations where they are computed
    again.
    """
    vision, text = config.model.vision, config.model.text
    a = 2 if bf16 else 4
    if part == "encoder":
        positions, width, mlp = vision.train_patches or vision.read_patches, vision.width, vision.mlp_width
    elif part in ("unimodal", "multimodal"):
        positions, width, mlp = shape.text_length, text.width, text.mlp_width
    else:
        return 0
    per = a * mlp + 8 * width
    if config.run.checkpoint_activations:
        per += 4 * width + a * (7 * width + 2 * mlp)
    return math.ceil(shape.pairs * positions * per)


def embedding_bytes(model: ModelConfig, global_pairs: int) -> int:
    """Both embeddings of the global batch in fp32, which every device gathers."""
    return 2 * 4 * global_pairs * model.embed_dim
