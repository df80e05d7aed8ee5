"""The 15 common corruptions at 5 severities, for pictures of any size.

Source: Hendrycks and Dietterich 2019 (ImageNet-C), whose parameters are for squares of 224 pixels.
Differs: lengths (radii, sigmas, offsets) are multiplied by size / 224, so that a small picture suffers as much of
  itself; JPEG's blocks stay 8 pixels, which is more of a small picture. Noise, brightness, contrast, pixelation and
  JPEG are as there. Blurs are by our kernels, glass takes each pixel from a random place nearby instead of swapping,
  fog is a random field of the same roughness, frost is a random field of ridges instead of photographs of ice, snow is
  blurred by our streaks. Figures are of the reference's kind, and not comparable with published ImageNet-C errors to
  the digit. All severities of one picture share their random draws. As in the reference, a higher severity of snow,
  frost, fog and the elastic transform doesn't always change more pixels (the elastic one shifts the whole picture in
  the first two, and parts of it in the others).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from opencoca.errors import ConfigError
from opencoca.eval.robustness import fields

REFERENCE_PX = 224
SEVERITIES = (1, 2, 3, 4, 5)
Array = np.ndarray
# A corruption of a picture [H,W,3] with values 0 to 1: (picture, level 0 to 4, scale = size / 224, rng) -> the same
# form, before it is clipped and rounded.
Corruption = Callable[[Array, int, float, np.random.Generator], Array]


def corrupted(square: Array, name: str, severity: int, sample_id: str, seed: int = 0) -> Array:
    """The square uint8 [H,W,3] under a corruption at severity 1 to 5; depends on nothing but the arguments.

    Raises: ConfigError for another name or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ConfigError(
            f"there is no {name!r} of severity {severity}; corruptions are {', '.join(CORRUPTIONS)}, 1 to 5"
        )
    digest = hashlib.sha256(f"{seed}\0{name}\0{sample_id}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    scale = square.shape[0] / REFERENCE_PX
    made = CORRUPTIONS[name](square / 255.0, severity - 1, scale, rng)
    return np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Normal noise on every value."""
    return picture + rng.standard_normal(picture.shape) * (0.08, 0.12, 0.18, 0.26, 0.38)[level]


def shot_noise(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Poisson noise, as of a camera with few photons."""
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(picture * photons) / photons


def impulse_noise(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Values that are fully on or off, at random."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit, on = rng.random(picture.shape) < share, rng.random(picture.shape) < 0.5
    return np.where(hit, on.astype(float), picture)


def defocus_blur(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The blur of a lens out of focus: a disk."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    return fields.convolved(picture, fields.disk(radius * scale, edge * scale))


def glass_blur(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Frosted glass: pixels come from random places nearby, between two blurs."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    made = fields.gaussian(picture, sigma * scale)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(float)
    for _ in range(times):
        down, across = rng.uniform(-reach, reach, (2, *rows.shape)) * max(scale, 0.3)
        made = fields.gathered(made, rows + down, columns + across)
    return fields.gaussian(made, sigma * scale)


def motion_blur(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The trail of a camera that moves, in a direction within 45 degrees of level."""
    length, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle = math.radians(rng.uniform(-45, 45))
    return fields.convolved(picture, fields.streak(length * scale, sigma * scale, angle))


def zoom_blur(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The mean of the picture and of itself, enlarged more and more."""
    last, step = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))[level]
    factors = np.arange(1, last + step / 2, step)
    return (picture + sum(fields.zoomed(picture, factor) for factor in factors)) / (len(factors) + 1)


def snow(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Flakes that fall aslant, over a picture that is whitened."""
    mean, spread, zoom, threshold, length, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = fields.zoomed(mean + spread * rng.standard_normal(picture.shape[:2]), max(1.0, zoom * scale))
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    angle = math.radians(rng.uniform(45, 135))
    flakes = fields.convolved(flakes, fields.streak(length * scale, sigma * scale, angle))[..., None]
    whitened = np.maximum(picture, _grey(picture)[..., None] * 1.5 + 0.5)
    return kept * picture + (1 - kept) * whitened + flakes + flakes[::-1, ::-1]


def frost(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Ice on the lens: bright bluish ridges over a picture that is dimmed."""
    kept, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    size = picture.shape[0]
    fine, coarse = fields.cloud(size, 1.6, rng), fields.cloud(size, 2.5, rng)
    ridges = np.clip(1 - 3 * np.abs(fine - 0.5), 0, 1) * (0.4 + 0.6 * coarse)
    return kept * picture + ice * ridges[..., None] * np.array([0.85, 0.95, 1.0])


def fog(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """A pale cloud over the picture, scaled so that the brightest value stays."""
    density, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    brightest = picture.max()
    made = picture + density * fields.cloud(picture.shape[0], decay, rng)[..., None]
    return made * brightest / (brightest + density)


def brightness(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The value of HSV raised; hue and saturation stay."""
    value = picture.max(axis=2, keepdims=True)
    raised = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return np.where(value > 0, picture * raised / np.maximum(value, 1e-12), raised)


def contrast(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Values drawn together about each channel's mean."""
    mean = picture.mean(axis=(0, 1), keepdims=True)
    return (picture - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def elastic_transform(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """Small parts pulled about: a smooth random shift of every pixel, after a small affine one."""
    strength, smoothness, corner = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    size = picture.shape[0]
    rows, columns = np.mgrid[:size, :size].astype(float)
    moved = rng.uniform(-1, 1, (3, 2)) * corner * size
    third = size / 3
    corners = size / 2 + np.array([[third, third], [third, -third], [-third, -third]])
    affine = np.linalg.solve(np.column_stack([corners, np.ones(3)]), corners + moved)
    places = np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ affine
    noise = rng.uniform(-1, 1, (2, size, size))
    # A smoothed value gets smaller as the pixels that it is smoothed over get more: hence the scale.
    shift = [fields.gaussian(one, smoothness * size) * strength * size * scale for one in noise]
    return fields.gathered(picture, places[..., 0] + shift[0], places[..., 1] + shift[1])


def pixelate(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The picture at a fraction of its size, enlarged again as blocks."""
    height, width = picture.shape[:2]
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    small = fields.resized(picture, (max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return fields.resized(small, (width, height), Image.Resampling.BOX)


def jpeg_compression(picture: Array, level: int, scale: float, rng: np.random.Generator) -> Array:
    """The picture as a JPEG file of low quality."""
    file = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")) / 255.0


def _grey(picture: Array) -> Array:
    return picture @ np.array([0.299, 0.587, 0.114])


NOISE = (gaussian_noise, shot_noise, impulse_noise)
BLUR = (defocus_blur, glass_blur, motion_blur, zoom_blur)
WEATHER = (snow, frost, fog, brightness)
DIGITAL = (contrast, elastic_transform, pixelate, jpeg_compression)
CORRUPTIONS: dict[str, Corruption] = {one.__name__: one for one in (*NOISE, *BLUR, *WEATHER, *DIGITAL)}
