"""Pictures as a stream of batches: memory doesn't grow with their number, and a bad one needn't stop it.

Files are read by a few threads while the model works on the batch before. What could change behind our back (arrays,
images, buffers that a generator fills again and again) is read at once, by the caller's thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opencoca.config import PixelConfig
from opencoca.data.pixels import normalise, open_picture, to_square
from opencoca.errors import DataError
from opencoca.types import ImageFeatures

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor

Picture = str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray | Tensor
Pictures = Picture | Iterable[Picture]
OnBad = Callable[[Any, DataError], None]
T = TypeVar("T")

READERS = min(8, os.cpu_count() or 1)

_one_loads = threading.Lock()  # Pillow reads a file when its image is first used; two threads may hold that image


class Squares(NamedTuple):
    """A batch of readable pictures: as they were given, their places in the input, and as uint8 [B,H,W,3]."""

    pictures: list[Any]
    places: list[int]
    squares: np.ndarray


def each_picture(images: Pictures) -> Iterator[Picture]:
    """The pictures one by one: `images` is one, an array or tensor of many, or anything that can be iterated over.

    Raises: DataError for anything else.
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        yield from images
    elif isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        yield from images.tolist()
    elif is_one(images):
        yield cast(Picture, images)
    elif isinstance(images, Iterable) and getattr(images, "ndim", 1) > 0:
        yield from cast(Iterable[Picture], images)
    else:
        raise DataError(
            f"images can't be a {type(images).__name__}; give a path, bytes, a PIL image or a uint8 array, or many"
        )


def is_one(images: object) -> bool:
    """True for what is one picture, and not many."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim in (2, 3)
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    return isinstance(images, one) or hasattr(images, "read")


def squares(
    images: Pictures, size_px: int, pixels: PixelConfig, batch_size: int, on_bad: OnBad | None = None
) -> Iterator[Squares]:
    """Batches of up to `batch_size` pictures, read and made square, in order; the next batch is read meanwhile.

    A picture is shrunk as soon as it is read: at most two batches of squares and one full picture per reader are held.
    With `on_bad`, it is called with each picture that can't be read, and the stream goes on without it.

    Raises: DataError, without `on_bad`, for a picture that can't be read, in its turn.
    """

    def read(picture: Picture, name: str | None) -> np.ndarray:
        return to_square(_opened(picture, name), size_px, pixels)

    good: list[Any] = []
    places: list[int] = []
    made: list[np.ndarray] = []
    for place, (picture, square) in enumerate(_read_ahead(images, read, batch_size)):
        try:
            made.append(square.result())
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(picture, error)
            continue
        good.append(picture)
        places.append(place)
        if len(good) == batch_size:
            yield Squares(good, places, np.stack(made))
            good, places, made = [], [], []
    if good:
        yield Squares(good, places, np.stack(made))


def to_input(squares: np.ndarray, pixels: PixelConfig, device: torch.device) -> Tensor:
    """Normalised pixels float32 [B,3,H,W] on a device, of uint8 [B,H,W,3]."""
    if device.type == "cpu":
        return torch.from_numpy(normalise(squares, pixels.mean, pixels.std))
    return looked_up(squares, pixels, device)


def looked_up(squares: np.ndarray, pixels: PixelConfig, device: torch.device) -> Tensor:
    """The values that `normalise` gives: bytes travel to the device, and a table makes them floats there."""
    values = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(3, axis=-1)
    table_CN = torch.from_numpy(normalise(values, pixels.mean, pixels.std))[0, :, 0].to(device)
    bytes_BHWC = torch.from_numpy(squares).to(device).int()
    return torch.stack([table_CN[c][bytes_BHWC[..., c]] for c in range(3)], dim=1)


def one_each(
    values: str | Sequence[str],
    images: Pictures | Sized,
    what: str,
    convert: Callable[[str], T],
    per: str = "pictures",
) -> Callable[[int], T]:
    """The converted value of the picture in each place: one string for all of them, or one each.

    per: what an error calls that which stands in each place.

    Raises: DataError where there are more or fewer than pictures, at once if the number of pictures is known.
    """
    if isinstance(values, str):
        value = convert(values)
        return lambda place: value
    if not isinstance(values, Iterable):
        raise DataError(f"{what} can't be a {type(values).__name__}; give one for all {per}, or a list of one each")
    values = list(values)
    count = 1 if is_one(images) else len(images) if isinstance(images, Sized) else None
    if count is not None and count != len(values):
        raise DataError(f"there are {len(values)} {what} for {count} {per}; give one for all, or one each")
    converted = [convert(value) for value in values]

    def value_at(place: int) -> T:
        if place >= len(converted):
            raise DataError(f"there are {len(converted)} {what} and more {per}; give one for all, or one each")
        return converted[place]

    return value_at


def encoded(predictor: Predictor, paths: Iterable[Path], on_bad: OnBad) -> Iterator[tuple[list[Path], ImageFeatures]]:
    """The readable pictures and their features, up to `predictor.batch_size` at a time, in the order of `paths`.

    `on_bad` is called with each picture that can't be read.
    """
    for batch in predictor.squares(paths, on_bad):
        yield batch.pictures, predictor.encode_squares(batch.squares)


def _read_ahead(
    images: Pictures, read: Callable[[Picture, str | None], np.ndarray], ahead: int
) -> Iterator[tuple[Picture, Future[np.ndarray]]]:
    """Each picture with its square to come; up to `ahead` more are being read, or wait."""
    waiting: deque[tuple[Picture, Future[np.ndarray]]] = deque()
    many = not is_one(images)
    with ThreadPoolExecutor(READERS, thread_name_prefix="opencoca-read") as pool:
        try:
            for i, picture in enumerate(each_picture(images)):
                if isinstance(picture, str | os.PathLike):
                    future = pool.submit(read, picture, None)
                elif isinstance(picture, bytes):
                    future = pool.submit(read, picture, f"images[{i}]" if many else None)
                else:
                    future = _read_now(read, picture, f"images[{i}]" if many else None)
                waiting.append((picture, future))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _read_now(read: Callable[[Picture, str | None], np.ndarray], picture: Picture, name: str | None) -> Future:
    future: Future[np.ndarray] = Future()
    try:
        future.set_result(read(picture, name))
    except DataError as error:
        future.set_exception(error)
    return future


def _opened(picture: Picture, name: str | None) -> Image.Image:
    if isinstance(picture, Image.Image):
        with _one_loads:
            return open_picture(picture, name=name)
    if isinstance(picture, Tensor):
        return open_picture(_array(picture, name or "the tensor"), name=name or "the tensor")
    if hasattr(picture, "read"):
        return open_picture(cast(IO[bytes], picture).read(), name=name or "the open file")
    return open_picture(cast(Any, picture), name=name)


def _array(tensor: Tensor, name: str) -> np.ndarray:
    """The tensor as an array [H,W,C]; channels come first in it where its first axis can be channels."""
    if tensor.dtype != torch.uint8:
        raise DataError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
            "give uint8 [C,H,W] or [H,W,C] with values from 0 to 255"
        )
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    return tensor.detach().cpu().numpy()
