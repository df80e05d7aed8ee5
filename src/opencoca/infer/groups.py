"""Questions about several pictures each, such as statements about pairs: their pictures, encoded together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.infer.stream import Picture, Pictures, is_one

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor

Groups = Iterable[Sequence[Picture]]  # the pictures of each question


class Given(NamedTuple):
    """The pictures of questions.

    pictures: so many for each, in a tuple or list where `grouped`; None where there are none.
    """

    images: Any
    pictures: int | None
    grouped: bool = False


def counted(images: Pictures | Groups) -> Given:
    """How many pictures each question has, by the first of them; an iterator isn't used up by looking."""
    if is_one(images) or isinstance(images, np.ndarray | Tensor) or not isinstance(images, Iterable):
        return Given(images, 1)
    ahead: Iterator[Any] = iter(images)
    first = next(ahead, None)
    whole = itertools.chain(() if first is None else (first,), ahead) if ahead is images else images
    if isinstance(first, tuple | list):
        return Given(whole, len(first), True)
    return Given(whole, None if first is None else 1)


def encoded(predictor: Predictor, given: Given) -> Iterator[tuple[range, Tensor]]:
    """The places of questions, and the decoder tokens [B*F,Q,D] of their F pictures each, batch by batch.

    Raises: DataError for a question with another number of pictures than the first one.
    """
    each, first = given.pictures or 1, 0
    waiting: list[Tensor] = []  # a question's pictures may lie in two batches
    for batch in predictor.squares(_flat(given) if given.grouped else given.images):
        waiting.append(predictor.encode_squares(batch.squares).tokens)
        count = sum(map(len, waiting)) // each
        if count:
            tokens = torch.cat(waiting)
            yield range(first, first + count), tokens[: count * each]
            first, waiting = first + count, [tokens[count * each :]]


def _flat(given: Given) -> Iterator[Picture]:
    for place, group in enumerate(given.images):
        pictures = len(group) if isinstance(group, tuple | list) else 1
        if pictures != given.pictures or not isinstance(group, tuple | list):
            what = "one picture" if pictures == 1 else f"{pictures} pictures"
            raise DataError(f"images[{place}] is {what} and images[0] {given.pictures}; give as many for each question")
        yield from group
