"""Batches of pixels and ids in a seeded global order that is a pure function of (seed, position).

The stream is one epoch's permutation after another, cut into batches; a batch may span two epochs, so no sample
is ever left out. The position is one integer, the number of samples already drawn, and travels with the
checkpoint.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from opencoca.config import PixelConfig
from opencoca.data.pixels import normalise, open_picture, to_square
from opencoca.data.shards import Sample
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import DataError
from opencoca.types import Batch, TextBucket


class Source(Protocol):
    """Image-text pairs by index; `ShardReader` is one."""

    keys: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...


class _Decoded(NamedTuple):
    key: str
    caption: str
    drawing: str | None  # samples that share it show the very same picture
    picture: np.ndarray


class PairLoader:
    """Training batches of a source.

    Decoded pictures (uint8, at the model's size) are kept up to `cache_bytes`, so a small set is decoded once.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size_px: int,
        context_length: int,
        pixels: PixelConfig,
        seed: int,
        max_shift_px: int = 0,
        text_buckets: int = 1,
        clump_size: int = 1,
        patch_noise: int = 0,
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        if len(source) == 0:
            raise DataError("the training split has no samples; prepare the data again or name another split")
        self.source, self.tokenizer, self.pixels, self.seed = source, tokenizer, pixels, seed
        self.batch_size, self.image_size_px, self.context_length = batch_size, image_size_px, context_length
        self.max_shift_px, self.text_buckets = max_shift_px, text_buckets
        self.clump_size, self.patch_noise = clump_size, patch_noise
        self._room = cache_bytes // (3 * image_size_px**2)
        self._cache: dict[int, np.ndarray] = {}
        self._key_hashes = np.array([hash64(key) for key in source.keys], dtype=np.uint64)
        self._order: tuple[int, np.ndarray] | None = None
        self._kinds = alike(source) if clump_size > 1 else None
        self.fingerprint = hashlib.sha256("\n".join(source.keys).encode()).hexdigest()  # of the keys, in their order

    def batches(self, position: int = 0) -> Iterator[tuple[Batch, int]]:
        """Endless (batch, position after it), from `position` samples into the stream."""
        while True:
            yield self.batch(position), position + self.batch_size
            position += self.batch_size

    def batch(self, position: int) -> Batch:
        """The batch that starts `position` samples into the stream."""
        epochs, places = np.divmod(np.arange(position, position + self.batch_size), len(self.source))
        indices = np.array([self._permutation(int(e))[p] for e, p in zip(epochs, places, strict=True)])
        samples = [self._sample(int(index)) for index in indices]
        captions = [sample.caption for sample in samples]
        pictures_BHWC = np.stack([sample.picture for sample in samples])
        if self.max_shift_px:
            pictures_BHWC = self._shifted(pictures_BHWC, epochs, indices)
        ids_BT, valid_BT = self.tokenizer.encode_batch(captions, self.context_length)
        words = [hash64(row.tobytes()) for row in ids_BT.numpy()]
        drawn = [hash64(sample.drawing if sample.drawing is not None else f"key {sample.key}") for sample in samples]
        labels = torch.from_numpy(np.array([words, drawn], dtype=np.uint64).T.view(np.int64))
        lengths_B = valid_BT.sum(dim=1)
        order = torch.argsort(lengths_B, stable=True)
        return Batch(
            torch.from_numpy(normalise(pictures_BHWC[order], self.pixels.mean, self.pixels.std)),
            ids_BT[order],
            valid_BT[order],
            labels[order],
            tuple(samples[i].key for i in order),
            bucket_by_length(lengths_B[order].tolist(), self.text_buckets),
            self._patch_noise(epochs, indices)[order] if self.patch_noise else None,
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, epoch], dtype=np.uint64)))
            order = generator.permutation(len(self.source))
            if self._kinds is not None:
                order = clumped(order, self._kinds, self.clump_size, generator)
            self._order = epoch, order
        return self._order[1]

    def _sample(self, index: int) -> _Decoded:
        sample = self.source[index]
        picture = self._cache.get(index)
        if picture is None:
            opened = open_picture(sample.picture, name=f"the picture of {sample.key}")
            picture = to_square(opened, self.image_size_px, self.pixels)
            if len(self._cache) < self._room:
                self._cache[index] = picture
        drawing = sample.attributes.get("picture")
        return _Decoded(sample.key, sample.caption, str(drawing) if drawing else None, picture)

    def _shifted(self, pictures_BHWC: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Each picture moved by up to `max_shift_px` on both axes, white filled in."""
        most, size = self.max_shift_px, self.image_size_px
        draws_B = self._draws(epochs, indices)
        padded = np.pad(pictures_BHWC, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=255)
        span = np.uint64(2 * most + 1)
        tops, lefts = (draws_B % span).astype(int), (draws_B // span % span).astype(int)
        return np.stack(
            [p[y : y + size, x : x + size] for p, y, x in zip(padded, tops, lefts, strict=True)],
        )

    def _patch_noise(self, epochs: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        """`patch_noise` uniform numbers per sample."""
        draws_BP = _mix64(self._draws(epochs, indices)[:, None] + np.arange(self.patch_noise, dtype=np.uint64))
        return torch.from_numpy((draws_BP >> np.uint64(40)).astype(np.float32) / 2**24)

    def _draws(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """A random uint64 per sample, from (seed, epoch, sample) alone."""
        seed = np.uint64(self.seed * 0x9E37 % 2**64)
        return _mix64(self._key_hashes[indices] ^ _mix64(seed + epochs.astype(np.uint64)))


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


def bucket_by_length(lengths: Sequence[int], most: int) -> tuple[TextBucket, ...]:
    """Cuts ascending lengths into at most `most` runs, such that padding each run to its longest costs least."""
    stops = [i + 1 for i in range(len(lengths)) if i + 1 == len(lengths) or lengths[i] != lengths[i + 1]]
    best: dict[int, tuple[int, tuple[TextBucket, ...]]] = {0: (0, ())}  # rows covered: padded ids, buckets
    for _ in range(most):
        for stop in reversed(stops):
            for first, (cost, buckets) in list(best.items()):
                if first < stop:
                    length = lengths[stop - 1]
                    offer = cost + (stop - first) * length, (*buckets, TextBucket(first, stop, length))
                    if stop not in best or offer[0] < best[stop][0]:
                        best[stop] = offer
    return best[len(lengths)][1]


def hash64(value: str | bytes) -> int:
    """A number of 64 bits that is the same in every process."""
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a good hash of 64-bit integers, vectorised."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
