"""Random changes of training pictures. Every number is drawn from (seed, epoch, sample) alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from opencoca.data.draws import uniforms

MAGNITUDES = 30  # the greatest magnitude of RandAugment


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Augmentation:
    """What happens to a picture, in this order: a random part is read, mirrored, changed by RandAugment, shifted.

    Fields as in `DataConfig`. fill is the level of what RandAugment's geometry leaves empty; a shift leaves white.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    randaugment: tuple[int, int] = (0, 0)
    max_shift_px: int = 0
    fill: int = 255

    @property
    def crops(self) -> bool:
        """Whether a random part of each picture is read, so that no two epochs read the same."""
        return self.crop_scale != (1.0, 1.0)

    def box(self, draw: int, width: int, height: int) -> Box | None:
        """The part of a picture of this size that is read, or None for all of it."""
        return random_box(uniforms(draw, "crop", 40), width, height, *self.crop_scale) if self.crops else None

    def apply(self, picture_HWC: np.ndarray, draw: int) -> np.ndarray:
        """The square picture uint8 [H,W,3] after all that follows the crop."""
        if self.flip and uniforms(draw, "flip", 1)[0] < 0.5:
            picture_HWC = picture_HWC[:, ::-1]
        operations, magnitude = self.randaugment
        if operations:
            image = Image.fromarray(np.ascontiguousarray(picture_HWC))
            for which, sign in uniforms(draw, "randaugment", 2 * operations).reshape(-1, 2):
                operation = OPERATIONS[int(which * len(OPERATIONS))]
                strength = magnitude / MAGNITUDES
                image = operation(image, -strength if sign < 0.5 else strength, self.fill)
            picture_HWC = np.asarray(image)
        return shifted(picture_HWC, draw, self.max_shift_px) if self.max_shift_px else picture_HWC


def random_box(draws: np.ndarray, width: int, height: int, least: float, most: float) -> Box:
    """A part of a picture with `least` to `most` of its area and a shape from 3:4 to 4:3.

    Args: draws are 40 numbers in [0, 1), for ten tries.
    Source: Inception's crop (Szegedy et al. 2015) as torchvision's RandomResizedCrop draws it. After ten parts that
      don't fit, the largest one of a fitting shape in the middle is read.
    """
    for area, shape, x, y in draws.reshape(-1, 4):
        pixels = width * height * (least + (most - least) * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return Box(int(x * (width - wide + 1)), int(y * (height - high + 1)), wide, high)
    wide, high = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return Box((width - wide) // 2, (height - high) // 2, wide, high)


def shifted(picture_HWC: np.ndarray, draw: int, most: int) -> np.ndarray:
    """The picture moved by up to `most` pixels on both axes, white filled in."""
    size = len(picture_HWC)
    span = 2 * most + 1
    top, left = draw % span, draw // span % span
    padded = np.full((size + 2 * most, size + 2 * most, 3), 255, np.uint8)
    padded[most : most + size, most : most + size] = picture_HWC
    return padded[top : top + size, left : left + size]


# RandAugment's operations (Cubuk et al. 2020, with the ranges of torchvision's RandAugment at 31 magnitudes): each
# takes an RGB image, a strength from -1 to 1, and the level that fills what becomes empty. Those without two
# directions take the strength's size. Geometry interpolates (bilinear), where torchvision takes the nearest pixel.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, coefficients: tuple[float, ...], fill: int) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=(fill,) * 3
    )


def _identity(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return image


def _shear_x(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return _affine(image, (1, 0.3 * strength, -0.15 * strength * image.height, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, -0.15 * strength * image.width), fill)


def _translate_x(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return _affine(image, (1, 0, round(150 / 331 * strength * image.width), 0, 1, 0), fill)


def _translate_y(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, round(150 / 331 * strength * image.height)), fill)


def _rotate(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=(fill,) * 3)


def _brightness(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength)


def _colour(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + 0.9 * strength)


def _contrast(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength)


def _sharpness(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength)


def _posterize(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def _solarize(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageOps.solarize(image, round(255 * (1 - abs(strength))) + (strength == 0))  # 256 changes nothing


def _autocontrast(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, fill: int) -> Image.Image:
    return ImageOps.equalize(image)


OPERATIONS: tuple[Operation, ...] = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)
