"""Tasks: what the one training loop trains. Pretraining is here; others are as short as `Task` lets them be.

A task looks at some rows of the global batch at a time and never asks which or on how many ranks. It gives sums over
these rows, for the step to divide by counts of the global batch; and, where rows are compared with each other, what
the comparison needs of each row, for the step to gather.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from opencoca.config import LossConfig, ModelConfig
from opencoca.losses import contrastive_loss, group_ids, linear_captioning_loss, sigmoid_loss
from opencoca.model.coca import CoCa
from opencoca.model.draws import kept
from opencoca.model.flops import forward_flops
from opencoca.types import Batch

Tensors = Mapping[str, Tensor]


class Compared(NamedTuple):
    """What rows are compared by: tensors [B,...] of each row, and what belongs to none, such as the temperature [1]."""

    rows: dict[str, Tensor]
    common: dict[str, Tensor]


class Outcome(NamedTuple):
    """What a task makes of some rows: its terms, each summed over them, and what they are compared by, if anything."""

    sums: dict[str, Tensor]
    compared: Compared | None = None


class TaskLoss(NamedTuple):
    """The scalar to minimise, and named scalars for the log (detached)."""

    total: Tensor
    parts: dict[str, Tensor]


class Task:
    """One objective over one kind of batch.

    The loss is the sum of all terms, each times its weight: those of `forward` as means over the global batch, those of
    `compare` as means over its rows. A classifier is

        class Classification(Task):
            def forward(self, model, batch):
                logits_BL = self.classifier(model.encode_image(batch.pixels).embed)
                return Outcome({"cross_entropy": F.cross_entropy(logits_BL, batch.labels[:, 0], reduction="sum")})
    """

    weights: Mapping[str, float] = MappingProxyType({})  # terms that aren't named weigh 1
    reads_buckets_apart = False  # True where `forward` calls the model for each of `batch.buckets`

    def counts(self, batch: Batch) -> dict[str, int]:
        """What the sums over these rows are means over; a term that isn't named is a mean over rows."""
        return {}

    def forward(self, model: Any, batch: Batch) -> Outcome:
        """One forward pass."""
        raise NotImplementedError

    def embed(self, model: Any, batch: Batch) -> Compared | None:
        """What these rows are compared by, as in `forward`; the same values, perhaps for less work."""
        return self.forward(model, batch).compared

    def compare(self, own: Tensors, everyone: Tensors, common: Tensors, first: int) -> dict[str, Tensor]:
        """Terms of these rows among all of the global batch, from its row `first` on; each a mean over these rows."""
        return {}

    def forward_flops(self, batch: Batch) -> int:
        """Floating-point operations of one forward pass, for the log; 0 where nobody counted."""
        return 0

    def loss(self, model: Any, batch: Batch) -> TaskLoss:
        """The loss where this batch is all there is."""
        sums, compared = self.forward(model, batch)
        terms = self.means(sums, self.counts(batch), len(batch.keys))
        if compared is not None:
            terms = self.compare(compared.rows, compared.rows, compared.common, 0) | terms
        return TaskLoss(self.total(terms), {name: value.detach() for name, value in (terms | _log(compared)).items()})

    def means(self, sums: Tensors, counts: Mapping[str, float], rows: float) -> dict[str, Tensor]:
        """Sums over counts of the global batch; 0 where there is nothing to count."""
        return {name: x / max(1, counts.get(name, rows)) for name, x in sums.items()}

    def total(self, terms: Tensors) -> Tensor:
        """The terms, weighed and added up."""
        return functools.reduce(operator.add, (self.weights.get(name, 1.0) * x for name, x in terms.items()))


def _log(compared: Compared | None) -> dict[str, Tensor]:
    return {} if compared is None else {name: value.reshape(-1)[0] for name, value in compared.common.items()}


class Pretraining(Task):
    """Contrastive and captioning loss in one forward pass (CoCa Eq. 4)."""

    def __init__(self, model: ModelConfig, config: LossConfig) -> None:
        self.model_config, self.config = model, config
        self.weights = {"contrastive": config.contrastive_weight, "captioning": config.captioning_weight}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"captioning": int(self._predicts(batch).sum())}

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        output = model(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise, batch.decoder_draws)
        predicts = self._predicts(batch)  # the head runs on these positions only
        decoded_XD, targets_X = output.decoded[predicts], batch.ids[:, 1:][predicts]
        nats = linear_captioning_loss(decoded_XD, model.head.weight, targets_X, 1, self.config.caption_chunk)
        return Outcome({"captioning": nats}, self._compared(model, output.image_embed, output.text_embed, batch))

    def _predicts(self, batch: Batch) -> Tensor:
        """The positions [B,T-1] whose next token is trained on."""
        predicts_BT = batch.valid[:, 1:]
        if batch.word_noise is None:
            return predicts_BT
        return predicts_BT & kept(self.model_config.text, batch.valid, batch.word_noise)

    def embed(self, model: CoCa, batch: Batch) -> Compared:
        image_BE, text_BE = model.embed_pairs(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise)
        return self._compared(model, image_BE, text_BE, batch)

    def _compared(self, model: CoCa, image_BE: Tensor, text_BE: Tensor, batch: Batch) -> Compared:
        common = {"scale": model.log_scale.exp()}
        if self.config.contrastive == "sigmoid":
            assert model.pair_bias is not None
            common["bias"] = model.pair_bias.clone()  # the parameter itself is cut up again behind the forward pass
        rows = {"image": image_BE, "text": text_BE, "labels": batch.labels}
        return Compared(rows if batch.texts is None else rows | {"texts": batch.texts}, common)

    def compare(self, own: Tensors, everyone: Tensors, common: Tensors, first: int) -> dict[str, Tensor]:
        pairs = own["image"], own["text"], everyone["image"], everyone["text"]
        settings = {
            "first": first,
            "group_ids": group_ids(everyone["labels"]),
            "multi_positive": self.config.multi_positive,
            "chunk": self.config.contrastive_chunk,
            "true_texts": everyone.get("texts"),
        }
        if self.config.contrastive == "sigmoid":
            return {"contrastive": sigmoid_loss(*pairs, common["scale"], common["bias"], **settings)}
        return {"contrastive": contrastive_loss(*pairs, common["scale"], **settings)}

    def forward_flops(self, batch: Batch) -> int:
        """Matrix products that the batch's real tokens need; padding counts for nothing."""
        config, count, size_px = self.model_config, len(batch.ids), batch.pixels.shape[-1]
        read = config.vision.train_patches if batch.patch_noise is not None else 0
        drop = config.text.token_drop if batch.word_noise is not None else 0.0
        queries = config.pooler.train_queries if batch.query_noise is not None else 0
        pictures = forward_flops(config, count, batch.ids.shape[1], size_px, read)
        lengths = batch.valid.sum(dim=1).tolist()
        texts = [forward_flops(config, 1, length, size_px, 0, drop, queries) for length in lengths]
        of_pictures = pictures.encoder + pictures.generative_pooler + pictures.contrastive_pooler
        return of_pictures + sum(text.unimodal + text.multimodal + text.head for text in texts)
