"""The losses of CoCa: pure functions that know no ranks; at least fp32 inside, float64 stays float64."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    scale: Tensor,
    first: int = 0,
    group_ids: Tensor | None = None,
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

    Source: CoCa Eq. 2 (the two directions are summed, not averaged).
    Differs: never gathers; the caller passes G (see train/step.py).
    """
    image, text, all_images, all_texts = (at_least_fp32(x) for x in (image, text, all_images, all_texts))
    scale = at_least_fp32(scale)
    targets_B = torch.arange(first, first + image.shape[0], device=image.device)
    not_negative_BG = None
    if group_ids is not None:
        not_negative_BG = group_ids[targets_B, None] == group_ids[None, :]
        not_negative_BG[torch.arange(len(targets_B), device=image.device), targets_B] = False
    total = image.new_zeros(())
    for queries_BE, keys_GE in ((image, all_texts), (text, all_images)):
        with _without_autocast(image.device):
            logits_BG = scale * (queries_BE @ keys_GE.T)
        if not_negative_BG is not None:
            logits_BG = logits_BG.masked_fill(not_negative_BG, float("-inf"))
        total = total + F.cross_entropy(logits_BG, targets_B)
    return total


def captioning_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, token_count: Tensor | int | None = None
) -> Tensor:
    """Mean negative log-likelihood of the caption tokens, in nats per token; 0 where there is no token.

    Args:
        logits: [B,T,V]; position t predicts targets[:, t]. Or [X,V], any X positions picked out of a batch.
        targets: token ids [B,T] or [X].
        valid: bool, like targets, True where a target counts; all do by default.
        token_count: tokens of the global batch; this rank's own by default.

    Source: CoCa Eq. 3. The paper doesn't state how the sum over tokens is reduced; here every token weighs the
    same, in whichever caption and on whichever rank it stands.
    """
    nats = F.cross_entropy(at_least_fp32(logits).flatten(0, -2), targets.flatten(), reduction="none")
    if valid is not None:
        nats = nats * valid.flatten()
    if token_count is None:
        token_count = nats.numel() if valid is None else valid.sum()
    return nats.sum() / torch.as_tensor(token_count, device=logits.device).clamp(min=1)


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class logits [B,L] against labels [B], in nats per picture, with label smoothing.

    Source: CoCa Eq. 1, the single-encoder paradigm.
    """
    return F.cross_entropy(at_least_fp32(logits), labels, label_smoothing=smoothing)


def group_ids(labels: Tensor) -> Tensor:
    """Ids [G] of labels [G,K]: pairs that share a label in any column, directly or through other pairs, share an id."""
    ids_G = torch.arange(len(labels), device=labels.device)
    columns = [torch.unique(column, return_inverse=True)[1] for column in labels.unbind(1)]
    while True:
        before_G = ids_G
        for inverse_G in columns:
            least = torch.full_like(ids_G, len(labels)).scatter_reduce_(0, inverse_G, ids_G, "amin")
            ids_G = least[inverse_G]
        if torch.equal(before_G, ids_G):
            return ids_G


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast would run the similarities in bf16 again, whatever their inputs: 0.2 nats off at scale 100."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or unchanged where it is wider."""
    return x if x.dtype == torch.float64 else x.float()
