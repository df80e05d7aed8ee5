"""Questions about pictures: answers by a classifier over the decoder's outputs, in the decoder's own words, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from opencoca.losses import linear_captioning_loss
from opencoca.model.coca import CoCa
from opencoca.train.task import Outcome, Task
from opencoca.train.tasks.targets import Targets, counted, judged
from opencoca.types import Batch

Words = Literal["none", "answer", "all"]


class QuestionAnswering(Task):
    """Each caption is a question with its answer; the picture goes to the encoder, the caption to the decoder.

    The decoder is causal, so that its outputs over the question know nothing of the answer behind it, and one pass
    serves both: a head pools the outputs from start to the last token of the question (CoCa section 3.3), and the
    captioning loss falls on the tokens of the "answer", on "all" or on "none". Statements about several pictures are
    read once with each picture.

    Args:
        prompts: the number of the question's tokens, by the sample's key.
        head, targets: the head and what is right; None without a classifier.
        words: the tokens that the captioning loss falls on; `words_weight` is its weight.
    """

    def __init__(
        self,
        prompts: Mapping[str, int],
        head: str | None = None,
        targets: Targets | None = None,
        words: Words = "none",
        words_weight: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        if (head is None) != (targets is None) or (head is None and words == "none"):
            raise ValueError("give a head with its targets, or words to train on, or both")
        self.prompts, self.head, self.targets = prompts, head, targets
        self.words, self.smoothing = words, smoothing
        self.weights = {"accuracy": 0.0, "words": words_weight}

    def counts(self, batch: Batch) -> dict[str, int]:
        counts = {} if self.targets is None else counted(self.targets, batch.keys)
        return counts if self.words == "none" else counts | {"words": int(self._predicting(batch).sum())}

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        pictures = batch.pixels.shape[1] // 3
        ids_XT = batch.ids[:, :-1].repeat_interleave(pictures, dim=0)
        decoded_XTD = model.decode_ids(picture_tokens(model, batch), ids_XT)
        sums: dict[str, Tensor] = {}
        if self.head is not None and self.targets is not None:
            asked_XT = self._asked(batch).repeat_interleave(pictures, dim=0)
            logits_BL = model.tasks[self.head](decoded_XTD, asked_XT)
            sums |= judged(logits_BL, self.targets.rows(batch.keys, logits_BL.device), self.smoothing)
        if self.words != "none":
            predicting_BT = self._predicting(batch)
            targets_X = batch.ids[:, 1:][predicting_BT]
            sums["words"] = linear_captioning_loss(decoded_XTD[predicting_BT], model.head.weight, targets_X, 1)
        return Outcome(sums)

    def _asked(self, batch: Batch) -> Tensor:
        """The positions [B,T-1] from start to the question's last token."""
        return _positions(batch) <= self._prompts(batch)

    def _predicting(self, batch: Batch) -> Tensor:
        """The positions [B,T-1] whose next token is trained on."""
        predicting_BT = batch.valid[:, 1:]
        return predicting_BT & (_positions(batch) >= self._prompts(batch)) if self.words == "answer" else predicting_BT

    def _prompts(self, batch: Batch) -> Tensor:
        return torch.tensor([[self.prompts[key]] for key in batch.keys], device=batch.ids.device)


def picture_tokens(model: CoCa, batch: Batch) -> Tensor:
    """The decoder's tokens [B*F,Q,D] of each sample's F pictures, which stand in consecutive rows.

    Pictures that several questions of the batch are about (`data.clump_size` brings these together) are encoded once.
    """
    pixels_BCHW, group_B = batch.pixels, torch.arange(len(batch.pixels), device=batch.pixels.device)
    if batch.patch_noise is None:  # which is each sample's own
        first_Y, same_B = _first_copies(batch.labels[:, 1])
        if len(first_Y) < len(pixels_BCHW) and torch.equal(pixels_BCHW[first_Y][same_B], pixels_BCHW):
            pixels_BCHW, group_B = pixels_BCHW[first_Y], same_B
    pictures = pixels_BCHW.shape[1] // 3
    tokens_XQD = model.encode_image(pixels_BCHW.unflatten(1, (pictures, 3)).flatten(0, 1), batch.patch_noise).tokens
    return tokens_XQD.unflatten(0, (-1, pictures))[group_B].flatten(0, 1)


def _first_copies(labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first row [Y] of each different label, ascending, and for each row [B] which of these it belongs to.

    Labels are digests of pictures' paths: in their own order the same data would be added up otherwise elsewhere.
    """
    different, group_B = torch.unique(labels_B, return_inverse=True)
    rows_B = torch.arange(len(labels_B), device=labels_B.device)
    first_Y = torch.full((len(different),), len(labels_B), device=labels_B.device)
    first_Y, order_Y = first_Y.scatter_reduce_(0, group_B, rows_B, "amin").sort()
    return first_Y, order_Y.argsort()[group_B]


def _positions(batch: Batch) -> Tensor:
    return torch.arange(batch.ids.shape[1] - 1, device=batch.ids.device)
