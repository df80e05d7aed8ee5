"""Batches of pixels and ids in a seeded global order that is a pure function of (seed, position).

The stream is one epoch's shuffle after another, cut into global batches; a batch may span two epochs, so no sample
is ever left out. The position is one integer, the number of samples already drawn over all ranks, and travels with the
checkpoint. Neither the number of ranks nor that of workers changes which samples a global batch holds.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from opencoca.config import Config, PixelConfig
from opencoca.data.augment import Augmentation
from opencoca.data.draws import hash64, mix64, uniform_rows
from opencoca.data.mixture import Mixture
from opencoca.data.order import EpochOrder, MixtureOrder, Order, alike
from opencoca.data.reader import Drawn, PairReader
from opencoca.data.sources.protocol import Source
from opencoca.data.tokenizer import Tokenizer
from opencoca.data.workers import TIMEOUT_S, ReadAhead, ThreadPool, WorkerPool
from opencoca.errors import DataError
from opencoca.types import Batch, TextBucket

CHUNK = 16  # samples that a worker reads at a time
AHEAD_BYTES = 256 * 2**20  # what is read ahead at most, unless that is less than two chunks for each worker
MOST_CAPTIONS = 8  # of a picture that are compared with other pictures' texts, the drawn one first
MOST_JOBS = 32  # at one worker, so that the pipes to it have room for all


class _Chunk(NamedTuple):
    """Rows first .. last - 1 of this rank's share of the batch at `position`."""

    position: int
    first: int
    last: int
    epochs: np.ndarray
    indices: np.ndarray


class PairLoader:
    """Training batches of a source: this rank's rows of each global batch.

    Without workers, threads of this process decode, and decoded pictures (uint8, at the model's size) are kept up to
    `cache_bytes`, so a small set is decoded once. With `workers`, so many processes decode, and nothing is kept. Either
    way up to a batch is read ahead, into AHEAD_BYTES at most.

    A sample that can't be read is replaced by another one, drawn from (seed, epoch, sample). Of what this rank got so
    far, `drawn` counts the samples that were tried, `counts` those that couldn't be read, per kind of reason, and
    `skipped` lists them as (key, reason), each once.

    Raises: DataError if the source is empty, or batch_size no multiple of world; ConfigError if the decoder is missing.
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
        rank: int = 0,
        world: int = 1,
        captions: Literal["sample", "first"] = "sample",
        first_caption: float = 0.0,
        augmentation: Augmentation | None = None,
        shuffle_window: int = 0,
        text_buckets: int = 1,
        bucket_gain: int = 0,
        clump_size: int = 1,
        patch_noise: int = 0,
        parallel_share: float = 0.0,
        word_noise: bool = False,
        query_noise: int = 0,
        every_caption: bool = False,
        pictures: int = 1,
        workers: int = 0,
        cache_bytes: int = 512 * 2**20,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if len(source) == 0:
            raise DataError("the training split has no samples; prepare the data again or name another split")
        if batch_size % world:
            near = f"{batch_size // world * world or world} or {(batch_size // world + 1) * world}"
            raise DataError(f"batch_size {batch_size} isn't a multiple of the {world} ranks; take {near}")
        self.source, self.tokenizer, self.seed = source, tokenizer, seed
        self.batch_size, self.context_length = batch_size, context_length
        self.rank, self.world, self.rows = rank, world, batch_size // world
        self.buckets, self.patch_noise = (text_buckets, bucket_gain), patch_noise
        self.parallel_share, self.word_noise, self.query_noise = parallel_share, word_noise, query_noise
        self.every_caption, self.workers, self.timeout_s = every_caption, workers, timeout_s
        self._reader = PairReader(
            source,
            seed=seed,
            image_size_px=image_size_px,
            pixels=pixels,
            augmentation=augmentation or Augmentation(fill=pixels.fill),
            captions=captions,
            first_caption=first_caption,
            pictures=pictures,
            cache_bytes=0 if workers else cache_bytes,
        )
        self._order = order_of(source, seed, shuffle_window, clump_size)
        self._pool: ReadAhead | None = None
        self._sent: deque[_Chunk] = deque()  # to the pool, and not yet taken from it
        self._chunk: _Chunk | None = None  # the next one to be sent
        self.drawn, self.counts = 0, Counter()
        self._skipped: dict[str, str] = {}
        self.fingerprint = fingerprint(source)

    @classmethod
    def from_config(
        cls, config: Config, source: Source, tokenizer: Tokenizer, rank: int = 0, world: int = 1, pictures: int = 1
    ) -> PairLoader:
        """The training loader of a configuration; source as `open_training_source` opens it.

        Where samples have several `pictures`, a batch's pixels have three channels for each.
        """
        data, vision, text, pooler = config.data, config.model.vision, config.model.text, config.model.pooler
        return cls(
            source,
            tokenizer,
            batch_size=data.batch_size,
            image_size_px=vision.image_size_px,
            context_length=text.context_length,
            pixels=config.pixels,
            seed=config.run.seed,
            rank=rank,
            world=world,
            captions=data.captions,
            first_caption=data.first_caption,
            augmentation=Augmentation(
                data.crop_scale, data.flip, data.randaugment, data.max_shift_px, config.pixels.fill
            ),
            shuffle_window=data.shuffle_window,
            text_buckets=data.text_buckets,
            bucket_gain=data.bucket_gain,
            clump_size=data.clump_size,
            patch_noise=vision.read_patches if vision.train_patches else 0,
            parallel_share=text.parallel_share,
            word_noise=text.token_drop > 0,
            query_noise=pooler.num_queries if pooler.train_queries else 0,
            every_caption=config.loss.every_caption,
            pictures=pictures,
            workers=data.workers,
        )

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(key, reason) of each sample that this rank couldn't read."""
        return list(self._skipped.items())

    def batches(self, position: int = 0) -> Iterator[tuple[Batch, int]]:
        """Endless (batch, position after it), from `position` samples into the stream; the next one is read ahead."""
        while True:
            yield self.batch(position, ahead=True), position + self.batch_size
            position += self.batch_size

    def batch(self, position: int, ahead: bool = False) -> Batch:
        """This rank's rows of the global batch that starts `position` samples into the stream.

        Args: ahead says that the one behind it will be asked for next, so that its reading may begin.
        """
        size = self._reader.image_size_px
        pixels_BCHW = np.empty((self.rows, self._reader.channels, size, size), np.uint8)
        pairs = self._take(position, pixels_BCHW, ahead)
        self._count(pairs)
        return self._batch(pairs, pixels_BCHW)

    def describe(self) -> str:
        """What is being read, for a report on a run that hangs; another thread may ask."""
        due = self._pool.due if self._pool is not None else None
        if due is None:
            return "the loader has nothing to read"
        who, indices = due
        first, last = int(min(indices)), int(max(indices))
        keys = ", ".join(self.source.keys[int(i)] for i in indices[:4])
        runs = [number for number, run in enumerate(self.source.shards) if run.start <= last and run.stop > first]
        where = f"shard {runs[0]}" if len(runs) == 1 else "several shards"
        return f"{who} reads {keys}{', ...' if len(indices) > 4 else ''} in {where} of {len(self.source.shards)}"

    def close(self) -> None:
        """Ends worker processes and threads; the next batch starts others."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._chunk = None
        self._sent.clear()

    def _take(self, position: int, pixels_BCHW: np.ndarray, ahead: bool) -> list[Drawn]:
        """The pairs of a batch from the pool, which is kept busy with it and, if asked, with those after it."""
        next_due = self._sent[0] if self._sent else self._chunk
        if next_due is None or next_due.position != position:
            if self._sent:
                self.close()  # it is reading somewhere else
            self._chunks = self._cut(position)
            self._chunk = next(self._chunks)
        if self._pool is None:
            self._pool = self._open_pool(pixels_BCHW[0].nbytes)
        pairs: list[Drawn] = []
        try:
            while len(pairs) < self.rows:
                self._give(self._pool, position, ahead)
                chunk = self._sent.popleft()
                pairs += self._pool.take(pixels_BCHW[chunk.first : chunk.last])
            self._give(self._pool, position, ahead)
        except BaseException:  # an interruption, too, leaves some results taken and others not
            self.close()
            raise
        return pairs

    def _open_pool(self, row_bytes: int) -> ReadAhead:
        rows, most = min(CHUNK, self.rows), AHEAD_BYTES // (min(CHUNK, self.rows) * row_bytes)
        slots = -(-self.rows // rows) + max(1, self.workers)  # a batch, and what makes room while it is taken
        if not self.workers:
            return ThreadPool(self._reader, rows, max(2, min(slots, most)))
        slots = max(2 * self.workers, min(slots, most, MOST_JOBS * self.workers))
        return WorkerPool(self._reader, self.workers, rows, slots, self.timeout_s)

    def _give(self, pool: ReadAhead, position: int, ahead: bool) -> None:
        while pool.free and (chunk := self._chunk) and (ahead or chunk.position == position):
            pool.give(chunk.epochs, chunk.indices)
            self._sent.append(chunk)
            self._chunk = next(self._chunks)

    def _cut(self, position: int) -> Iterator[_Chunk]:
        """This rank's rows of the batches from `position` on, in chunks; endless."""
        size = min(CHUNK, self.rows)
        while True:
            start = position + self.rank * self.rows
            epochs, indices = self._order.at(np.arange(start, start + self.rows))
            for first in range(0, self.rows, size):
                last = min(first + size, self.rows)
                yield _Chunk(position, first, last, epochs[first:last], indices[first:last])
            position += self.batch_size

    def _count(self, pairs: Sequence[Drawn]) -> None:
        for pair in pairs:
            self.drawn += 1 + len(pair.skips)
            for skip in pair.skips:
                self.counts[skip.kind] += 1
                self._skipped[skip.key] = skip.reason

    def _batch(self, pairs: Sequence[Drawn], pixels_BCHW: np.ndarray) -> Batch:
        """The rows in order of caption length, with what tells which of them are not each other's negatives.

        In NumPy: some of torch's operations wake its threads, which then wait for the cores that the workers have.
        """
        ids_BT, valid_BT = (
            part.numpy() for part in self.tokenizer.encode_batch([pair.caption for pair in pairs], self.context_length)
        )
        # without the padding, which depends on what else this rank has in its batch
        words = [hash64(ids[valid].tobytes()) for ids, valid in zip(ids_BT, valid_BT, strict=True)]
        drawn = [hash64(pair.drawing if pair.drawing is not None else f"key {pair.key}") for pair in pairs]
        labels_B2 = np.array([words, drawn], dtype=np.uint64).T.view(np.int64)
        lengths_B = lengths_of(valid_BT)
        texts_BK = _texts(pairs) if self.every_caption else None
        order = lengths_B.argsort(kind="stable")
        put_in_order(pixels_BCHW, order.tolist())
        return Batch(
            torch.from_numpy(pixels_BCHW),
            torch.from_numpy(ids_BT[order]),
            torch.from_numpy(valid_BT[order]),
            torch.from_numpy(labels_B2[order]),
            tuple(pairs[i].key for i in order.tolist()),
            bucket_by_length(lengths_B[order].tolist(), *self.buckets),
            **{name: torch.from_numpy(noise[order]) for name, noise in self._noise(pairs, ids_BT.shape[1]).items()},
            texts=None if texts_BK is None else torch.from_numpy(texts_BK[order]),
        )

    def _noise(self, pairs: Sequence[Drawn], length: int) -> dict[str, np.ndarray]:
        """What the batch's rows draw for the model, as far as the configuration draws anything."""
        draws_B = np.array([pair.draw for pair in pairs], dtype=np.uint64)
        noise = {}
        if self.patch_noise:
            draws_BP = mix64(draws_B[:, None] + np.arange(self.patch_noise, dtype=np.uint64))
            noise["patch_noise"] = (draws_BP >> np.uint64(40)).astype(np.float32) / 2**24
        if self.parallel_share:
            noise["parallel"] = uniform_rows(draws_B, "parallel", 1)[:, 0] < self.parallel_share
        if self.word_noise:
            noise["word_noise"] = uniform_rows(draws_B, "words", length - 1)
        if self.query_noise:
            noise["query_noise"] = uniform_rows(draws_B, "queries", self.query_noise)
        return noise


def _texts(pairs: Sequence[Drawn]) -> np.ndarray:
    """Hashes [B,MOST_CAPTIONS] of each caption and of the picture's others, the caption again where there are fewer."""
    rows = [[pair.caption, *(text for text in pair.captions if text != pair.caption)][:MOST_CAPTIONS] for pair in pairs]
    hashes = [[hash64(text) for text in row + row[:1] * (MOST_CAPTIONS - len(row))] for row in rows]
    return np.array(hashes, dtype=np.uint64).view(np.int64)


def order_of(source: Source, seed: int, window: int = 0, clump_size: int = 1) -> Order:
    """The order of a source, or of a mixture of them."""
    if isinstance(source, Mixture):
        orders = [
            _epochs(part, seed ^ hash64(f"source {i}"), window, clump_size) for i, part in enumerate(source.sources)
        ]
        return MixtureOrder(seed, orders, source.weights)
    return _epochs(source, seed, window, clump_size)


def _epochs(source: Source, seed: int, window: int, clump_size: int) -> EpochOrder:
    if len(source) == 0:
        raise DataError("a source of the mixture has no samples; prepare it again or leave it out")
    kinds = alike(source) if clump_size > 1 else None
    return EpochOrder(seed, len(source), source.shards if window else (), window, kinds, clump_size)


def fingerprint(source: Source) -> str:
    """What tells one set of pairs from another: the source's own, or else a digest of its keys in their order."""
    own = getattr(source, "fingerprint", None)
    return own or hashlib.sha256("\n".join(source.keys).encode()).hexdigest()


def put_in_order(rows: np.ndarray, order: Sequence[int]) -> None:
    """Makes rows what rows[order] is, with one spare row instead of a second batch."""
    placed = [False] * len(order)
    for first in range(len(order)):
        if placed[first]:
            continue
        spare, place = rows[first].copy(), first
        while order[place] != first:
            rows[place] = rows[order[place]]
            placed[place] = True
            place = order[place]
        rows[place] = spare
        placed[place] = True


def lengths_of(valid_BT: np.ndarray) -> np.ndarray:
    """As `types.caption_lengths`, of an array."""
    return (valid_BT.shape[1] - valid_BT[:, ::-1].argmax(1)) * valid_BT.any(1)


def bucket_by_length(lengths: Sequence[int], most: int, gain: int = 0) -> tuple[TextBucket, ...]:
    """Cuts ascending lengths into at most `most` runs, such that padding each run to its longest costs least.

    A further run has to save `gain` ids of padding.
    """
    stops = [i + 1 for i in range(len(lengths)) if i + 1 == len(lengths) or lengths[i] != lengths[i + 1]]
    best: dict[int, tuple[int, tuple[TextBucket, ...]]] = {0: (0, ())}  # rows covered: padded ids, buckets
    for _ in range(most):
        for stop in reversed(stops):
            for first, (cost, buckets) in list(best.items()):
                if first < stop:
                    length = lengths[stop - 1]
                    offer = cost + gain + (stop - first) * length, (*buckets, TextBucket(first, stop, length))
                    if stop not in best or offer[0] < best[stop][0]:
                        best[stop] = offer
    return best[len(lengths)][1]
