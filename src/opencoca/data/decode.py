"""From the bytes of a training picture to a square uint8 array: by Pillow, or, of JPEGs, by simplejpeg at reduced size.

libjpeg-turbo can decode a JPEG at n/8 of its size, which skips most of the work for a large one. Other pixels come out
than of a whole decode that is scaled down, so a run's configuration says which of the two it takes (`pixels.decoder`).
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

from opencoca.config import PixelConfig
from opencoca.data.augment import Box
from opencoca.data.pixels import FILTERS, INDEXED, MAX_PIXELS, kept_by_crop, open_picture, quiet, to_square
from opencoca.errors import ConfigError

CropBox = Callable[[int, int], Box | None]  # of the upright picture's width and height; None for all of it
TURNING = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/")  # what an orientation may stand in
UPRIGHT = {  # by EXIF orientation, as Pillow's ImageOps.exif_transpose does it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def require_decoder(pixels: PixelConfig) -> None:
    """Raises: ConfigError if the decoder that the configuration names isn't installed."""
    if pixels.decoder == "simplejpeg" and importlib.util.find_spec("simplejpeg") is None:
        raise ConfigError(
            "pixels.decoder is 'simplejpeg', which isn't installed; pip install 'opencoca[train]', or set "
            "pixels.decoder=pillow, which gives other pixels"
        )


def decode_square(
    content: bytes, size_px: int, pixels: PixelConfig, crop: CropBox | None = None, name: str | None = None
) -> np.ndarray:
    """The picture, or the part of it that `crop` names, as uint8 [H,W,3] with H = W = size_px.

    A part is scaled to the square whatever its shape; a whole picture is made square as `pixels.fit` says.

    Raises: DataError as `open_picture` does.
    """
    if pixels.decoder == "simplejpeg":
        square = _scaled_jpeg(content, size_px, pixels, crop)
        if square is not None:
            return square
    image = open_picture(content, name=name)
    return _square(image, crop(*image.size) if crop else None, size_px, pixels)


def _square(
    image: Image.Image, box: Box | None, size_px: int, pixels: PixelConfig, scale: tuple[float, float] = (1, 1)
) -> np.ndarray:
    """`image`, or the part `box` of the picture that it shows at `scale`, made square."""
    if box is None:
        return to_square(image, size_px, pixels)
    nearest = pixels.indexed == "nearest" and INDEXED in image.info
    resample = Image.Resampling.NEAREST if nearest else FILTERS[pixels.resample]
    x, y = scale
    right, bottom = min((box.left + box.width) * x, image.width), min((box.top + box.height) * y, image.height)
    edges = (box.left * x, box.top * y, right, bottom)
    return np.asarray(image.resize((size_px, size_px), resample, box=edges))


def _scaled_jpeg(content: bytes, size_px: int, pixels: PixelConfig, crop: CropBox | None) -> np.ndarray | None:
    """As `decode_square`; None for what is no plain JPEG, or damaged, which `open_picture` then reads or refuses."""
    import simplejpeg

    if content[:3] != b"\xff\xd8\xff":
        return None
    try:
        high, wide, colours, _ = simplejpeg.decode_jpeg_header(content)
        width, height = int(wide), int(high)
        if colours not in ("YCbCr", "Gray") or width * height > MAX_PIXELS:
            return None
        orientation = 1
        if any(tag in content for tag in TURNING):
            with quiet(), Image.open(io.BytesIO(content), formats=("JPEG",)) as header:
                orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
        lies = orientation in (5, 6, 7, 8)  # width and height change places
        upright = (height, width) if lies else (width, height)
        box = crop(*upright) if crop else None
        if box is None and pixels.fit == "crop":
            left, top, right, bottom = kept_by_crop(*upright, size_px)  # what would be cut off isn't resampled
            box = Box(left, top, right - left, bottom - top)
        least = _least_size(upright, box, size_px, pixels)
        min_width, min_height = reversed(least) if lies else least
        decoded = simplejpeg.decode_jpeg(content, "RGB", min_width=min_width, min_height=min_height)
    except Exception:  # decoders raise whatever they like; whether the picture is lost is for `open_picture` to say
        return None
    image = Image.fromarray(decoded)
    image = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    return _square(image, box, size_px, pixels, (image.width / upright[0], image.height / upright[1]))


def _least_size(size: tuple[int, int], box: Box | None, size_px: int, pixels: PixelConfig) -> tuple[int, int]:
    """The (width, height) to decode at least, so that nothing is enlarged that wouldn't be from the full size."""
    width, height = size
    if box is not None:
        needed = size_px / box.width, size_px / box.height
    elif pixels.fit == "squash":
        needed = size_px / width, size_px / height
    else:  # "pad": of "crop" the kept part is the box
        needed = (size_px / max(size),) * 2
    across, down = (min(1.0, share) for share in needed)
    return math.ceil(width * across), math.ceil(height * down)
