"""Tasks: what the one training loop trains. Pretraining is here; others implement the same protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from opencoca.config import LossConfig, ModelConfig
from opencoca.losses import captioning_loss, contrastive_loss, group_ids
from opencoca.model.coca import CoCa
from opencoca.model.flops import forward_flops
from opencoca.types import Batch


class TaskLoss(NamedTuple):
    """The scalar to minimise, and named scalars for the log (detached)."""

    total: Tensor
    parts: dict[str, Tensor]


class Task(Protocol):
    """One objective over one kind of batch."""

    def loss(self, model: CoCa, batch: Batch) -> TaskLoss:
        """One forward pass."""
        ...

    def forward_flops(self, batch: Batch) -> int:
        """Floating-point operations of that forward pass."""
        ...


class Pretraining:
    """Contrastive and captioning loss in one forward pass (CoCa Eq. 4)."""

    def __init__(self, model: ModelConfig, weights: LossConfig) -> None:
        self.model_config = model
        self.weights = weights

    def loss(self, model: CoCa, batch: Batch) -> TaskLoss:
        """The weighted sum of both losses, and each of them."""
        output = model(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise)
        contrastive = contrastive_loss(
            output.image_embed,
            output.text_embed,
            output.image_embed,
            output.text_embed,
            output.scale,
            group_ids=group_ids(batch.labels),
        )
        predicts = batch.valid[:, 1:]  # the head runs on these positions only
        captioning = captioning_loss(model.caption_logits(output.decoded[predicts]), batch.ids[:, 1:][predicts])
        total = self.weights.contrastive_weight * contrastive + self.weights.captioning_weight * captioning
        parts = {
            "contrastive": contrastive.detach(),
            "captioning": captioning.detach(),
            "scale": output.scale.detach()[0],
        }
        return TaskLoss(total, parts)

    def forward_flops(self, batch: Batch) -> int:
        """Matrix products that the batch's real tokens need; padding counts for nothing."""
        config, count, size_px = self.model_config, len(batch.ids), batch.pixels.shape[-1]
        read = config.vision.train_patches if batch.patch_noise is not None else 0
        pictures = forward_flops(config, count, batch.ids.shape[1], size_px, read)
        texts = [forward_flops(config, 1, length, size_px) for length in batch.valid.sum(dim=1).tolist()]
        of_pictures = pictures.encoder + pictures.generative_pooler + pictures.contrastive_pooler
        return of_pictures + sum(text.unimodal + text.multimodal + text.head for text in texts)
