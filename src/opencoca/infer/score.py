"""Exact log-likelihoods of captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opencoca.data.tokenizer import SpecialIds
from opencoca.errors import DataError
from opencoca.model.coca import CoCa

LOGIT_ROWS = 64  # positions whose logits are held at once: 13 MB at a vocabulary of 49,408


@torch.inference_mode()
def score(model: CoCa, image_tokens: Tensor, ids: Sequence[Sequence[int]], special: SpecialIds) -> list[float]:
    """log p(text | image) in nats of one text per picture of image tokens [B,Q,D], or of equally many each.

    Several texts of one picture stand side by side and share its keys and values. A text is ids from start to end.
    Every id behind start counts, the end included, with its probability among the whole vocabulary. Texts may differ in
    length; one without end is the beginning of a text, and its likelihood is that of all texts which begin so.

    Raises: DataError where the texts can't be shared out among the pictures, or a text doesn't begin with start, holds
      an id that isn't in the vocabulary, or doesn't fit the context.
    """
    text, pictures = model.config.text, len(image_tokens)
    if (len(ids) % pictures if pictures else len(ids)) or len(ids) < pictures:
        raise DataError(f"{len(ids)} texts can't be shared out among {pictures} pictures; give equally many for each")
    for row, one in enumerate(ids):
        if len(one) == 0 or one[0] != special.start:
            raise DataError(f"text {row} doesn't begin with start, id {special.start}; put it in front")
        if len(one) > text.context_length:
            raise DataError(f"text {row} has {len(one)} ids, context_length is {text.context_length}; cut it to that")
        if not all(0 <= token < text.vocab_size for token in one):
            raise DataError(f"text {row} holds ids outside of 0 to {text.vocab_size - 1}; take this model's tokenizer")
    longest = max(map(len, ids), default=1)
    if longest == 1:  # nothing behind start, or no texts
        return [0.0] * len(ids)
    device = image_tokens.device
    padded_BT = torch.tensor([[*one, *[special.end] * (longest - len(one))] for one in ids], device=device)
    lengths_B = torch.tensor([len(one) for one in ids], device=device)
    decoded_BTD = model.decode_ids(image_tokens, padded_BT[:, :-1])
    log_p_BT = log_probs(model, decoded_BTD, padded_BT[:, 1:])
    real_BT = torch.arange(1, longest, device=device) < lengths_B[:, None]
    return torch.where(real_BT, log_p_BT, 0.0).sum(dim=1).tolist()


def log_probs(model: CoCa, decoded_BTD: Tensor, next_ids_BT: Tensor) -> Tensor:
    """Log-probability [B,T], float64, of each next id after the multimodal output [B,T,D] that stands before it."""
    flat_XD, flat_X = decoded_BTD.flatten(0, 1), next_ids_BT.flatten()
    parts = [
        picked(logits_XV, normaliser(logits_XV), ids_X[:, None])[:, 0]
        for rows_XD, ids_X in zip(flat_XD.split(LOGIT_ROWS), flat_X.split(LOGIT_ROWS), strict=True)
        for logits_XV in [model.caption_logits(rows_XD)]
    ]
    return torch.cat(parts).view(next_ids_BT.shape)


def normaliser(logits_RV: Tensor) -> Tensor:
    """What to subtract from logits for log-probabilities, [R]: summed in fp32 at least, then float64."""
    logits_RV = logits_RV.float() if logits_RV.dtype.itemsize < 4 else logits_RV
    return logits_RV.logsumexp(dim=-1).double()


def picked(logits_RV: Tensor, normaliser_R: Tensor, ids_RX: Tensor) -> Tensor:
    """Log-probabilities [R,X], float64, of the ids [R,X] of each row."""
    return logits_RV.gather(1, ids_RX).double() - normaliser_R[:, None]
