"""From any picture to an array the model takes: opened with care, made square, normalised.

Everything that comes from outside passes `open_picture`; what it returns is a plain RGB image.

Of an opaque, upright picture with 8 bits a channel, CLIP's mean and std and `indexed="nearest"` make what OpenCLIP's
preprocessing makes, to rounding. Elsewhere the two differ on purpose, so that the model gets what people see:

- transparency lies on white; OpenCLIP drops it, and colours come out that were hidden;
- EXIF rotation is applied; OpenCLIP leaves such a picture on its side;
- 16-bit and float grey is scaled to 8 bits; OpenCLIP clips it, mostly to white;
- CMYK is converted before it is scaled; OpenCLIP scales the inks.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from opencoca.config import PixelConfig
from opencoca.errors import DataError, TooLargeError

if TYPE_CHECKING:
    import torch  # only `normalised` needs it: worker processes do without

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
INDEXED = "opencoca_indexed"  # stands in the `info` of an RGB image whose file had a colour table or one bit
MAX_PIXELS = 64_000_000  # 256 MB once decoded to RGBA
WHITE = (255, 255, 255)

_quiet = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings; one thread at a time, since that changes the whole process."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_picture(
    source: str | Path | bytes | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """The picture as an upright RGB image: transparency on white, 16-bit grey scaled to 8, the first frame of several.

    Args: source is a path, the bytes of a file, an image, or a uint8 array [H,W], [H,W,1], [H,W,3] or [H,W,4]; name is
      what an error calls it (by default the path). HEIC files need the extra `heif`.
    Raises: DataError if the picture is missing, unreadable, empty, truncated or of another format; TooLargeError, which
      is one too, if it is larger than max_pixels (which its header tells, before anything is decoded).
    """
    if isinstance(source, Image.Image):
        name = name or "the image"
        _check_size(source.size, max_pixels, name)
        image = _load(source, name)
    elif isinstance(source, np.ndarray):
        name = name or "the array"
        image = _from_array(source, max_pixels, name)
    elif isinstance(source, bytes | bytearray | memoryview):
        name = name or f"the picture in memory ({len(source)} bytes)"
        if not len(source):
            raise DataError(f"{name} is empty; give the bytes of a picture file")
        return _decode(io.BytesIO(source), max_pixels, name)
    elif isinstance(source, str | os.PathLike):
        return _open_path(Path(source), max_pixels, name or str(source))
    else:
        raise DataError(
            f"a picture can't be a {type(source).__name__}; give a path, bytes, a PIL image or a uint8 array"
        )
    return _to_rgb(image, name)


def _open_path(path: Path, max_pixels: int, name: str) -> Image.Image:
    try:
        if path.is_dir():
            raise DataError(f"{name} is a folder; give a picture file in it")
        if path.exists() and not path.is_file():
            raise DataError(f"{name} is not a plain file; give a picture file")  # reading a pipe might never end
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise DataError(f"{name} is empty (0 bytes); copy or download it again")
            return _decode(file, max_pixels, name)
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; check the path") from error
    except PermissionError as error:
        raise DataError(f"{name} can't be read (permission denied); change its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise DataError(f"{name} can't be opened ({error}); check the path") from error


def _from_array(array: np.ndarray, max_pixels: int, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        what = f"{array.dtype} {list(array.shape)}"
        raise DataError(f"{name} is {what}; give uint8 [H,W], [H,W,1], [H,W,3] or [H,W,4] with values from 0 to 255")
    _check_size((array.shape[1], array.shape[0]), max_pixels, name)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array))


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if not width or not height:
        raise DataError(f"{name} has {width} x {height} pixels; give a picture with at least one")
    if width * height > max_pixels:
        raise TooLargeError(
            f"{name} has {width} x {height} pixels, more than {max_pixels:,}; make it smaller or raise max_pixels"
        )


def _decode(file: IO[bytes], max_pixels: int, name: str) -> Image.Image:
    formats = _heic_formats(name) if _is_heic(file) else FORMATS
    try:
        with quiet():  # Pillow only warns of sizes that are refused below
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a {', '.join(FORMATS)} picture, or is damaged; convert or replace it"
        ) from error
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise TooLargeError(f"{name} has more than {limit:,} pixels; make it smaller") from error
    except Exception as error:  # hostile headers make decoders raise whatever they like
        raise DataError(f"{name} is damaged ({error}); replace it") from error
    with image:
        _check_size(image.size, max_pixels, name)
        return _to_rgb(_load(image, name), name)


def _is_heic(file: IO[bytes]) -> bool:
    """Whether the file's first box names a brand of HEIC and none of AVIF, which Pillow reads itself."""
    head = file.read(64)
    file.seek(0)
    major, compatible = head[8:12], head[16 : int.from_bytes(head[:4], "big")]
    brands = {major, *(compatible[i : i + 4] for i in range(0, len(compatible), 4))}
    return head[4:8] == b"ftyp" and not brands.isdisjoint(HEIC_BRANDS) and brands.isdisjoint(AVIF_BRANDS)


def _heic_formats(name: str) -> tuple[str, ...]:
    """What Pillow calls HEIC, now that it can read it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise DataError(
            f"{name} is a HEIC picture; pip install 'opencoca[heif]' to read it, or convert it to JPEG"
        ) from error
    register_heif_opener()
    return ("HEIF",)


def _load(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{name} is truncated or damaged ({error}); copy or download it again") from error
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # damaged EXIF data: the picture itself may be good, so it is taken as it lies
            image = image.copy()
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_grey(image)
        indexed = image.mode in ("P", "1") and not image.has_transparency_data
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (*WHITE, 255))
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
        if indexed:
            image.info[INDEXED] = True
        return image
    except Exception as error:
        raise DataError(f"{name} can't be converted from {image.mode} to RGB ({error}); convert it to PNG") from error


def _to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of a 16-bit, 32-bit or float image, scaled rather than clipped.

    16-bit values keep their scale. Wider ones have none that a header tells, so they are stretched over what is there.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def to_square(image: Image.Image, size_px: int, pixels: PixelConfig) -> np.ndarray:
    """The image as a square array uint8 [H,W,3], H = W = size_px, made square and scaled as `pixels` says.

    Source: the rounding of OpenCLIP's preprocessing (torchvision's Resize and CenterCrop for "crop").
    Differs: of a picture over 16 times as long as wide only the kept part is resampled, so that "crop" costs no memory;
      and "pad" leaves at least one pixel of it, where OpenCLIP fails. See also the module's docstring.
    """
    image = image if image.mode == "RGB" else _to_rgb(image, "the image")
    width, height = image.size
    nearest = pixels.indexed == "nearest" and INDEXED in image.info
    resample = Image.Resampling.NEAREST if nearest else FILTERS[pixels.resample]
    if pixels.fit == "crop":
        wide, high, left, top = _cut_out(width, height, size_px)
        if max(wide, high) <= 16 * size_px:
            image = image.resize((wide, high), resample)
            return np.asarray(image.crop((left, top, left + size_px, top + size_px)))
        return np.asarray(image.resize((size_px, size_px), resample, box=kept_by_crop(width, height, size_px)))
    if pixels.fit == "pad":
        ratio = max(width, height) / size_px
        wide, high = max(1, round(width / ratio)), max(1, round(height / ratio))
        square = Image.new("RGB", (size_px, size_px), (pixels.fill,) * 3)
        square.paste(image.resize((wide, high), resample), ((size_px - wide) // 2, (size_px - high) // 2))
        return np.asarray(square)
    if pixels.fit == "squash":
        return np.asarray(image.resize((size_px, size_px), resample))
    raise DataError(f"fit is {pixels.fit!r}; choose 'crop', 'pad' or 'squash'")


def kept_by_crop(width: int, height: int, size_px: int) -> tuple[float, float, float, float]:
    """The part of a picture that `fit` "crop" keeps: left, top, right and bottom edge in its pixels."""
    wide, high, left, top = _cut_out(width, height, size_px)
    across, down = width / wide, height / high
    return left * across, top * down, min((left + size_px) * across, width), min((top + size_px) * down, height)


def _cut_out(width: int, height: int, size_px: int) -> tuple[int, int, int, int]:
    """(width, height) that a picture is scaled to, and (left, top) of the square that is then cut out of it."""
    short = min(width, height)
    wide, high = int(size_px * width / short), int(size_px * height / short)
    return wide, high, round((wide - size_px) / 2), round((high - size_px) / 2)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """float32 [B,3,H,W] of uint8 [B,H,W,3] or [H,W,3]: (value / 255 - mean) / std, per channel.

    Args: mean and std are of R, G and B, for values from 0 to 1.
    """
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}; give uint8 [B,H,W,3] or [H,W,3]")
    levels = _levels(tuple(mean), tuple(std))
    normalised = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    for channel in range(3):
        normalised[:, channel] = levels[channel][pixels[..., channel]]
    return normalised


def normalised(pixels: torch.Tensor, config: PixelConfig) -> torch.Tensor:
    """float32 [B,3,H,W] of uint8 [B,3,H,W], on the same device and to the bit what `normalise` gives.

    Several pictures of a row stand behind each other, three channels each. Pixels that are float already pass
    unchanged.
    """
    import torch

    if pixels.is_floating_point():
        return pixels
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] % 3:
        raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}; give uint8 [B,3,H,W]")
    levels = torch.from_numpy(_levels(tuple(config.mean), tuple(config.std))).to(pixels.device)
    values = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    for channel in range(pixels.shape[1]):
        plane = pixels[:, channel]
        values[:, channel] = levels[channel % 3].index_select(0, plane.reshape(-1).int()).view(plane.shape)
    return values


@functools.lru_cache(maxsize=8)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [3,256]: there are only 256 values a channel, so that looking up is exact and quick."""
    scaled = (np.arange(256) / 255 - np.asarray(mean, float)[:, None]) / np.asarray(std, float)[:, None]
    return scaled.astype(np.float32)
