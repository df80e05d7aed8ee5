"""The shared library of what is written in C (`native/`), compiled by `setup.py` where there is a compiler.

It computes in torch's number of threads and in torch's team of them, since both use the OpenMP runtime that torch
brings. `OPENCOCA_NATIVE=0` in the environment does without it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

INSTRUCTIONS = {"AVX2": "avx2", "AVX512": "avx512"}  # of torch's names for what a processor can do


def instructions() -> str | None:
    """Which build this process takes: "avx2" or "avx512"; None for another processor, or where C isn't wanted."""
    if os.environ.get("OPENCOCA_NATIVE") == "0":
        return None
    return INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())


def open_library(name: str, interface: str, size: int) -> ctypes.CDLL | None:
    """The library built for these instructions; None where it is missing or can't be loaded.

    Args: `interface` is a function of it that says how large what it is given must be. Where that isn't `size`, the
      library is another version's, and None is returned too.
    """
    try:
        found = ctypes.CDLL(str(Path(__file__).parent / f"libnative_{name}.so.1"))
        asked = getattr(found, interface)
    except (AttributeError, OSError):  # of another version, of another machine, or no OpenMP
        return None
    asked.restype = ctypes.c_int64
    return found if asked() == size else None
