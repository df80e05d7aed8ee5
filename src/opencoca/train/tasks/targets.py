"""Which labels are right for which sample, by its key: batches carry no labels of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from opencoca.losses import classification_loss


class Targets:
    """The share [L] that each label has in what is right for a sample; the shares of one sample sum to 1."""

    def __init__(self, shares: Mapping[str, Mapping[int, float]], labels: int) -> None:
        self._shares, self.labels = dict(shares), labels

    @classmethod
    def single(cls, labels: Mapping[str, int], count: int) -> Targets:
        """One right label each."""
        return cls({key: {label: 1.0} for key, label in labels.items()}, count)

    def rows(self, keys: Sequence[str], device: torch.device) -> Tensor:
        """Shares float32 [B,L] of some samples."""
        shares_BL = torch.zeros(len(keys), self.labels)
        for row, key in enumerate(keys):
            for label, share in self._shares[key].items():
                shares_BL[row, label] = share
        return shares_BL.to(device)


def judged(logits_BL: Tensor, shares_BL: Tensor, smoothing: float) -> dict[str, Tensor]:
    """Terms summed over rows: the cross-entropy to train on, and, for the log alone, how often the best label is right.

    A task gives "accuracy" the weight 0.
    """
    right_B = shares_BL.gather(1, logits_BL.argmax(dim=1, keepdim=True)) > 0
    loss = classification_loss(logits_BL, shares_BL, smoothing)
    return {"classification": loss * len(logits_BL), "accuracy": right_B.sum().to(loss.dtype)}
