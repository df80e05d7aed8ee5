"""What `GenerationConfig` says about single logits: what may not be said next, and what is held against repetition."""

from __future__ import annotations

import math

from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds


def allowed(logits_RV: Tensor, said_RT: Tensor, special: SpecialIds, config: GenerationConfig) -> Tensor:
    """Logits [R,V] with -inf for what may not be said after `said` [R,T], the ids so far without start.

    Pad and start are no words. The end waits for `min_tokens`. No n-gram of `no_repeat_ngram` tokens comes twice; where
    that leaves nothing at all to be said, the end may be. Works in place.
    """
    ends_R = logits_RV[:, special.end].clone()
    logits_RV[:, [special.pad, special.start]] = -math.inf
    if said_RT.shape[1] < config.min_tokens:
        logits_RV[:, special.end] = -math.inf
    size = config.no_repeat_ngram
    if 0 < size <= said_RT.shape[1]:
        said_RT = said_RT.to(logits_RV.device)
        ngrams_RXN = said_RT.unfold(1, size, 1)
        last_R1N = said_RT[:, None, said_RT.shape[1] - size + 1 :]
        rows, places = (ngrams_RXN[..., :-1] == last_R1N).all(dim=-1).nonzero(as_tuple=True)
        logits_RV[rows, ngrams_RXN[rows, places, -1]] = -math.inf
        stuck_R = logits_RV.amax(dim=-1) == -math.inf
        logits_RV[stuck_R, special.end] = ends_R[stuck_R]
    return logits_RV


def penalised(logits_RV: Tensor, said_RT: Tensor, config: GenerationConfig) -> Tensor:
    """Logits [R,V] with `repetition_penalty` on every id in `said` [R,T]; the given ones stay as they are."""
    if config.repetition_penalty == 1 or said_RT.shape[1] == 0:
        return logits_RV
    said_RT = said_RT.to(logits_RV.device)
    old_RT, factor = logits_RV.gather(1, said_RT), config.repetition_penalty
    return logits_RV.scatter(1, said_RT, (old_RT * factor).where(old_RT < 0, old_RT / factor))
