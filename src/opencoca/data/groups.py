"""Rows that belong together, however many steps apart: copies of one picture, versions of one thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def joined(marks: Iterable[Sequence[str]]) -> list[str]:
    """For each row a name that it shares with every row it shares a mark with, directly or through others.

    It is the least first mark of them all, so that it doesn't depend on the rows' order.
    """
    marks = list(marks)
    owner = list(range(len(marks)))

    def root(i: int) -> int:
        while owner[i] != i:
            owner[i] = owner[owner[i]]
            i = owner[i]
        return i

    first: dict[str, int] = {}
    for i, row in enumerate(marks):
        for mark in row:
            owner[root(i)] = root(first.setdefault(mark, i))
    names: dict[int, str] = {}
    for i, row in enumerate(marks):
        names[root(i)] = min(names.get(root(i), row[0]), row[0])
    return [names[root(i)] for i in range(len(marks))]
