"""The configuration of training: losses, optimizer, data and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from opencoca.config_tree import require, require_positive


@dataclass(frozen=True)
class LossConfig:
    """Weights of the two losses (CoCa section 3.2: 1 and 2), and how they are computed.

    contrastive: "softmax" is CoCa's; "sigmoid" takes every pair for a yes-or-no question (SigLIP).
    multi_positive: pairs with one caption or one picture are each other's positives, not only no negatives.
    every_caption: all captions of a picture count, not only the one that was drawn: where another picture's text in the
        batch is one of them, it is no negative either, or a positive with `multi_positive`.
    caption_chunk: vocabulary logits exist for so many tokens at a time; 0 for as many as is fast.
    contrastive_chunk: the similarity matrix exists for so many rows at a time; 0 for as many as is fast.
    label_smoothing: the share of a classifier's targets that is spread over all of its labels.
    """

    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    multi_positive: bool = False
    every_caption: bool = False
    caption_chunk: int = 0
    contrastive_chunk: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.contrastive_weight >= 0 and self.captioning_weight >= 0,
            f"loss weights {self.contrastive_weight}, {self.captioning_weight} must not be negative",
        )
        require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} must be in [0, 1)")
        require(self.contrastive_weight + self.captioning_weight > 0, "both loss weights are 0: nothing to train")
        require(
            self.caption_chunk >= 0 and self.contrastive_chunk >= 0,
            f"caption_chunk {self.caption_chunk} and contrastive_chunk {self.contrastive_chunk} must not be negative",
        )


@dataclass(frozen=True)
class OptimConfig:
    """Warm-up, then linear or cosine decay to 0 at `steps`, for AdamW, Adafactor, or Muon with AdamW.

    optimizer: "muon" trains the hidden matrices with Muon at `muon_peak_lr` and the rest with AdamW at `peak_lr`;
        "adafactor" is the paper's, with first moments (beta1) and a fixed decay of the second (beta2).
    eps: AdamW's, beside the root of the second moment; Adafactor and Muon don't use it.
    ema_decay: the weights that are measured and shipped are a moving average with this decay; 0 turns it off.
    layer_decay: each layer's rate is this times the one of the layer above it; 1 turns it off.
    part_rates: parts that are trained at another rate, by their names, as "encoder=0.2" times the rate; the longest
        name that fits counts.
    frozen: parts whose weights stay as they are, by the beginnings of their names, such as "encoder" (LiT).
    lora_rank: above 0, only low-rank updates of the attention and MLP matrices are trained, `lora_alpha / lora_rank`
        times their product added to the matrix.
    """

    steps: int
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    peak_lr: float = 1e-3
    muon_peak_lr: float = 0.02
    muon_momentum: float = 0.95
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine"] = "linear"
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    layer_decay: float = 1.0
    part_rates: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps {self.steps} must be at least 1")
        require(
            0 <= self.warmup_steps < self.steps,
            f"warmup_steps {self.warmup_steps} must be below steps {self.steps} and not negative; set both",
        )
        require(self.peak_lr > 0, f"peak_lr {self.peak_lr} must be above 0")
        require(self.muon_peak_lr > 0, f"muon_peak_lr {self.muon_peak_lr} must be above 0")
        require(0 <= self.muon_momentum < 1, f"muon_momentum {self.muon_momentum} must be in [0, 1)")
        require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, f"beta1 {self.beta1} and beta2 {self.beta2} must be in [0, 1)"
        )
        require(self.eps >= 0, f"eps {self.eps} must not be negative")
        require(self.weight_decay >= 0, f"weight_decay {self.weight_decay} must not be negative")
        require(self.clip_norm > 0, f"clip_norm {self.clip_norm} must be above 0; inf turns clipping off")
        require(0 <= self.ema_decay < 1, f"ema_decay {self.ema_decay} must be in [0, 1); 0 turns it off")
        require(0 < self.layer_decay <= 1, f"layer_decay {self.layer_decay} must be in (0, 1]; 1 turns it off")
        rates_of_parts(self.part_rates)
        require(self.lora_rank >= 0, f"lora_rank {self.lora_rank} must not be negative; 0 trains whole matrices")
        require(self.lora_alpha > 0, f"lora_alpha {self.lora_alpha} must be above 0")


def rates_of_parts(part_rates: Sequence[str]) -> dict[str, float]:
    """The factor of each part in `OptimConfig.part_rates`.

    Raises: ConfigError for what isn't written PART=FACTOR with a factor above 0, and a part that is named twice.
    """
    rates: dict[str, float] = {}
    for text in part_rates:
        part, _, factor = text.partition("=")
        try:
            rate = float(factor)
        except ValueError:
            rate = 0.0
        fits = bool(part) and 0 < rate < float("inf")
        require(fits, f"part_rates has {text!r}; write PART=FACTOR, as in encoder=0.2 (optim.frozen keeps a part)")
        require(part not in rates, f"part_rates names {part!r} twice; give it one factor")
        rates[part] = rate
    return rates


@dataclass(frozen=True)
class DataConfig:
    """Which pairs, and how they are drawn.

    folder: pairs in any form that `coca data check` knows: prepared shards, tar files, a table, COCO's json, a folder.
    batch_size: pairs of the global batch, over all ranks and micro-batches.
    mixture: more than one source, as "PATH=WEIGHT"; `folder` is then the one that validation reads.
    captions: of a picture's several captions, a new one each epoch ("sample") or always the first ("first").
    first_caption: with "sample", so many of the draws take a picture's first caption for certain, the rest any of them.
    shuffle_window: shards are shuffled, and then samples within windows of so many shards, so that remote storage is
        read in order; 0 shuffles everything at once.
    max_shift_px: each picture is shifted by up to this many pixels both ways, white filled in; 0 turns it off.
    crop_scale: a random part of each picture is read, between these shares of its area; 1 1 turns it off.
    flip: half of the pictures are mirrored.
    randaugment: so many random operations of so much magnitude (0 to 30) per picture; 0 0 turns it off.
    text_buckets: a batch's captions are read in up to so many runs of like length, which changes no value and
        saves padding.
    bucket_gain: ids of padding that each further run has to save, since attention is called once more for it.
    clump_size: up to so many alike samples (one `concept`, or captions with one first word) stand side by side in the
        order, so that a batch holds hard negatives; 1 is a plain shuffle.
    tokenizer: a tokenizer.json, "openmoji" or "clip" for those that ship, or "train" for a new one from the captions.
    workers: processes that decode pictures; 0 does it in threads of the training process.
    max_skip_fraction: training stops once more of the pairs that were drawn than this couldn't be read.
    """

    folder: str
    batch_size: int
    train_split: str = "train"
    val_split: str = "val"
    mixture: tuple[str, ...] = ()
    captions: Literal["sample", "first"] = "sample"
    first_caption: float = 0.0
    shuffle_window: int = 0
    max_shift_px: int = 0
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    randaugment: tuple[int, int] = (0, 0)
    text_buckets: int = 4
    bucket_gain: int = 0
    clump_size: int = 1
    tokenizer: str = "train"
    workers: int = 0
    max_skip_fraction: float = 0.01

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "text_buckets", "clump_size")
        require(self.bucket_gain >= 0, f"bucket_gain {self.bucket_gain} must not be negative; 0 asks for nothing")
        require(self.max_shift_px >= 0, f"max_shift_px {self.max_shift_px} must not be negative; 0 turns it off")
        require(0 <= self.first_caption <= 1, f"first_caption {self.first_caption} must be a share from 0 to 1")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"crop_scale {low} {high} must be two rising shares above 0, at most 1")
        operations, magnitude = self.randaugment
        require(
            operations >= 0 and 0 <= magnitude <= 30,
            f"randaugment {operations} {magnitude} must be operations (0 or more) and a magnitude from 0 to 30",
        )
        require(self.workers >= 0, f"workers {self.workers} must not be negative; 0 decodes in the training process")
        require(self.shuffle_window >= 0, f"shuffle_window {self.shuffle_window} must not be negative")
        require(
            0 <= self.max_skip_fraction <= 1, f"max_skip_fraction {self.max_skip_fraction} must be a share from 0 to 1"
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything about a run that doesn't change what is learned, and the seed.

    precision: "fp32", "bf16" (autocast), or "auto": bf16 on a GPU that has it, else fp32.
    micro_batch: pairs that a rank reads at a time; the contrastive loss still sees the whole global batch. 0 for all.
    parallel: what several ranks share. "ddp" copies the model to each, "fsdp" cuts it up, "auto" is "ddp" where a copy
        with its optimizer fits into half of a device's memory.
    compile: torch.compile, block by block.
    checkpoint_activations: blocks are computed again in the backward pass instead of kept.
    max_loss_spike: a step whose loss is more than so many times the recent median is left out; 0 leaves none out.
    stall_timeout_s: without a step for so long, every rank says where it hangs and the run stops; 0 waits for ever.
    async_save: checkpoints are written while training goes on.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch: int = 0
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    checkpoint_activations: bool = False
    log_every_steps: int = 20
    eval_every_steps: int = 0
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    async_save: bool = False
    max_loss_spike: float = 0.0
    stall_timeout_s: float = 0.0
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "log_every_steps", "keep_checkpoints")
        require(self.micro_batch >= 0, f"micro_batch {self.micro_batch} must not be negative; 0 reads all at once")
        require(self.max_loss_spike == 0 or self.max_loss_spike > 1, f"max_loss_spike {self.max_loss_spike} is below 1")
        require(self.stall_timeout_s >= 0, f"stall_timeout_s {self.stall_timeout_s} must not be negative")
