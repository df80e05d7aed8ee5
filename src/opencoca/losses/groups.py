"""Groups: pairs of one caption or one picture, which are not each other's negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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

    Each row's own pair stands on the diagonal that begins in column `first`. `rows` and `columns` list the entries of
    the other members of the rows' groups, positives too where they are `spread`. A row's positive weighs `weights` [C].
    """

    first: int
    rows: Tensor
    columns: Tensor
    weights: Tensor
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
        means_G[self.first : self.first + len(values_CG)] += values_CG.diagonal(self.first) * self.weights
        if self.spread and len(self.rows):
            means_G.index_add_(0, self.columns, values_CG[self.rows, self.columns] * self.weights[self.rows])

    def subtract(self, values_CG: Tensor, times: float = 1.0) -> None:
        """Subtracts the target distribution, in place."""
        values_CG.diagonal(self.first).sub_(self.weights, alpha=times)
        if self.spread and len(self.rows):
            values_CG[self.rows, self.columns] -= times * self.weights[self.rows]

    def negate(self, values_CG: Tensor) -> None:
        """Turns the sign of every positive, in place."""
        values_CG.diagonal(self.first).neg_()
        if self.spread and len(self.rows):
            values_CG[self.rows, self.columns] *= -1


class Groups:
    """Which of G pairs belong together. Few do, so they are listed, not kept as a matrix [G,G]."""

    def __init__(self, ids_G: Tensor | None, spread: bool, like: Tensor) -> None:
        """With `spread`, members of a group are each other's positives. Without ids, each pair is alone."""
        self.ids_G, self.spread = ids_G, spread and ids_G is not None
        self.shared_X = torch.empty(0, dtype=torch.long, device=like.device)
        self.weights_G = like.new_ones(())
        if ids_G is not None:
            _, inverse_G, counts = torch.unique(ids_G, return_inverse=True, return_counts=True)
            self.shared_X = (counts[inverse_G] > 1).nonzero()[:, 0]  # the pairs that aren't alone in their group
            if spread:
                self.weights_G = (1 / counts.to(like.dtype))[inverse_G]

    def positives(self, first: int, last: int) -> Positives:
        """Those of the pairs first .. last - 1, each a row of similarities to all pairs."""
        weights = self.weights_G[first:last] if self.weights_G.dim() else self.weights_G.expand(last - first)
        rows = columns = self.shared_X[:0]
        if self.ids_G is not None and len(self.shared_X):
            rows_X = self.shared_X[(self.shared_X >= first) & (self.shared_X < last)]
            together = self.ids_G[rows_X, None] == self.ids_G[self.shared_X]
            together &= rows_X[:, None] != self.shared_X
            at_row, at_column = together.nonzero(as_tuple=True)
            rows, columns = rows_X[at_row] - first, self.shared_X[at_column]
        return Positives(first, rows, columns, weights, self.spread)
