"""Generated clips: real drawings (OpenMoji) that move over white. What they show is known, because it was made so.

Three kinds, all pure functions of (kind, split, number):

- "decisive": 16 frames, each with another drawing, of which one frame shows the class, the others what is no class;
- "motion": one drawing moves to the left or to the right; every clip to the right is one to the left played backwards;
- "named": one drawing moves all the time ("named-all"), or stands in one frame of 16, the others being blank.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from opencoca.data import openmoji

FRAMES, SIZE_PX, FPS = 16, 72, 8
CLASSES = {
    "cat": "1F408",
    "dog": "1F415",
    "horse": "1F40E",
    "elephant": "1F418",
    "penguin": "1F427",
    "turtle": "1F422",
    "butterfly": "1F98B",
    "fish": "1F41F",
}
OTHERS = (
    *("1F404", "1F416", "1F407", "1F401", "1F43B", "1F414", "1F40C", "1F433"),  # cow ... whale
    *(
        "1F34E",
        "1F34C",
        "1F370",
        "2615",
        "1F697",
        "1F6B2",
        "23F0",
        "1F511",
    ),  # apple banana cake cup car bicycle clock key
    *("1F4F7", "1F3B8", "1F451", "2602", "1F3E0", "1F383", "26BD", "1F4A1"),  # camera ... light bulb
)


class SpriteClip(NamedTuple):
    """A generated clip: its name, label, and frames uint8 [F,H,W,3]."""

    name: str
    label: str
    frames: np.ndarray


def decisive(split: str, number: int) -> SpriteClip:
    """A clip in one frame of which the class is seen; the other 15 show other things. Classes take turns."""
    chance = random.Random(f"decisive/{split}/{number}")
    label = list(CLASSES)[number % len(CLASSES)]
    shown = [chance.choice(OTHERS) for _ in range(FRAMES)]
    shown[chance.randrange(FRAMES)] = CLASSES[label]
    path = _path(chance)
    frames = [_frame(id, *path(i), chance.uniform(0.5, 0.7)) for i, id in enumerate(shown)]
    return SpriteClip(f"decisive-{split}-{number:04d}", label, np.stack(frames))


def motion(split: str, number: int) -> SpriteClip:
    """A clip of one drawing that moves across; numbers 2n and 2n + 1 hold the same frames, in opposite order.

    Drawings of one split aren't in another.
    """
    chance = random.Random(f"motion/{split}/{number // 2}")
    splits = ("train", "val", "test")
    drawings = (*CLASSES.values(), *OTHERS)[splits.index(split) :: len(splits)]
    id, height, scale = chance.choice(drawings), chance.uniform(0.2, 0.8), chance.uniform(0.4, 0.6)
    begin, end = chance.uniform(0.0, 0.25), chance.uniform(0.75, 1.0)
    frames = [_frame(id, begin + (end - begin) * i / (FRAMES - 1), height, scale) for i in range(FRAMES)]
    right = number % 2 == 0
    return SpriteClip(
        f"motion-{split}-{number:04d}", "right" if right else "left", np.stack(frames if right else frames[::-1])
    )


def named(id: str, caption: str, shown_frames: int = FRAMES) -> SpriteClip:
    """A clip of one drawing that moves, seen in so many frames in a row; the others are blank."""
    chance = random.Random(f"named/{id}/{shown_frames}")
    first, path, scale = chance.randint(0, FRAMES - shown_frames), _path(chance), chance.uniform(0.6, 0.85)
    blank = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    frames = [_frame(id, *path(i), scale) if first <= i < first + shown_frames else blank for i in range(FRAMES)]
    return SpriteClip(f"named-{id}-{shown_frames}", caption, np.stack(frames))


def write_table(folder: Path, splits: dict[str, Sequence[SpriteClip]], as_files: bool = True) -> Path:
    """Writes clips as MP4 files, or as folders of PNG frames, with clips.csv beside them, whose path comes back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "path", "split"])
        for split, clips in splits.items():
            for clip in clips:
                name = f"{clip.name}.mp4" if as_files else clip.name
                (write_video if as_files else write_frames)(folder / name, clip.frames)
                table.writerow([clip.label, name, split])
    return folder / "clips.csv"


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Frames uint8 [F,H,W,3], sides even, as a video file in MPEG-4, of high quality."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.qmin = stream.codec_context.qmax = 2
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Frames uint8 [F,H,W,3] as a folder of PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")


def _path(chance: random.Random) -> Callable[[int], tuple[float, float]]:
    """A straight way over the picture: where a drawing is in each frame, as shares of the room that it has."""
    (x, y), (u, v) = ((chance.random(), chance.random()) for _ in range(2))
    return lambda i: (x + (u - x) * i / (FRAMES - 1), y + (v - y) * i / (FRAMES - 1))


def _frame(id: str, across: float, down: float, scale: float) -> np.ndarray:
    side = round(scale * SIZE_PX)
    drawing = _drawing(id).resize((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
    square.paste(drawing, (round(across * (SIZE_PX - side)), round(down * (SIZE_PX - side))))
    return np.asarray(square)


@cache
def _drawing(id: str) -> Image.Image:
    return Image.open(io.BytesIO(openmoji.render(id, 2 * SIZE_PX))).convert("RGB")
