"""Memory and time of the chunked losses against whole logits and whole similarity matrices (C7, C8).

Time: forward and backward pass, in turn, median of 5, with the trainer's setting of the allocator, which spares the
whole matrices their page faults. Memory: the most resident memory that one forward and backward pass adds in a fresh
process (the kernel's own high-water mark, so whatever allocates is counted), with the gradients, which stay, and
without them.
Parity: the largest difference from the plain loss, as a share of the largest entry.

    python benchmarks/losses.py             all sizes: about 40 minutes on 2 cores, and 20 GB
    python benchmarks/losses.py --main      three of them: about 10 minutes
    python benchmarks/losses.py --small     to see that it runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import alternating_medians, write_result
from torch import Tensor
from torch.nn import functional as F

from opencoca.losses import contrastive_loss, linear_captioning_loss
from opencoca.train.machine import keep_freed_memory

REPEATS = 5
# vocabulary, width, tokens: 32 captions of 20 tokens, 64 that fill the context
CAPTIONING = [(49408, 512, 640), (49408, 512, 4864), (64000, 768, 640), (64000, 768, 4864)]
# pairs of this rank, of all ranks, width of the joint space
CONTRASTIVE = [(16384, 16384, 512), (24576, 24576, 512), (32768, 32768, 512), (4096, 32768, 512)]
SMALL = {"captioning": [(8000, 64, 640)], "contrastive": [(2048, 2048, 64), (512, 4096, 64)]}
WHOLE = {"captioning": "whole_logits", "contrastive": "two_matrices"}  # what the ratios are against
Loss = Callable[..., Tensor]


def whole_logits(decoded: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The head, then cross-entropy."""
    return F.cross_entropy(F.linear(decoded, weight), targets)


def torch_fused(decoded: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """torch's own chunked loss, where it has one."""
    return F.linear_cross_entropy(decoded, weight, targets)  # pyright: ignore[reportAttributeAccessIssue]


def two_matrices(image: Tensor, text: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor) -> Tensor:
    """One similarity matrix per direction, as open_clip's loss."""
    targets = torch.arange(len(image))
    of_images = F.cross_entropy(scale * image @ all_texts.T, targets)
    return of_images + F.cross_entropy(scale * text @ all_images.T, targets)


def one_matrix(image: Tensor, text: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor) -> Tensor:
    """One similarity matrix for both directions, which works on one rank only."""
    targets, logits = torch.arange(len(image)), scale * (image @ all_texts.T)
    return F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)


def ways(kind: str, size: Sequence[int]) -> dict[str, Loss]:
    """The ways to compute a loss; the first is the one that the others are compared with."""
    if kind == "captioning":
        fused = {"torch_fused": torch_fused} if hasattr(F, "linear_cross_entropy") else {}
        return {"whole_logits": whole_logits, **fused, "ours": linear_captioning_loss}
    single = {"one_matrix": one_matrix} if size[0] == size[1] else {}
    return {"two_matrices": two_matrices, **single, "ours": contrastive_loss}


def arguments(kind: str, size: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """What a loss is called with, and which of that wants gradients."""
    generator = torch.Generator().manual_seed(0)
    if kind == "captioning":
        vocabulary, width, tokens = size
        weight = torch.randn(vocabulary, width, generator=generator).mul_(width**-0.5).requires_grad_()
        decoded = torch.randn(tokens, width, generator=generator).requires_grad_()
        return [decoded, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)], [decoded, weight]
    own, pairs, width = size
    common = torch.randn(pairs, width, generator=generator)
    both = [F.normalize(common + 2 * torch.randn(pairs, width, generator=generator), dim=1) for _ in range(2)]
    scale = torch.full((1,), 50.0, requires_grad=True)
    leaves = [x.requires_grad_() for x in both]
    if own < pairs:  # the gathered embeddings are other tensors than this rank's
        leaves = [x[:own].clone().detach().requires_grad_() for x in both] + leaves
    return [*leaves, *(leaves if own == pairs else []), scale], [*leaves, scale]


def step(loss: Loss, inputs: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward pass; the outer factor is CoCa's weight of the captioning loss."""
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(2 * value, leaves)


def peak_bytes(kind: str, way: str, size: Sequence[int]) -> dict[str, int]:
    """Resident memory that one step adds at most; to be asked in a fresh process."""
    tiny = [64, 64, 16] if kind == "contrastive" else [512, 16, 64]
    step(ways(kind, tiny)[way], *arguments(kind, tiny))  # libraries and threads
    inputs, leaves = arguments(kind, size)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _resident("VmRSS")
    result = step(ways(kind, size)[way], inputs, leaves)
    peak = max(_resident("VmHWM"), _resident("VmRSS"))
    gradients = sum(x.numel() * x.element_size() for x in result[1])
    return {"all": peak - before, "beyond_gradients": peak - before - gradients}


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def fits(kind: str, way: str, size: Sequence[int]) -> bool:
    """Whether a whole similarity matrix and what is made of it (about 7 of them) have room in memory."""
    if way == "ours" or kind == "captioning":
        return True
    available = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return 7 * 4 * size[0] * size[1] < 1024 * int(available.split()[1])


def parity(loss: Loss, plain: Loss, inputs: list[Tensor], leaves: list[Tensor]) -> dict[str, float]:
    """How far loss and gradients are from the plain ones, as shares of their largest entries."""
    (value, gradients), (wanted, expected) = (step(one, inputs, leaves) for one in (loss, plain))
    worst = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(gradients, expected, strict=True))
    return {"loss": abs(float(value / wanted) - 1), "gradients": worst}


def _peaks(kind: str, way: str, size: Sequence[int]) -> dict[str, float]:
    asked = [sys.executable, __file__, "--peak", kind, json.dumps(size), way]
    answers = [json.loads(subprocess.run(asked, capture_output=True, check=True).stdout) for _ in range(3)]
    return {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}


def measure(kind: str, size: Sequence[int]) -> dict[str, Any]:
    """Every figure of one size."""
    chosen = {way: loss for way, loss in ways(kind, size).items() if fits(kind, way, size)}
    peaks = {way: _peaks(kind, way, size) for way in chosen}
    inputs, leaves = arguments(kind, size)
    runs = {way: lambda loss=loss: (step(loss, inputs, leaves), None)[1] for way, loss in chosen.items()}
    figures: dict[str, Any] = {"size": size, "peak_bytes": peaks}
    figures["seconds"] = alternating_medians(runs, REPEATS, warmup=1)
    whole = WHOLE[kind]
    if whole in chosen:
        figures["parity"] = parity(chosen["ours"], chosen[whole], inputs, leaves)
    for way in chosen:
        if way != "ours":
            figures[f"ours_over_{way}"] = {
                "memory": peaks["ours"]["beyond_gradients"] / peaks[way]["beyond_gradients"],
                "memory_with_gradients": peaks["ours"]["all"] / peaks[way]["all"],
                "time": figures["seconds"]["ours"]["median_s"] / figures["seconds"][way]["median_s"],
            }
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    """Measures and writes the result, or, as a child, prints one peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, and nothing is written")
    parser.add_argument("--main", action="store_true", help="the sizes of a B/32 and 16,384 pairs: 10 minutes")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "SIZE", "WAY"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        kind, size, way = chosen.peak
        print(json.dumps(peak_bytes(kind, way, json.loads(size))))
        return
    keep_freed_memory()
    sizes = SMALL if chosen.small else {"captioning": CAPTIONING, "contrastive": CONTRASTIVE}
    if chosen.main:
        sizes = {"captioning": CAPTIONING[:2], "contrastive": CONTRASTIVE[:1]}
    figures = {kind: [measure(kind, list(size)) for size in of_kind] for kind, of_kind in sizes.items()}
    if not chosen.small:
        write_result("losses", figures)


if __name__ == "__main__":
    main()
