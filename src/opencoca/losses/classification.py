"""The loss of a classifier over an encoder."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from opencoca.losses.precision import at_least_fp32


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class logits [B,L] against labels [B], in nats per picture, with label smoothing.

    Source: CoCa Eq. 1, the single-encoder paradigm.
    """
    return F.cross_entropy(at_least_fp32(logits), labels, label_smoothing=smoothing)
