"""Ranking of 5,000 pictures against 25,000 captions both ways, and 100,000 labels: seconds, memory, and the same ranks.

Embeddings are drawn at random, captions near their pictures, so this is what comes after the encoders.

    python benchmarks/retrieval_scale.py            about a minute on 2 cores
    python benchmarks/retrieval_scale.py --small    to see that it runs
"""

from __future__ import annotations

import argparse
import time

import torch
from common import write_result
from torch import Tensor
from torch.nn import functional as F

from opencoca.eval.ranks import ranks_both_ways
from opencoca.ranking import ranks_of_targets, top_k
from opencoca.train.machine import peak_memory_bytes

WIDTH = 512


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    pictures, labels = (200, 2_000) if args.small else (5_000, 100_000)
    images, texts, targets = made(pictures, captions=5)
    before = peak_memory_bytes()
    began = time.perf_counter()
    i2t, t2i = ranks_both_ways(images, texts, targets)
    seconds = time.perf_counter() - began
    peak = peak_memory_bytes()
    began = time.perf_counter()
    classes = F.normalize(torch.randn(labels, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    top_k(images, classes, k=5)
    label_seconds, label_peak = time.perf_counter() - began, peak_memory_bytes()
    owners: list[list[int]] = [[] for _ in range(pictures)]
    for text, image in enumerate(targets.tolist()):
        owners[image].append(text)
    began = time.perf_counter()
    same = torch.equal(i2t, ranks_of_targets(images, texts, owners)) and torch.equal(
        t2i, ranks_of_targets(texts, images, targets)
    )
    figures = {
        "pictures": pictures,
        "captions": len(texts),
        "width": WIDTH,
        "seconds": round(seconds, 2),
        "added_memory_mb": round((peak - before) / 1e6, 1),
        "process_peak_memory_mb": round(peak / 1e6, 1),
        "exact_float64_seconds": round(time.perf_counter() - began, 2),
        "same_ranks_as_float64": same,
        "labels": labels,
        "label_seconds": round(label_seconds, 2),
        "label_process_peak_memory_mb": round(label_peak / 1e6, 1),
    }
    print(figures)
    if not args.small:
        write_result("retrieval_scale", figures)


def made(pictures: int, captions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-norm embeddings of pictures [I,E] and of captions [U,E] near them, and the picture of each caption [U]."""
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(pictures, WIDTH, generator=generator), dim=1)
    targets = torch.arange(pictures).repeat_interleave(captions)
    noise = torch.randn(len(targets), WIDTH, generator=generator) / WIDTH**0.5
    return images, F.normalize(images[targets] * 0.3 + noise, dim=1), targets


if __name__ == "__main__":
    main()
