"""The machine: where to compute, in which precision, how fast it could be, and how to keep memory at hand."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator

import torch

from opencoca.config import RunConfig
from opencoca.errors import TrainingError

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # mallopt(3)


def placement(run: RunConfig) -> tuple[torch.device, torch.autocast]:
    """The device, and the autocast context that gives the wanted precision there.

    Raises: TrainingError where a GPU is asked for and there is none.
    """
    name = run.device if run.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("run.device cuda was asked for, but torch finds no GPU; set it to auto")
    has_bf16 = name == "cuda" and torch.cuda.is_bf16_supported()
    use_bf16 = run.precision == "bf16" or (run.precision == "auto" and has_bf16)
    return torch.device(name), torch.autocast(name, torch.bfloat16, enabled=use_bf16)


def keep_freed_memory() -> None:
    """Tells glibc to hand freed blocks of up to 1 GiB to the next tensor instead of back to the system.

    A training step frees and takes the same blocks again and again; by default each comes as fresh pages that the
    system has to clear, and the quickstart's step takes 1.11 times as long (benchmarks/results/memory_reuse.json).
    Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(_MMAP_THRESHOLD, 2**30):  # glibc before 2.35 takes 32 MiB at most
            mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_TOP_PAD, 64 * 2**20)


@contextlib.contextmanager
def short_turns(seconds: float = 5e-4) -> Iterator[None]:
    """Lets threads take the interpreter from each other ten times as often as usual, while it lasts.

    After each operation a training step wants it back from the loader's threads, which may keep it for 5 ms by default:
    a step of the quickstart took 1.07 times as long (docs/LOG.md, 2026-11-23).
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 3) -> float:
    """Operations per second of a square matrix product, the median of `repeats`: the machine's practical peak."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        _synchronise(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[1:])


def peak_memory_bytes() -> int:
    """The most memory this process has held so far (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes() -> int:
    """The memory of the machine; 0 where the system doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
