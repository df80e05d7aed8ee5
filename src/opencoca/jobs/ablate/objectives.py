"""The tasks of the ablations: one loss alone without the other's work, and other reductions of the captioning loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from opencoca.config import Config
from opencoca.errors import ConfigError
from opencoca.jobs.ablate.settings import Objective, Reduction
from opencoca.losses import linear_captioning_loss
from opencoca.model.coca import CoCa
from opencoca.train.task import Compared, Outcome, Pretraining, Task
from opencoca.train.tasks.recognition import Recognition
from opencoca.train.tasks.targets import Targets
from opencoca.types import Batch


def task_of(objective: Objective, reduction: Reduction, config: Config, targets: Targets | None = None) -> Task:
    """The task that a stage trains.

    Raises: ConfigError for a reduction of a loss that the objective doesn't have.
    """
    if reduction != "token" and objective != "joint":
        raise ConfigError(f"the reduction {reduction!r} is for the objective 'joint', not {objective!r}")
    if objective == "labels":
        assert targets is not None
        return Recognition(config.model.heads[0].name, targets)
    if objective == "contrastive":
        return ContrastiveOnly(config.model, config.loss)
    if objective == "captioning":
        return CaptioningOnly(config.model, config.loss)
    if reduction == "token":
        return Pretraining(config.model, config.loss)
    return PerCaption(reduction == "caption_mean", config)


class ContrastiveOnly(Pretraining):
    """The contrastive loss, without decoding."""

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        return Outcome({}, self.embed(model, batch))

    def embed(self, model: CoCa, batch: Batch) -> Compared:
        image_BE, text_BE = model.embed_pairs(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise)
        return self._compared(model, image_BE, text_BE, batch)


class CaptioningOnly(Pretraining):
    """The captioning loss, without [CLS] and the contrastive query. It compares no rows."""

    compare = Task.compare
    reads_buckets_apart = True

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        picture = model.generative_pooler(model.encoder(batch.pixels, batch.patch_noise))
        if model.contrastive_pooler is None:
            picture = picture[:, 1:]
        sums = []
        for first, last, length in batch.buckets or ((0, *batch.ids.shape),):
            ids_BT, predicts_BT = batch.ids[first:last, :length], batch.valid[first:last, 1:length]
            decoded_BTD = model.decode_ids(picture[first:last], ids_BT[:, :-1])
            decoded_XD, targets_X = decoded_BTD[predicts_BT], ids_BT[:, 1:][predicts_BT]
            chunk = self.config.caption_chunk
            sums.append(linear_captioning_loss(decoded_XD, model.head.weight, targets_X, 1, chunk))
        return Outcome({"captioning": sum(sums[1:], sums[0])})

    def embed(self, model: CoCa, batch: Batch) -> None:
        return None


class PerCaption(Pretraining):
    """Both losses, the captioning loss summed over each caption, or averaged over it, and averaged over captions.

    `nats_per_token` is logged beside it, for comparison.
    """

    def __init__(self, averages: bool, config: Config) -> None:
        super().__init__(config.model, config.loss)
        self.averages = averages
        self.weights = {**self.weights, "nats_per_token": 0.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"nats_per_token": int(batch.valid[:, 1:].sum())}

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        output = model(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise)
        nats_BT = token_nats(model, output.decoded, batch)
        of_captions_B = nats_BT.sum(dim=1)
        if self.averages:
            of_captions_B = of_captions_B / batch.valid[:, 1:].sum(dim=1)
        sums = {"captioning": of_captions_B.sum(), "nats_per_token": nats_BT.detach().sum()}
        return Outcome(sums, self._compared(model, output.image_embed, output.text_embed, batch))


def token_nats(model: CoCa, decoded_BTD: Tensor, batch: Batch) -> Tensor:
    """-log p [B,T-1] of each token behind the start; 0 at padding."""
    predicts_BT = batch.valid[:, 1:]
    logits_XV = model.caption_logits(decoded_BTD[predicts_BT])
    nats_X = F.cross_entropy(logits_XV.float(), batch.ids[:, 1:][predicts_BT], reduction="none")
    return nats_X.new_zeros(predicts_BT.shape).masked_scatter(predicts_BT, nats_X)
