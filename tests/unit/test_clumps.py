"""Clumps: alike samples side by side, everything exactly once, in an order that depends on the seed alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from opencoca.data.order import alike, clumped


class Described(NamedTuple):
    key: str
    picture: bytes
    caption: str
    attributes: dict[str, Any]


class Captions:
    """A source of captions and concepts without pictures."""

    def __init__(self, *rows: tuple[str, str]) -> None:
        self.keys = [str(i) for i in range(len(rows))]
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Any:
        caption, concept = self._rows[i]
        return Described(self.keys[i], b"", caption, {"concept": concept} if concept else {})


def test_a_shared_concept_or_else_the_first_word_makes_alike() -> None:
    kinds = alike(
        Captions(("man cook", "c"), ("woman cook", "c"), ("flag of Chad", "x"), ("flag of Mali", "y"), ("dog", ""))
    )
    assert kinds[0] == kinds[1] and kinds[2] == kinds[3]
    assert len({kinds[0], kinds[2], kinds[4]}) == 3


def test_clumps_hold_every_sample_once_and_only_alike_ones() -> None:
    kinds = np.array([0] * 10 + [1] * 3 + [2, 3, 4, 5])
    order = np.random.default_rng(0).permutation(len(kinds))
    found = clumped(order, kinds, 4, np.random.default_rng(1))
    assert sorted(found) == list(range(len(kinds)))
    runs = np.split(kinds[found], np.flatnonzero(np.diff(kinds[found])) + 1)
    lonely_shuffled = np.split(kinds[order], np.flatnonzero(np.diff(kinds[order])) + 1)
    assert len(runs) <= 3 + 1 + 4  # ten in clumps of 4, 4, 2; three in one; four alone
    assert len(runs) < len(lonely_shuffled)


def test_clumps_differ_between_epochs() -> None:
    kinds = np.repeat(np.arange(8), 4)
    orders = [
        clumped(np.random.default_rng(epoch).permutation(32), kinds, 2, np.random.default_rng(epoch))
        for epoch in range(2)
    ]
    assert not np.array_equal(*orders)
