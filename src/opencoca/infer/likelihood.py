"""Exact likelihoods of texts, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.infer.score import score

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor


def encode_whole(predictor: Predictor, text: str) -> list[int]:
    """The ids of a text with start and end, none cut off.

    Raises: DataError where the context has no room for all of them.
    """
    special, context = predictor.tokenizer.special, predictor.model.config.text.context_length
    ids = predictor.tokenizer.encode(text)
    if len(ids) > context - 2:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise DataError(f"text {shown!r} has {len(ids)} tokens and the context has room for {context - 2}; shorten it")
    return [special.start, *ids, special.end]


def likelihoods(predictor: Predictor, tokens: Tensor, ids: Sequence[list[int]]) -> list[float]:
    """log p of one text for each picture of tokens [B,Q,D], or of equally many each, side by side."""
    return score(predictor.model, tokens, ids, predictor.tokenizer.special)


def likelihood_matrix(predictor: Predictor, tokens: Tensor, texts: Sequence[str]) -> Tensor:
    """log p [B,U], float64, of every text for each picture of tokens [B,Q,D]; texts of like length go together."""
    ids = [encode_whole(predictor, text) for text in texts]
    order = sorted(range(len(ids)), key=lambda column: len(ids[column]))
    scores = torch.empty(len(tokens), len(ids), dtype=torch.float64)
    for first in range(0, len(order), predictor.batch_size):
        columns = order[first : first + predictor.batch_size]
        together = max(1, predictor.batch_size // len(columns))
        for row in range(0, len(tokens), together):
            some = tokens[row : row + together]
            found = likelihoods(predictor, some, [ids[column] for _ in range(len(some)) for column in columns])
            scores[row : row + together, columns] = torch.tensor(found, dtype=torch.float64).view(len(some), -1)
    return scores
