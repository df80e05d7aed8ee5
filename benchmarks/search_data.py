"""What `search.py` searches: drawn rows and embeddings of varied drawings, with the true neighbours of each query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opencoca.loading import load

MODEL = Path(__file__).parents[1] / "src" / "opencoca" / "pretrained" / "drawings"
SHARDS = [("data/drawings", "train"), ("data/openmoji", "train")]


def rows_of(count: int, width: int, seed: int = 0) -> Tensor:
    """Unit-norm float16 [count,width], drawn block by block."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.empty(count, width, dtype=torch.float16)
    for start in range(0, count, 16384):
        block = torch.randn(min(16384, count - start), width, generator=draws)
        rows[start : start + 16384] = torch.nn.functional.normalize(block, dim=1)
    return rows


def truth(rows: Tensor, queries: np.ndarray, k: int) -> np.ndarray:
    """The best k rows of each query by float64 scores, int64 [Q,k]."""
    best_scores = np.empty((len(queries), 0))
    best_rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), 65536):
        block = rows[start : start + 65536].double()
        scores = torch.from_numpy(queries).double() @ block.T
        top = scores.topk(min(k, len(block)))
        best_scores = np.concatenate((best_scores, top.values.numpy()), axis=1)
        best_rows = np.concatenate((best_rows, top.indices.numpy() + start), axis=1)
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :k]
        best_scores, best_rows = (np.take_along_axis(values, order, axis=1) for values in (best_scores, best_rows))
    return best_rows


def recall(found: np.ndarray, want: np.ndarray, rows: Tensor, queries: np.ndarray) -> float:
    """The share of found rows that score no less than the last true neighbour: rows that are equal may stand in."""
    shares = []
    for got, best, query in zip(found, want, torch.from_numpy(queries).double(), strict=True):
        scores = rows[torch.from_numpy(np.unique(got[got >= 0]).astype(np.int64))].double() @ query
        shares.append(float((scores >= rows[int(best[-1])].double() @ query - 1e-7).sum()) / len(best))
    return float(np.mean(shares))


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Embeddings float16 [count,E] of varied drawings, and the captions of the drawings."""
    from opencoca.data.shards import ShardReader

    predictor = load(MODEL)
    size_px = predictor.config.model.vision.image_size_px
    squares, captions = [], []
    for folder, split in SHARDS:
        reader = ShardReader(Path(__file__).parents[1] / folder, split)
        samples = [reader[i] for i in range(len(reader))]
        for batch in predictor.squares([sample.picture for sample in samples]):
            squares.append(batch.squares)
        captions += [sample.caption for sample in samples]
    base = np.concatenate(squares)
    base, captions = base[: max(count // 4, 64)], captions[: max(count // 4, 64)]
    draws = np.random.default_rng(seed)
    embeds = []
    for start in range(0, count, 512):
        chosen = np.arange(start, min(start + 512, count)) % len(base)
        varied = np.stack([base[i] if start + j < len(base) else vary(base[i], draws) for j, i in enumerate(chosen)])
        assert varied.shape[1:] == (size_px, size_px, 3)
        for first in range(0, len(varied), predictor.batch_size):
            embeds.append(predictor.encode_squares(varied[first : first + predictor.batch_size]).embed.half().numpy())
    return np.concatenate(embeds), captions


def vary(square: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """The square turned, mirrored, shifted, scaled and tinted by chance."""
    from PIL import Image

    size, angle, scale = square.shape[0], draws.uniform(-25, 25), draws.uniform(0.6, 1.15)
    image = Image.fromarray(square[:, ::-1] if draws.random() < 0.5 else square)
    image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
    small = image.resize((max(8, int(size * scale)),) * 2)
    out = Image.new("RGB", (size, size), (255, 255, 255))
    left, top = ((size - small.width) // 2 + int(draws.integers(-6, 7)) for _ in range(2))
    out.paste(small, (left, top))
    values = np.asarray(out).astype(np.float32)
    if draws.random() < 0.3:
        values = values[..., draws.permutation(3)]
    return np.clip(values * draws.uniform(0.8, 1.1, 3), 0, 255).astype(np.uint8)
