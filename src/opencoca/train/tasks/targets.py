"""Which labels are right for which sample, by its key: batches carry no labels of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from opencoca.losses import classification_loss


class Targets:
    """The share [L] that each label has in what is right for a sample; the shares of one sample sum to 1.

    A sample of which nothing is known has no part in a classifier's loss.
    """

    def __init__(self, shares: Mapping[str, Mapping[int, float]], labels: int) -> None:
        self._shares, self.labels = dict(shares), labels

    @classmethod
    def single(cls, labels: Mapping[str, int], count: int) -> Targets:
        """One right label each."""
        return cls({key: {label: 1.0} for key, label in labels.items()}, count)

    def known(self, keys: Sequence[str]) -> int:
        """How many of these samples have a right label."""
        return sum(key in self._shares for key in keys)

    def rows(self, keys: Sequence[str], device: torch.device) -> Tensor:
        """Shares float32 [B,L] of some samples."""
        shares_BL = torch.zeros(len(keys), self.labels)
        for row, key in enumerate(keys):
            for label, share in self._shares.get(key, {}).items():
                shares_BL[row, label] = share
        return shares_BL.to(device)


def judged(logits_BL: Tensor, shares_BL: Tensor, smoothing: float) -> dict[str, Tensor]:
    """Terms summed over the rows that have a right label: the cross-entropy, and how often the best label is right.

    The latter is for the log alone: a task gives "accuracy" the weight 0.
    """
    known_B = shares_BL.sum(dim=1) > 0
    logits_BL, shares_BL = logits_BL[known_B], shares_BL[known_B]
    right_B = shares_BL.gather(1, logits_BL.argmax(dim=1, keepdim=True)) > 0
    loss = classification_loss(logits_BL, shares_BL, smoothing) if len(logits_BL) else logits_BL.float().sum()
    return {"classification": loss * len(logits_BL), "accuracy": right_B.sum().to(loss.dtype)}


def counted(targets: Targets, keys: Sequence[str]) -> dict[str, int]:
    """What the terms of `judged` are means over."""
    return dict.fromkeys(("classification", "accuracy"), targets.known(keys))
