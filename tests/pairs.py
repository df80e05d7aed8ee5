"""What the tests of the loader share: pictures that can be told apart, JPEGs, a loader of few words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.support import SIZE_PX, MemorySource, png, tiny_tokenizer

from opencoca.config import PixelConfig
from opencoca.data.loader import PairLoader
from opencoca.data.sample import Sample
from opencoca.types import Batch

TOKENIZER = tiny_tokenizer()


def noise(count: int, size_px: int = SIZE_PX) -> list[Sample]:
    """Pictures without a white pixel, each unlike the others, with captions of equal length."""
    generator = np.random.default_rng(7)
    pictures = generator.integers(0, 250, (count, size_px, size_px, 3), dtype=np.uint8)
    return [Sample(f"k{i:03d}", png(picture), f"c{i:03d}", {}) for i, picture in enumerate(pictures)]


def damaged(items: Sequence[Sample], *which: int) -> list[Sample]:
    """The same samples, with some pictures cut off."""
    return [item._replace(picture=item.picture[:60]) if i in which else item for i, item in enumerate(items)]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with an edge, which survive a JPEG, and no two corners alike."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(30, 226, (5, 6, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 10, 10), (0, 0, width // 4, height // 5))
    return image


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """The picture as the bytes of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92} | options)
    return file.getvalue()


def make(source: Any, seed: int = 0, **options: Any) -> PairLoader:
    """A loader with the tests' usual values."""
    source = source if hasattr(source, "keys") else MemorySource(source)
    options = {"batch_size": 4, "image_size_px": SIZE_PX, "context_length": 16, "pixels": PixelConfig()} | options
    return PairLoader(source, TOKENIZER, seed=seed, **options)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal to the bit, row for row."""
    tensors = all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    return tensors and a.keys == b.keys and a.buckets == b.buckets


def drawn_keys(loader: PairLoader, first: int, count: int) -> list[str]:
    """The keys in the order in which they are drawn."""
    indices = loader._order.at(np.arange(first, first + count))[1]
    return [loader.source.keys[i] for i in indices]
