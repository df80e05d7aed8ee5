"""The contrastive loss: the similarity matrix exists for a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from opencoca.losses.groups import Groups, Positives
from opencoca.losses.precision import at_least_fp32, without_autocast
from opencoca.losses.sweep import chunks, longest, not_compiled, swept


@not_compiled
def contrastive_loss(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    scale: Tensor,
    first: int = 0,
    group_ids: Tensor | None = None,
    multi_positive: bool = False,
    chunk: int = 0,
    true_texts: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of this rank's pairs against the global batch, in nats per pair.

    Args:
        image: this rank's image embeddings [B,E], unit-norm.
        text: this rank's text embeddings [B,E], unit-norm.
        all_images: the global batch's image embeddings [G,E].
        all_texts: the global batch's text embeddings [G,E].
        scale: 1 / temperature, [1].
        first: index in G of this rank's first pair.
        group_ids: [G]; pairs with equal ids are not each other's negatives.
        multi_positive: members of a group are each other's positives: each one's target is spread evenly over it.
        chunk: similarities exist for so many rows at a time; 0 for as many as is fast.
        true_texts: [G,K], ids of texts that are true of each picture, its own first; a picture and each of its texts in
            the batch belong together as members of a group do.

    Where `all_images` and `all_texts` are the very tensors `image` and `text`, both directions read one matrix.

    Source: CoCa Eq. 2 (the two directions are summed, not averaged); with multi_positive, the sum over positives stands
    outside the logarithm as in SupCon Eq. 2 (arXiv 2004.11362) and UniCL Eq. 3 (arXiv 2204.03610), so the least value
    is the logarithm of the group's size. The column sums that are put together from chunks are those of online softmax
    (arXiv 1805.02867).
    Differs: never gathers; the caller passes G (see train/step.py).
    """
    alone = image is all_images and text is all_texts
    image, text, scale = at_least_fp32(image), at_least_fp32(text), at_least_fp32(scale)
    groups = Groups(group_ids, multi_positive, image, true_texts)
    with without_autocast(image.device):
        if alone:
            total = swept(partial(_both_directions, groups=groups, chunk=chunk), image, text, scale)
        else:
            one_direction = partial(_one_direction, first=first, chunk=chunk)
            total = swept(partial(one_direction, groups=groups), image, at_least_fp32(all_texts), scale)
            total = total + swept(
                partial(one_direction, groups=groups.turned()), text, at_least_fp32(all_images), scale
            )
    return total / len(image)


def _one_direction(
    wanted: Sequence[bool], queries_BE: Tensor, keys_GE: Tensor, scale: Tensor, first: int, groups: Groups, chunk: int
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum over queries of -log p(their own key), and its gradients by queries, keys and scale."""
    nats_B, by_scale_B = (queries_BE.new_zeros(len(queries_BE)) for _ in range(2))
    by_queries_BE, by_keys_GE = torch.empty_like(queries_BE), torch.zeros_like(keys_GE)
    runs = chunks(len(queries_BE), len(keys_GE), keys_GE, chunk)
    room_XG = keys_GE.new_empty(longest(runs), len(keys_GE))
    for start, end in runs:
        queries_CE = queries_BE[start:end]
        scaled_CE = queries_CE * scale
        logits_CG = torch.mm(scaled_CE, keys_GE.T, out=room_XG[: end - start])
        positives = groups.positives(first + start, first + end)
        positives.hide_others(logits_CG)
        log_p_CG = torch.log_softmax(logits_CG, dim=1, out=logits_CG)
        nats_B[start:end] = -positives.row_means(log_p_CG)
        if any(wanted):
            by_logits_CG = log_p_CG.exp_()
            positives.subtract(by_logits_CG)
            by_scaled_CE = torch.mm(by_logits_CG, keys_GE, out=by_queries_BE[start:end])
            by_scale_B[start:end] = (by_scaled_CE * queries_CE).sum(dim=1)
            by_keys_GE.addmm_(by_logits_CG.T, scaled_CE)
    return nats_B.sum(), [by_queries_BE.mul_(scale), by_keys_GE, by_scale_B.sum().reshape(scale.shape)]


def _both_directions(
    wanted: Sequence[bool], image_GE: Tensor, text_GE: Tensor, scale: Tensor, groups: Groups, chunk: int
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum over all pairs of both directions' -log p, and its gradients by image, text and scale.

    A column's sum of exponentials is known once all rows were seen, so each similarity is computed twice: one matrix
    product more than with the whole matrix at hand, two fewer than with a matrix for each direction.
    """
    pairs = len(image_GE)
    nats_G, column_means_G, by_scale_G = (image_GE.new_zeros(pairs) for _ in range(3))
    column_sums_G = image_GE.new_full((pairs,), float("-inf"))  # logarithms of sums of exponentials
    runs = chunks(pairs, 2 * pairs, text_GE, chunk)  # two rooms
    room_XG, second_XG = (text_GE.new_empty(longest(runs), pairs) for _ in range(2))

    def logits(scaled_CE: Tensor, positives: Positives) -> Tensor:
        logits_CG = torch.mm(scaled_CE, text_GE.T, out=room_XG[: len(scaled_CE)])
        positives.hide_others(logits_CG)
        return logits_CG

    for start, end in runs:
        positives = groups.positives(start, end)
        logits_CG, other_CG = logits(image_GE[start:end] * scale, positives), second_XG[: end - start]
        nats_G[start:end] = -positives.row_means(torch.log_softmax(logits_CG, dim=1, out=other_CG))
        positives.add_to_column_means(logits_CG, column_means_G)
        most_G = logits_CG.amax(dim=0).clamp(min=torch.finfo(logits_CG.dtype).min)  # -inf less -inf would be NaN
        sums_G = torch.sub(logits_CG, most_G, out=other_CG).exp_().sum(dim=0).log_().add_(most_G)
        column_sums_G = torch.logaddexp(column_sums_G, sums_G)
    total = (nats_G + column_sums_G - column_means_G).sum()
    if not any(wanted):
        return total, [None, None, None]
    by_image_GE, by_text_GE = torch.empty_like(image_GE), torch.zeros_like(text_GE)
    for start, end in reversed(runs):
        image_CE, positives = image_GE[start:end], groups.positives(start, end)
        scaled_CE = image_CE * scale
        logits_CG = room_XG[: end - start] if (start, end) == runs[-1] else logits(scaled_CE, positives)
        by_logits_CG = torch.softmax(logits_CG, dim=1, out=second_XG[: end - start])
        by_logits_CG += logits_CG.sub_(column_sums_G).exp_()
        positives.subtract(by_logits_CG, both=True)
        by_scaled_CE = torch.mm(by_logits_CG, text_GE, out=by_image_GE[start:end])
        by_scale_G[start:end] = (by_scaled_CE * image_CE).sum(dim=1)
        by_text_GE.addmm_(by_logits_CG.T, scaled_CE)
    return total, [by_image_GE.mul_(scale), by_text_GE, by_scale_G.sum().reshape(scale.shape)]
