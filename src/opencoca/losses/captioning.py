"""The captioning loss, of logits and without them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.losses.precision import add_product, at_least_fp32, product, product_dtype, without_autocast
from opencoca.losses.sweep import chunks, longest, not_compiled, swept


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


@not_compiled
def linear_captioning_loss(
    decoded: Tensor, weight: Tensor, targets: Tensor, token_count: Tensor | int | None = None, chunk: int = 0
) -> Tensor:
    """`captioning_loss(decoded @ weight.T, targets)` with its exact gradients, without ever holding many logits.

    Args:
        decoded: [X,D], the positions that predict a token.
        weight: [V,D], the head's matrix; it may be the embedding's too.
        targets: token ids [X].
        token_count: tokens of the global batch; X by default.
        chunk: logits exist for so many positions at a time; 0 for as many as is fast.

    Under autocast the matrix products run in its type, as the head's would. Differs from the logits of the head then:
    on a GPU these come out in fp32 and aren't rounded to bf16, which is nearer to the exact loss.

    Source: the gradient within the forward pass is that of Liger Kernel's fused linear cross-entropy (arXiv
    2410.10989). Differs: normalised in the backward pass, so that gradients of fp16 don't vanish; gradients of the
    weight add up in fp32.
    """
    dtype = product_dtype(decoded, weight)
    with without_autocast(decoded.device):
        nats = swept(partial(_sweep, targets=targets, dtype=dtype, chunk=chunk), decoded, weight)
    count = len(targets) if token_count is None else token_count
    return nats / torch.as_tensor(count, device=decoded.device).clamp(min=1)


def _sweep(
    wanted: Sequence[bool], decoded_XD: Tensor, weight_VD: Tensor, targets: Tensor, dtype: torch.dtype, chunk: int
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of the tokens' nats, and its gradients by `decoded` and `weight`."""
    decoded_XD, weight_VD = decoded_XD.to(dtype), weight_VD.to(dtype)
    positions, vocabulary = len(decoded_XD), len(weight_VD)
    nats_X = torch.empty(positions, dtype=at_least_fp32(decoded_XD).dtype, device=decoded_XD.device)
    by_decoded_XD = nats_X.new_empty(decoded_XD.shape) if wanted[0] else None
    by_weight_VD = nats_X.new_empty(weight_VD.shape) if wanted[1] else None
    if by_weight_VD is not None and not positions:
        by_weight_VD.zero_()
    runs = chunks(positions, vocabulary, nats_X, chunk, rows_at_most(positions))
    logits_XV = nats_X.new_empty(longest(runs), vocabulary)
    for first, last in runs:
        decoded_CD, targets_C = decoded_XD[first:last], targets[first:last]
        logits_CV = product(decoded_CD, weight_VD.T, logits_XV[: last - first])
        if not any(wanted):
            nats_X[first:last] = _nats(logits_CV, targets_C)
            continue
        nats_X[first:last] = _nats_and_gradient(logits_CV, targets_C)
        by_logits_CV = logits_CV.to(dtype)
        if by_decoded_XD is not None:
            product(by_logits_CV, weight_VD, by_decoded_XD[first:last])
        if by_weight_VD is not None:
            add_product(by_logits_CV.T, decoded_CD, by_weight_VD, first=first == 0)
    return nats_X.sum(), [by_decoded_XD, by_weight_VD]


def rows_at_most(positions: int) -> int:
    """Rows of logits that exist at a time: a fifth, but 128 at least (fewer are slow), and all of up to 255."""
    return positions if positions < 256 else max(128, positions // 5)


def _nats(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """-log p of the targets; the logits become log-probabilities."""
    log_p_CV = torch.log_softmax(logits_CV, dim=1, out=logits_CV)
    return -log_p_CV.gather(1, targets_C[:, None])[:, 0]


def _nats_and_gradient(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """-log p of the targets; the logits become their gradient.

    On a CPU, where a second exponential of each logit would take a tenth of the loss's time, the sum of exponentials
    is read off the largest logit and its p.
    """
    rows_C = torch.arange(len(targets_C), device=targets_C.device)
    if logits_CV.device.type == "cpu":
        own_C, most_C = logits_CV[rows_C, targets_C], logits_CV.amax(dim=1)
        p_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)
        nats_C = most_C - own_C - p_CV.amax(dim=1).log()
    else:
        nats_C = _nats(logits_CV, targets_C)
        p_CV = logits_CV.exp_()
    p_CV[rows_C, targets_C] -= 1
    return nats_C
