"""The losses of CoCa: pure functions that know no ranks; at least fp32 inside, float64 stays float64."""

from opencoca.losses.captioning import captioning_loss, linear_captioning_loss
from opencoca.losses.classification import classification_loss
from opencoca.losses.contrastive import contrastive_loss
from opencoca.losses.groups import group_ids
from opencoca.losses.precision import at_least_fp32
from opencoca.losses.sigmoid import sigmoid_loss

__all__ = [
    "at_least_fp32",
    "captioning_loss",
    "classification_loss",
    "contrastive_loss",
    "group_ids",
    "linear_captioning_loss",
    "sigmoid_loss",
]
