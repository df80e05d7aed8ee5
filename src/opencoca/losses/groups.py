"""Groups: pairs of one caption or one picture, and texts that are true of other pictures: no negatives."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_A_TIME = 1024


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


class Positives(NamedTuple):
    """Where the positives of some rows [C] of a similarity matrix [C,G] stand, and its exceptions.

    Each row's own pair stands on the diagonal that begins in column `first`. `rows` and `columns` list the other
    entries that belong together, positives too where they are `spread`. A positive weighs `weights` [C] in the mean
    over its row's positives, and `column_weights` [G] in the mean over its column's.
    """

    first: int
    rows: Tensor
    columns: Tensor
    weights: Tensor
    column_weights: Tensor
    spread: bool

    def hide_others(self, logits_CG: Tensor) -> None:
        """Takes the entries that are neither positive nor negative out of every sum of exponentials."""
        if not self.spread and len(self.rows):
            logits_CG[self.rows, self.columns] = float("-inf")

    def row_means(self, values_CG: Tensor) -> Tensor:
        """Each row's mean [C] over its positives."""
        means_C = values_CG.diagonal(self.first) * self.weights
        if self.spread and len(self.rows):
            means_C.index_add_(0, self.rows, values_CG[self.rows, self.columns] * self.weights[self.rows])
        return means_C

    def add_to_column_means(self, values_CG: Tensor, means_G: Tensor) -> None:
        """Adds what these rows contribute to each column's mean over its positives."""
        own = slice(self.first, self.first + len(values_CG))
        means_G[own] += values_CG.diagonal(self.first) * self.column_weights[own]
        if self.spread and len(self.rows):
            at_columns = self.column_weights[self.columns]
            means_G.index_add_(0, self.columns, values_CG[self.rows, self.columns] * at_columns)

    def subtract(self, values_CG: Tensor, both: bool = False) -> None:
        """Subtracts the target distribution over each row, in place; with `both`, that over each column as well."""
        own = self.weights
        if both:
            own = own + self.column_weights[self.first : self.first + len(values_CG)]
        values_CG.diagonal(self.first).sub_(own)
        if self.spread and len(self.rows):
            others = self.weights[self.rows]
            values_CG[self.rows, self.columns] -= others + self.column_weights[self.columns] if both else others

    def negate(self, values_CG: Tensor) -> None:
        """Turns the sign of every positive, in place."""
        values_CG.diagonal(self.first).neg_()
        if self.spread and len(self.rows):
            values_CG[self.rows, self.columns] *= -1


class Groups:
    """Which pictures and texts of G pairs belong together. Few do, so they are listed, not kept as a matrix [G,G]."""

    def __init__(self, ids_G: Tensor | None, spread: bool, like: Tensor, true_texts_GK: Tensor | None = None) -> None:
        """Pairs of one id belong together, and each picture with every text that is true of it.

        Args: spread makes those that belong together positives, which share the target; true_texts_GK are ids of the
            texts that are true of each picture, its own first.
        """
        self.ids_G, self.spread = ids_G, spread and not (ids_G is None and true_texts_GK is None)
        self.shared_X = torch.empty(0, dtype=torch.long, device=like.device)
        self.pictures = self.texts = counts_G = None
        self.weights_G = self.column_weights_G = like.new_ones(())  # of all
        if ids_G is not None:
            _, inverse_G, counts = torch.unique(ids_G, return_inverse=True, return_counts=True)
            counts_G = counts[inverse_G]
            self.shared_X = (counts_G > 1).nonzero()[:, 0]  # the pairs that aren't alone in their group
        if true_texts_GK is not None:
            self.pictures, self.texts = true_texts_GK, _Index(true_texts_GK[:, :1])
        if self.spread and self.texts is not None:
            self.weights_G, self.column_weights_G = self._weights(like)
        elif self.spread and counts_G is not None:
            self.weights_G = self.column_weights_G = 1 / counts_G.to(like.dtype)

    def turned(self) -> Groups:
        """The same with texts for rows and pictures for columns."""
        other = copy.copy(self)
        other.weights_G, other.column_weights_G = self.column_weights_G, self.weights_G
        if self.pictures is not None:
            other.pictures, other.texts = self.pictures[:, :1], _Index(self.pictures)
        return other

    def positives(self, first: int, last: int) -> Positives:
        """Those of the pairs first .. last - 1, each a row of similarities to all pairs."""
        weights_G = self.weights_G if self.weights_G.dim() else self.weights_G.expand(last)
        column_weights_G = self.column_weights_G if self.column_weights_G.dim() else self.column_weights_G.expand(last)
        rows, columns = self._others(first, last)
        return Positives(first, rows - first, columns, weights_G[first:last], column_weights_G, self.spread)

    def _others(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Row and column of each entry in the rows first .. last - 1 that belongs together, off the diagonal."""
        rows = columns = self.shared_X[:0]
        if self.ids_G is not None and len(self.shared_X):
            rows_X = self.shared_X[(self.shared_X >= first) & (self.shared_X < last)]
            together = self.ids_G[rows_X, None] == self.ids_G[self.shared_X]
            together &= rows_X[:, None] != self.shared_X
            at_row, at_column = together.nonzero(as_tuple=True)
            rows, columns = rows_X[at_row], self.shared_X[at_column]
        if self.pictures is None or self.texts is None:
            return rows, columns
        asking, answering = self.texts.equals(self.pictures[first:last])
        off = asking + first != answering
        count = len(self.pictures)
        entries = torch.cat([rows * count + columns, (asking + first)[off] * count + answering[off]]).unique()
        return entries // count, entries % count

    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """One over the number of positives of each row, and of each column."""
        assert self.pictures is not None
        count = len(self.pictures)
        by_row, by_column = (torch.ones(count, dtype=torch.long, device=like.device) for _ in range(2))
        for first in range(0, count, ROWS_AT_A_TIME):
            rows, columns = self._others(first, min(first + ROWS_AT_A_TIME, count))
            by_row += torch.bincount(rows, minlength=count)
            by_column += torch.bincount(columns, minlength=count)
        return 1 / by_row.to(like.dtype), 1 / by_column.to(like.dtype)


class _Index:
    """Finds the rows of ids [G,K] that hold an id."""

    def __init__(self, ids_GK: Tensor) -> None:
        self.sorted, order = ids_GK.flatten().sort(stable=True)
        self.rows = order // ids_GK.shape[1]

    def equals(self, asked_CA: Tensor) -> tuple[Tensor, Tensor]:
        """For each id of each row asked [C,A], the rows that hold it: row of `asked` and row found, side by side."""
        asked = asked_CA.flatten().contiguous()  # one column of several is a view
        low, high = torch.searchsorted(self.sorted, asked), torch.searchsorted(self.sorted, asked, right=True)
        counts = high - low
        asking = torch.arange(len(asked), device=asked.device).repeat_interleave(counts)
        before = (counts.cumsum(0) - counts)[asking]
        places = low[asking] + torch.arange(len(asking), device=asked.device) - before
        return asking // asked_CA.shape[1], self.rows[places]
