"""Clips as a few uniform frames: decoded with PyAV from video files, or read from folders that hold the frames.

A video file comes from outside: it may be of any size and name any other file or address. So its container must be one
of `CONTAINERS` (no playlist among them), nothing but the file itself is opened, and sizes are looked at first.
"""

from __future__ import annotations

import bisect
import math
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from opencoca.data.pixels import open_picture
from opencoca.errors import ConfigError, DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FRAMES = 16
SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".wmv", ".flv"})
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg,gif"
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
REPAIR = 'pip install "opencoca[video]"'


class Limits(NamedTuple):
    """What a clip may have at most: pixels of a frame, seconds of the file, and frames (or files) in it."""

    pixels: int = 8192 * 4320
    seconds: float = 2 * 3600.0
    frames: int = 500_000


class Window(NamedTuple):
    """The part of a clip that is read, in seconds from its beginning; an end of None is the clip's."""

    start: float = 0.0
    end: float | None = None


WHOLE = Window()


def read_frames(
    path: str | Path, count: int = FRAMES, window: Window = WHOLE, limits: Limits | None = None, name: str | None = None
) -> list[Image.Image]:
    """`count` upright RGB frames of a video file, or of a folder of pictures: those shown in the middle of equal parts.

    A clip with fewer frames shows some of them more than once.

    Args: name is what an error calls it, by default the path.
    Raises: DataError, in one line, for what is missing, damaged, cut short, over a limit or no video; ConfigError where
      PyAV isn't installed, or count is below 1.
    """
    if count < 1:
        raise ConfigError(f"{count} frames were asked for; take 1 or more")
    path, limits = Path(path), limits or Limits()
    name = name or str(path)
    _check_window(window, name)
    try:
        if path.is_dir():
            return _from_folder(path, count, window, limits, name)
        if not path.is_file():
            what = "is not a plain file" if path.exists() else "does not exist"
            raise DataError(f"{name} {what}; check the path")
        if path.stat().st_size == 0:
            raise DataError(f"{name} is empty (0 bytes); copy or download it again")
        return _from_file(path, count, window, limits, name)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise DataError(f"{name} can't be read ({_one_line(error)}); check the file and its permissions") from error


def is_video(path: Path) -> bool:
    """Whether a path is called like a video file."""
    return path.suffix.lower() in SUFFIXES


def places(count: int, length: int) -> list[int]:
    """The indices, of `length` frames, in the middle of `count` equal parts."""
    return [min(length - 1, int((i + 0.5) * length / count)) for i in range(count)]


def _from_folder(folder: Path, count: int, window: Window, limits: Limits, name: str) -> list[Image.Image]:
    if window != WHOLE:
        raise DataError(f"{name} is a folder of frames, which have no times; leave out its start and end")
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=_natural)
    if not files:
        raise DataError(f"{name} holds no frames (JPEG, PNG, WEBP or BMP files); name another folder or a video file")
    if len(files) > limits.frames:
        raise DataError(f"{name} holds {len(files)} frames, more than {limits.frames}; cut it into clips")
    chosen = places(count, len(files))
    opened = {i: open_picture(files[i], limits.pixels, f"{name}: {files[i].name}") for i in set(chosen)}
    return [opened[i] for i in chosen]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name.casefold())]


def _from_file(path: Path, count: int, window: Window, limits: Limits, name: str) -> list[Image.Image]:
    av = _pyav()
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with path.open("rb") as file:
        try:
            with av.open(file, options=options) as container:
                if not container.streams.video:
                    raise DataError(f"{name} has no picture track; name a video file")
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1  # clips are read side by side
                _check_size(stream, container.duration, limits, name)
                track = _track(container, stream, limits, name)
                wanted = track.wanted(count, window, name)
                frames = dict(_decoded(container, stream, track, sorted(set(wanted)), limits, name))
                return [frames[i] for i in wanted]
        except (av.error.FFmpegError, ValueError) as error:
            kinds = "MP4, MOV, MKV, WEBM, AVI, MPEG, WMV, FLV or GIF"
            raise DataError(
                f"{name} can't be decoded ({_one_line(error)}); it is damaged, or no {kinds} file: replace it"
            ) from error


class _Track(NamedTuple):
    """Presentation times of all frames, ascending, in ticks of `base` seconds, and those of the key frames."""

    ticks: list[int]
    keys: list[int]
    base: Fraction
    end: int  # when the last one is no longer shown

    def wanted(self, count: int, window: Window, name: str) -> list[int]:
        """The indices of the frames that are shown in the middle of `count` equal parts of the window."""
        first, last = float(self.ticks[0] * self.base), float(self.end * self.base)
        start, end = first + window.start, last if window.end is None else min(last, first + window.end)
        if start >= end:
            raise DataError(
                f"{name} lasts {last - first:.2f} s and is read from {window.start:g} s on; check its start"
            )
        times = (start + (i + 0.5) * (end - start) / count for i in range(count))
        return [max(0, bisect.bisect_right(self.ticks, float(t / self.base)) - 1) for t in times]


def _track(container: InputContainer, stream: VideoStream, limits: Limits, name: str) -> _Track:
    """The times in a file, from its packets: nothing is decoded for it."""
    ticks, keys, end, last_s = [], [], 0, 0.0
    for packet in container.demux():
        tick = packet.pts if packet.pts is not None else packet.dts
        if packet.size == 0 or tick is None:
            continue
        if packet.is_corrupt:
            raise DataError(f"{name} is damaged or cut short; copy or download it again")
        last_s = max(last_s, float((tick + (packet.duration or 0)) * (packet.time_base or 0)))
        if packet.stream_index != stream.index:
            continue
        ticks.append(tick)
        if packet.is_keyframe:
            keys.append(tick)
        end = max(end, tick + (packet.duration or 0))
        if len(ticks) > limits.frames:
            raise DataError(f"{name} has more than {limits.frames} frames; cut it into clips")
    base = stream.time_base
    if not ticks or base is None:
        raise DataError(f"{name} has no frames; replace it")
    ticks.sort()
    if end <= ticks[-1]:
        end = ticks[-1] + max(1, (ticks[-1] - ticks[0]) // max(1, len(ticks) - 1))
    said_s = (max(0, container.start_time or 0) + (container.duration or 0)) / 1e6
    if last_s < 0.95 * said_s - 1:  # else half a clip would pass for a whole one
        raise DataError(f"{name} is cut short: {last_s:.1f} s of {said_s:.1f} s are there; copy or download it again")
    if (seconds := float((end - ticks[0]) * base)) > limits.seconds:
        raise DataError(f"{name} lasts {seconds:.0f} s, more than {limits.seconds:g}; cut it into clips")
    return _Track(ticks, sorted(keys), base, end)


def _decoded(
    container: InputContainer, stream: VideoStream, track: _Track, wanted: Sequence[int], limits: Limits, name: str
) -> Iterator[tuple[int, Image.Image]]:
    """Each wanted frame; where a key frame lies between two of them, what is in front of it isn't decoded."""
    container.seek(track.ticks[0], stream=stream, backward=True)
    position, frames = track.ticks[0], _frames(container, stream)
    shown: VideoFrame | None = None
    following: VideoFrame | None = None
    for index in wanted:
        tick = track.ticks[index]
        key = bisect.bisect_right(track.keys, tick) - 1
        if key >= 0 and track.keys[key] > position:
            container.seek(tick, stream=stream, backward=True)
            frames, shown, following = _frames(container, stream), None, None
        while following is None or _tick(following) <= tick:
            if following is not None:
                shown = following
            following = next(frames, None)
            if following is None:
                break
        shown = shown or following
        if shown is None:
            at = float((tick - track.ticks[0]) * track.base)
            raise DataError(f"{name} has no frame at {at:.2f} s; it is damaged: copy or download it again")
        position = tick
        yield index, _picture(shown, limits, name)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    yield from container.decode(stream)


def _tick(frame: VideoFrame) -> int:
    tick = frame.pts if frame.pts is not None else frame.dts
    return 0 if tick is None else tick


def _picture(frame: VideoFrame, limits: Limits, name: str) -> Image.Image:
    if frame.width * frame.height > limits.pixels:  # the size may change from frame to frame
        raise DataError(f"{name} has a frame of {frame.width} x {frame.height} pixels, over {limits.pixels}; scale it")
    if frame.is_corrupt:
        raise DataError(f"{name} has damaged frames; copy or download it again")
    array = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # as phones store what was held upright
    return Image.fromarray(np.ascontiguousarray(np.rot90(array, turns)))


def _check_size(stream: VideoStream, duration: int | None, limits: Limits, name: str) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width or not height:
        raise DataError(f"{name} has frames of {width} x {height} pixels; it is damaged: replace it")
    if width * height > limits.pixels:
        raise DataError(f"{name} has frames of {width} x {height} pixels, more than {limits.pixels:,}; make it smaller")
    if duration is not None and duration / 1e6 > limits.seconds:
        raise DataError(f"{name} lasts {duration / 1e6:.0f} s, more than {limits.seconds:g}; cut it into clips")


def _check_window(window: Window, name: str) -> None:
    start, end = window
    if not math.isfinite(start) or start < 0 or (end is not None and not (math.isfinite(end) and end > start)):
        raise DataError(f"{name}: start {start:g} and end {end} must be seconds from 0 on, the end behind the start")


def _pyav() -> Any:
    try:
        import av
        import av.logging
    except ImportError as error:
        raise ConfigError(f"PyAV, which reads videos, is not installed ({error}); run: {REPAIR}") from error
    av.logging.set_level(av.logging.PANIC)  # errors are raised; what FFmpeg says besides goes past standard error
    return av


def _one_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(os.fsdecode(said).split())[:120]
