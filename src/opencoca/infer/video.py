"""Clips in, embeddings and captions out, with any model of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opencoca.data.clips import Clip
from opencoca.data.pixels import to_square
from opencoca.data.video import FRAMES, Limits, Window, read_frames
from opencoca.errors import DataError
from opencoca.infer import heads, stream
from opencoca.infer.captioning import GenerationChanges
from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import READERS
from opencoca.model.video import frame_tokens, mean_of_frames, space_time
from opencoca.types import ImageFeatures

Video = str | Path | Clip | np.ndarray
How = Literal["mean", "pooled"]
OnBad = Callable[[Any, DataError], None]


class Encoded(NamedTuple):
    """A clip, its place in the input, what the poolers make of all its frames, and its frames' own embeddings [F,E]."""

    video: Video
    place: int
    features: ImageFeatures
    frames: Tensor


def encode_videos(
    predictor: Predictor,
    videos: Video | Iterable[Video],
    frames: int = FRAMES,
    on_bad: OnBad | None = None,
    limits: Limits | None = None,
) -> Iterator[Encoded]:
    """Each clip with its features [1,E] and [1,Q,D], one after the other; the next ones are read meanwhile.

    A clip is a path of a video file or of a folder of frames, a `Clip` of a table, or frames uint8 [F,H,W,3], all of
    which are read. With `on_bad`, it is called with each clip that can't be read, which is left out.
    """
    for video, place, squares in _squares(predictor, videos, frames, on_bad, limits):
        tokens_1FPD = _tokens(predictor, squares)
        with torch.no_grad():
            embeds_FE = predictor.model.pool(tokens_1FPD[0]).embed
            features = predictor.model.pool(space_time(predictor.model, tokens_1FPD))
        yield Encoded(video, place, features, embeds_FE)


def embed_videos(
    predictor: Predictor,
    videos: Video | Iterable[Video],
    frames: int = FRAMES,
    how: How = "mean",
    on_bad: OnBad | None = None,
) -> Tensor:
    """Unit-norm embeddings float32 [I,E] on the CPU: the mean of the frames' own, or one that is pooled over them all.

    Raises: DataError for a clip that can't be read, unless `on_bad` takes it.
    """
    embeds = [embedding(one, how) for one in encode_videos(predictor, videos, frames, on_bad)]
    return torch.stack(embeds) if embeds else torch.empty(0, predictor.model.config.embed_dim)


def embedding(encoded: Encoded, how: How = "mean") -> Tensor:
    """The embedding float32 [E] of an encoded clip, on the CPU."""
    chosen_1E = mean_of_frames(encoded.frames[None]) if how == "mean" else encoded.features.embed
    return chosen_1E[0].float().cpu()


def caption_videos(
    predictor: Predictor,
    videos: Video | Iterable[Video],
    frames: int = FRAMES,
    on_bad: OnBad | None = None,
    prompt: str = "",
    **changes: Unpack[GenerationChanges],
) -> Iterator[tuple[Video, str]]:
    """Each clip with a caption of all its frames; see `Predictor.caption`."""
    for one in encode_videos(predictor, videos, frames, on_bad):
        [[best, *_]] = predictor.caption_features(one.features, prompt=prompt, keys=[one.place], **changes)
        yield one.video, best.text


def recognise_videos(
    predictor: Predictor,
    videos: Video | Iterable[Video],
    frames: int = FRAMES,
    on_bad: OnBad | None = None,
    head: str | None = None,
) -> Iterator[tuple[Video, Tensor]]:
    """Each clip with the probabilities float32 [L] of the labels that the model's own head knows.

    Raises: ConfigError where the model has no such head (`coca video train` makes one).
    """
    chosen = heads.head_for(predictor, "encoder", head, pictures=1)
    for video, _, squares in _squares(predictor, videos, frames, on_bad):
        with torch.no_grad():
            tokens_1SD = space_time(predictor.model, _tokens(predictor, squares))
            yield video, predictor.model.tasks[chosen.name](tokens_1SD)[0].float().softmax(dim=-1).cpu()


def tokens_of(predictor: Predictor, clips: Sequence[Clip], frames: int = FRAMES) -> dict[str, Tensor]:
    """The encoder's tokens [1,F,P,D] of each clip, by its key. Raises: DataError for a clip that can't be read."""
    return {clips[place].key: _tokens(predictor, squares) for _, place, squares in _squares(predictor, clips, frames)}


def _tokens(predictor: Predictor, squares: np.ndarray) -> Tensor:
    """The encoder's tokens [1,F,P,D] of frames uint8 [F,H,W,3]."""
    pixels_FCHW = stream.to_input(squares, predictor.config.pixels, predictor.device)
    dtype = next(predictor.model.parameters()).dtype
    with torch.no_grad():
        return frame_tokens(predictor.model, pixels_FCHW[None].to(dtype))


def _squares(
    predictor: Predictor,
    videos: Video | Iterable[Video],
    frames: int,
    on_bad: OnBad | None = None,
    limits: Limits | None = None,
) -> Iterator[tuple[Video, int, np.ndarray]]:
    """Each clip that can be read, its place, and its frames made square, uint8 [F,H,W,3]; a few are read ahead."""
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels

    def read(video: Video) -> np.ndarray:
        return np.stack([to_square(frame, size_px, pixels) for frame in _frames(video, frames, limits)])

    one = isinstance(videos, str | Path | Clip) or (isinstance(videos, np.ndarray) and videos.ndim == 4)
    waiting: Sequence[Video] = [videos] if one else list(videos)  # type: ignore[list-item, arg-type]
    with ThreadPoolExecutor(READERS, thread_name_prefix="opencoca-video") as pool:
        ahead = {i: pool.submit(read, waiting[i]) for i in range(min(READERS, len(waiting)))}
        try:
            for place, video in enumerate(waiting):
                future = ahead.pop(place)
                if place + READERS < len(waiting):
                    ahead[place + READERS] = pool.submit(read, waiting[place + READERS])
                try:
                    squares = future.result()
                except DataError as error:
                    if on_bad is None:
                        raise
                    on_bad(video, error)
                    continue
                yield video, place, squares
        finally:
            for future in ahead.values():
                future.cancel()


def _frames(video: Video, count: int, limits: Limits | None) -> list[Image.Image]:
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
            raise DataError(f"a clip is {video.dtype} {list(video.shape)}; give frames uint8 [F,H,W,3]")
        return [Image.fromarray(frame) for frame in video]
    if isinstance(video, Clip):
        return read_frames(video.path, count, video.window, limits)
    return read_frames(video, count, Window(), limits)
