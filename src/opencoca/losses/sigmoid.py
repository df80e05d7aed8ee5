"""The sigmoid loss: every picture and text is a yes-or-no question of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from opencoca.losses.groups import Groups
from opencoca.losses.precision import at_least_fp32, without_autocast
from opencoca.losses.sweep import chunks, longest, not_compiled, swept


@not_compiled
def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int = 0,
    group_ids: Tensor | None = None,
    chunk: int = 0,
    multi_positive: bool = False,
    true_texts: Tensor | None = None,
) -> Tensor:
    """-log sigmoid(z (scale * similarity + bias)) of this rank's images and all texts, in nats per pair of this rank.

    z is 1 for an image and its own text and -1 for any other. Arguments are those of `contrastive_loss`; members of one
    group answer no question about each other, or are positives with `multi_positive`. `bias` is [1]. The mean over
    ranks asks about each image and text once, so `text` and `all_images` are not read.

    Source: SigLIP (arXiv 2303.15343), Eq. 1 and algorithm 1, which starts with scale 10 and bias -10.
    """
    image, all_texts, scale, bias = (at_least_fp32(x) for x in (image, all_texts, scale, bias))
    sweep = partial(_sweep, first=first, groups=Groups(group_ids, multi_positive, image, true_texts), chunk=chunk)
    with without_autocast(image.device):
        return swept(sweep, image, all_texts, scale, bias) / len(image)


def _sweep(
    wanted: Sequence[bool],
    image_BE: Tensor,
    text_GE: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int,
    groups: Groups,
    chunk: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum over all questions, and its gradients by image, text, scale and bias."""
    nats_B, by_scale_B, by_bias_B = (image_BE.new_zeros(len(image_BE)) for _ in range(3))
    by_image_BE, by_text_GE = torch.empty_like(image_BE), torch.zeros_like(text_GE)
    nothing = image_BE.new_zeros(())
    runs = chunks(len(image_BE), 2 * len(text_GE), text_GE, chunk)  # two rooms
    room_XG, second_XG = (text_GE.new_empty(longest(runs), len(text_GE)) for _ in range(2))
    for start, end in runs:
        image_CE = image_BE[start:end]
        scaled_CE = image_CE * scale
        logits_CG = torch.mm(scaled_CE, text_GE.T, out=room_XG[: end - start]).add_(bias)
        positives = groups.positives(first + start, first + end)
        positives.hide_others(logits_CG)
        positives.negate(logits_CG)  # log(1 + e^x) is a negative's cost, log(1 + e^-x) a positive's
        nats_B[start:end] = torch.logaddexp(logits_CG, nothing, out=second_XG[: end - start]).sum(dim=1)
        if any(wanted):
            by_logits_CG = logits_CG.sigmoid_()
            positives.negate(by_logits_CG)
            by_bias_B[start:end] = by_logits_CG.sum(dim=1)
            by_scaled_CE = torch.mm(by_logits_CG, text_GE, out=by_image_BE[start:end])
            by_scale_B[start:end] = (by_scaled_CE * image_CE).sum(dim=1)
            by_text_GE.addmm_(by_logits_CG.T, scaled_CE)
    by_scale, by_bias = by_scale_B.sum().reshape(scale.shape), by_bias_B.sum().reshape(bias.shape)
    return nats_B.sum(), [by_image_BE.mul_(scale), by_text_GE, by_scale, by_bias]
