"""The order in which samples are drawn: a pure function of (seed, position), without replaying what came before.

A source's stream is one epoch's shuffle after another. A mixture draws from several such streams in turn, by a
schedule of equal blocks, so that a position says at once which source is due and how far that source has come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from opencoca.data.draws import hash64, mix, uniforms
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError

BLOCK = 4096  # positions of a mixture's block: the shares that weights are rounded to


class Order(Protocol):
    """Which samples come when."""

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices) of the samples at these positions of the stream."""
        ...


class EpochOrder:
    """One source, epoch after epoch, each shuffled anew: whole, or in windows of so many shards.

    Args: shards are the runs of indices that lie in one file each, in order; kinds [count] numbers alike samples, which
      then stand side by side in clumps of up to clump_size.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        shards: Sequence[range] = (),
        window: int = 0,
        kinds: np.ndarray | None = None,
        clump_size: int = 1,
    ) -> None:
        self.seed, self.count, self.window, self.kinds, self.clump_size = seed, count, window, kinds, clump_size
        self.shards = shards if window else [range(count)]
        self._sizes = np.array([len(shard) for shard in self.shards])
        if self._sizes.sum() != count:
            raise DataError(f"the source's shards hold {self._sizes.sum()} samples, not its {count}; index it again")
        self._windows: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by epoch; a few of each are kept
        self._shuffled: dict[tuple[int, int], np.ndarray] = {}  # by epoch and window

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices) of the samples at these positions of the stream."""
        epochs, places = np.divmod(positions, self.count)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._epoch(int(epoch), places[here])
        return epochs, indices

    def _epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if not self.window:
            return self._shuffle(epoch, 0, None)[places]
        if epoch not in self._windows:
            shuffled = self._generator(epoch).permutation(len(self._sizes))
            sizes = np.add.reduceat(self._sizes[shuffled], np.arange(0, len(shuffled), self.window))
            _keep(self._windows, epoch, (shuffled, np.concatenate([[0], np.cumsum(sizes)])))
        shuffled, starts = self._windows[epoch]
        windows = np.searchsorted(starts, places, side="right") - 1  # an empty window is passed over
        indices = np.empty_like(places)
        for number in np.unique(windows):
            here = windows == number
            members = shuffled[number * self.window : (number + 1) * self.window]
            indices[here] = self._shuffle(epoch, int(number), members)[places[here] - starts[number]]
        return indices

    def _shuffle(self, epoch: int, number: int, shards: np.ndarray | None) -> np.ndarray:
        """The indices of a window (of everything, where shards is None) in the order in which they are drawn."""
        if (epoch, number) not in self._shuffled:
            if shards is None:
                generator = self._generator(epoch)
                order = generator.permutation(self.count)
            else:
                generator = self._generator(epoch, mix(number))
                order = generator.permutation(
                    np.concatenate([np.arange(s.start, s.stop) for s in self._ranges(shards)])
                )
            if self.kinds is not None:
                order = clumped(order, self.kinds, self.clump_size, generator)
            _keep(self._shuffled, (epoch, number), order)
        return self._shuffled[epoch, number]

    def _ranges(self, shards: np.ndarray) -> list[range]:
        return [self.shards[i] for i in shards]

    def _generator(self, epoch: int, salt: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64 ^ salt, epoch], dtype=np.uint64)))


class MixtureOrder:
    """Several sources in fixed shares, each in its own order and epochs.

    Each block of BLOCK positions holds every source's share exactly, evenly spread: any run of positions holds each
    source's share to within a sample or two. `at` gives indices into all sources, one behind the other.

    Raises: DataError if a weight is too small to give its source one place in a block.
    """

    def __init__(self, seed: int, orders: Sequence[EpochOrder], weights: Sequence[float]) -> None:
        self.seed, self.orders = seed, list(orders)
        self.offsets = np.cumsum([0, *(order.count for order in orders)])
        self.shares = shares(weights, BLOCK)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices) of the samples at these positions of the stream."""
        sources, places = np.empty_like(positions), np.empty_like(positions)
        blocks, within = np.divmod(positions, BLOCK)
        for block in np.unique(blocks):
            here = blocks == block
            due, before = self._block(int(block))
            sources[here] = due[within[here]]
            places[here] = block * self.shares[sources[here]] + before[within[here]]
        epochs, indices = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            here = sources == source
            epochs[here], indices[here] = self.orders[source].at(places[here])
            indices[here] += self.offsets[source]
        return epochs, indices

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Which source is due at each place of a block, and how often it was due in the block before."""
        if block not in self._blocks:
            phases = uniforms(self.seed ^ hash64(f"block {block}"), "phases", len(self.shares))
            before = np.concatenate([np.arange(share) for share in self.shares])
            sources = np.repeat(np.arange(len(self.shares)), self.shares)
            spread = np.argsort((before + phases[sources]) / self.shares[sources], kind="stable")
            _keep(self._blocks, block, (sources[spread], before[spread]))
        return self._blocks[block]


def shares(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers with this total, in proportion to the weights (the largest remainders are rounded up).

    Raises: DataError if one would be 0.
    """
    exact = np.asarray(weights, float) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    if (counts == 0).any():
        least = weights[int(np.argmin(counts))]
        raise DataError(f"weight {least} of a mixture is below 1/{total} of the sum {sum(weights)}; raise or drop it")
    return counts


def alike(source: Source) -> np.ndarray:
    """A number per sample, equal for alike samples: of one `concept`, or else with one first word of caption."""
    samples = [source[i] for i in range(len(source))]
    concepts = [sample.attributes.get("concept") for sample in samples]
    common = {concept for concept, count in Counter(concepts).items() if concept and count > 1}
    names = [
        ("concept", concept) if concept in common else ("word", sample.caption.split(" ", 1)[0])
        for sample, concept in zip(samples, concepts, strict=True)
    ]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def clumped(order: np.ndarray, kinds: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The same samples, with alike ones side by side in clumps of up to `size`, and the clumps in random order.

    What shares a batch with its like has to be told apart by its details: hard negatives, at no cost.
    """
    by_kind = order[np.argsort(kinds[order], kind="stable")]
    starts = np.flatnonzero(np.diff(kinds[by_kind], prepend=-1))
    clumps = [
        clump[first : first + size] for clump in np.split(by_kind, starts[1:]) for first in range(0, len(clump), size)
    ]
    return np.concatenate([clumps[i] for i in generator.permutation(len(clumps))])


def _keep(kept: dict, key, value, most: int = 2) -> None:
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value
