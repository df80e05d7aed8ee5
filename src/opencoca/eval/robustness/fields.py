"""Blurs and random fields on small pictures, in numpy and torch: what corruptions are made of.

Pictures and planes are float64 arrays [H,W,3] or [H,W] with values from 0 to 1; lengths are in pixels.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Array = np.ndarray


def convolved(picture: Array, kernel: Array) -> Array:
    """The picture under a kernel [K,K], K odd, whose sum is 1; at the edges the last pixels go on."""
    planes = torch.from_numpy(picture if picture.ndim == 3 else picture[..., None]).permute(2, 0, 1)[:, None]
    half = kernel.shape[0] // 2
    padded = F.pad(planes, (half,) * 4, mode="replicate")
    made = F.conv2d(padded, torch.from_numpy(kernel)[None, None])
    return made[:, 0].permute(1, 2, 0).numpy().reshape(picture.shape)


def gaussian(picture: Array, sigma_px: float) -> Array:
    """The picture, blurred by a Gaussian out to three sigma; beyond the edges lies its mirror image."""
    if sigma_px <= 0:
        return picture
    down, across = (_blur(size, sigma_px) for size in picture.shape[:2])
    return np.einsum("ij,jk...,lk->il...", down, picture, across, optimize=True)


@functools.lru_cache(maxsize=32)
def _blur(size: int, sigma_px: float) -> Array:
    """The blur of a line as a matrix [size,size], which costs the same however wide the blur is."""
    half = math.ceil(3 * sigma_px)
    offsets = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    places = np.mod(np.arange(size)[:, None] + offsets, 2 * size)
    places = np.where(places >= size, 2 * size - 1 - places, places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), weights / weights.sum())
    return matrix


def disk(radius_px: float, edge_px: float) -> Array:
    """A kernel: a disk of that radius with a soft edge."""
    half = math.ceil(radius_px + 2 * edge_px)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    # Half a pixel of softness even where the edge is sharp, so that radii which differ by less than a pixel do differ.
    kernel = np.clip((radius_px - np.hypot(x, y)) / max(edge_px, 1.0) + 0.5, 0, 1)
    return kernel / kernel.sum()


def streak(length_px: float, sigma_px: float, angle: float) -> Array:
    """A kernel: a half Gaussian that trails off along an angle (radians) up to a length."""
    half = max(1, math.ceil(length_px))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for step in np.linspace(0, length_px, 4 * half + 1):
        weight = math.exp(-0.5 * (step / max(sigma_px, 1e-6)) ** 2)
        x, y = half + step * math.cos(angle), half + step * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            if share:
                kernel[row, column] += weight * share
    return kernel / kernel.sum()


def zoomed(plane: Array, factor: float) -> Array:
    """The middle of a picture, enlarged to its size; factor is 1 or more."""
    height, width = plane.shape[:2]
    high, wide = height / factor, width / factor
    left, top = (width - wide) / 2, (height - high) / 2
    return resized(plane, (width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))


def resized(
    picture: Array,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Array:
    """The picture at (width, height), by Pillow, in floats."""
    planes = picture if picture.ndim == 3 else picture[..., None]
    made = [
        np.asarray(Image.fromarray(planes[..., c].astype(np.float32)).resize(size, resample, box=box), dtype=np.float64)
        for c in range(planes.shape[2])
    ]
    return np.stack(made, axis=-1).reshape(size[1], size[0], *picture.shape[2:])


def cloud(size_px: int, decay: float, rng: np.random.Generator) -> Array:
    """A random field [H,W] from 0 to 1 whose waves get weaker by `decay` with each octave, as a plasma fractal's do.

    Differs: by its spectrum; the reference makes it by halving squares.
    """
    across = np.fft.fftfreq(size_px)
    frequency = np.hypot(across[:, None], across[None, :])
    frequency[0, 0] = np.inf
    waves = np.fft.fft2(rng.standard_normal((size_px, size_px))) * frequency ** -(1 + math.log2(decay))
    field = np.fft.ifft2(waves).real
    return (field - field.min()) / max(field.max() - field.min(), 1e-12)


def gathered(picture: Array, rows: Array, columns: Array) -> Array:
    """The picture at fractional places [H,W], between pixels bilinearly, with its mirror image beyond the edges."""
    height, width = picture.shape[:2]

    def mirrored(places: Array, size: int) -> Array:
        period = 2 * size
        wrapped = np.mod(places + 0.5, period)
        return np.clip(np.where(wrapped >= size, period - wrapped, wrapped) - 0.5, 0, size - 1)

    rows, columns = mirrored(rows, height), mirrored(columns, width)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return upper * (1 - down) + lower * down
