"""Random numbers that are pure functions of what they are drawn for, and the hashes they are made of."""

from __future__ import annotations

import hashlib

import numpy as np


def hash64(value: str | bytes) -> int:
    """A number of 64 bits that is the same in every process."""
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a good hash of 64-bit integers, for arrays of uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)  # an array's arithmetic wraps without a word
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(x: int) -> int:
    """`mix64` of one integer, of which the lowest 64 bits count."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def sample_draw(seed: int, epoch: int, key: str) -> int:
    """The random 64 bits of a sample in an epoch, of which all its other draws are made."""
    return mix(hash64(key) ^ mix(seed * 0x9E37 + epoch))


def uniforms(draw: int, purpose: str, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): numbers of one purpose tell nothing of another's, nor of another sample's."""
    start = np.uint64(mix(draw ^ hash64(purpose)))
    return (mix64(start + np.arange(count, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) / 2**53


def uniform_rows(draws: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`uniforms` [B,count] of several samples' draws, uint64 [B], as float32 of 24 bits."""
    starts = mix64(draws ^ np.uint64(hash64(purpose)))
    return (mix64(starts[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(40)).astype(np.float32) / 2**24
