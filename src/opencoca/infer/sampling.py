"""Random choice of tokens, drawn from (seed, picture, caption, position) and nothing else.

No generator holds a state, so a caption doesn't depend on what else is in the batch, on the device, or on which
captions have ended before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from opencoca.config import GenerationConfig

WORD = 0xFFFFFFFF
FIRST_TOP = 256  # where top_p decides, so many likeliest tokens are sorted first; seldom are more needed


def sample(logits_RV: Tensor, draws: Sequence[tuple[int, ...]], config: GenerationConfig) -> Tensor:
    """One token [R] per row, with the probabilities that temperature, top_k and top_p leave.

    Each row's chance is the function of its `draws` tuple alone. The token is the maximum of log-probability plus
    Gumbel noise, so rounding errors of the logits change it only where two tokens tie to their last bits.
    """
    logits_RX, ids_RX = _kept(logits_RV / config.temperature, config)
    words = torch.tensor([_words(draw) for draw in draws], device=logits_RV.device).view(-1, 2)
    hashed_RX = _mixed(_mixed(ids_RX ^ words[:, :1]) ^ words[:, 1:])
    uniform_RX = (hashed_RX.double() + 0.5) / (WORD + 1)
    noisy_RX = logits_RX.double() - (-uniform_RX.log()).log()
    return ids_RX.gather(1, noisy_RX.argmax(dim=-1, keepdim=True))[:, 0]


def _kept(logits_RV: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Logits and ids [R,X] of the tokens that may be drawn; -inf for those that may not."""
    vocab = logits_RV.shape[1]
    top_k = min(config.top_k or vocab, vocab)
    if config.top_p == 1 and top_k == vocab:
        return logits_RV, torch.arange(vocab, device=logits_RV.device).expand_as(logits_RV)
    if config.top_p == 1:
        best = logits_RV.topk(top_k, dim=-1)
        return best.values, best.indices
    size = top_k if config.top_k else min(FIRST_TOP, vocab)
    whole_R1 = None if config.top_k else logits_RV.double().logsumexp(dim=-1, keepdim=True)
    while True:
        best_RX, ids_RX = logits_RV.topk(size, dim=-1)
        normaliser_R1 = best_RX.double().logsumexp(dim=-1, keepdim=True) if whole_R1 is None else whole_R1
        probs_RX = (best_RX.double() - normaliser_R1).exp()
        mass_RX = probs_RX.cumsum(dim=-1)
        if size >= top_k or (mass_RX[:, -1] >= config.top_p).all():
            break
        size = min(8 * size, top_k)
    return best_RX.masked_fill(mass_RX - probs_RX >= config.top_p, -math.inf), ids_RX


def _words(draw: tuple[int, ...]) -> tuple[int, int]:
    digest = hashlib.blake2b(repr(draw).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mixed(words: Tensor) -> Tensor:
    """A hash of 32-bit words, held in int64: every bit of the result depends on every bit of the word."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = ((words ^ (words >> shift)) * factor) & WORD
    return words ^ (words >> 16)
