"""Tables of labelled clips, as Kinetics has them, and the source of training samples that they make."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from opencoca.config import PixelConfig
from opencoca.data.pixels import to_square
from opencoca.data.sample import Sample
from opencoca.data.video import FRAMES, Limits, Window, read_frames
from opencoca.errors import DataError


class Clip(NamedTuple):
    """A clip of a table: where it is, its label, and its caption, if it has one; the label stands in for it."""

    key: str
    path: Path
    label: str
    window: Window
    row: int
    caption: str = ""


class Table(NamedTuple):
    """The clips of a table, and (row, reason) of the rows that can't be used."""

    path: Path
    clips: list[Clip]
    skipped: list[tuple[str, str]]


def read_table(path: str | Path, split: str | None = None, folder: str | Path | None = None) -> Table:
    """The clips that a CSV lists, one a row, with the columns `label` and `path`, and perhaps `start`, `end` (seconds
    into the file), `split` and `caption`.

    Kinetics' own tables have `youtube_id`, `time_start` and `time_end` instead: their files are called
    `ID_START_END.mp4`, the times of six digits, and are cut already.

    Args: split takes only the rows of one split; folder is where paths start from, by default the table's own.
    Raises: DataError where the table can't be read, lacks a column, or has no row that can be used.
    """
    path = Path(path)
    folder = path.parent if folder is None else Path(folder)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as CSV in UTF-8 ({str(error)[:80]}); check it") from error
    columns = set(rows[0]) if rows else set()
    if "label" not in columns or not columns & {"path", "youtube_id"}:
        has = ", ".join(str(column) for column in sorted(map(str, columns))) or "none"
        raise DataError(f"{path} must have the columns label and path (or youtube_id); it has {has}")
    clips: dict[str, Clip] = {}
    skipped: list[tuple[str, str]] = []
    for number, row in enumerate(rows, 2):  # the header is row 1
        if split is not None and (row.get("split") or "") != split:
            continue
        try:
            clip = _clip(row, number, folder)
            if clip.key in clips:
                raise DataError(f"is in row {clips[clip.key].row} already; leave one out")
            clips[clip.key] = clip
        except DataError as error:
            skipped.append((f"row {number}", str(error)))
    if not clips:
        first = f"; row 2 {skipped[0][1]}" if skipped else f"; its splits are {_splits(rows)}"
        raise DataError(f"{path} has no clip that can be used{first}")
    return Table(path, list(clips.values()), skipped)


def _splits(rows: Sequence[dict[str, str]]) -> str:
    return ", ".join(sorted({row.get("split") or "(none)" for row in rows})) or "(none)"


def _clip(row: dict[str, str], number: int, folder: Path) -> Clip:
    label = (row.get("label") or "").strip()
    if not label:
        raise DataError("has no label; give it one")
    name, window = (row.get("path") or "").strip(), Window()
    if name:
        window = Window(_seconds(row.get("start"), "start") or 0.0, _seconds(row.get("end"), "end"))
        if window.end is not None and window.end <= window.start:
            raise DataError(f"ends at {window.end:g} s and starts at {window.start:g} s; swap them")
    elif youtube := (row.get("youtube_id") or "").strip():
        start, end = (_seconds(row.get(f"time_{edge}"), f"time_{edge}") for edge in ("start", "end"))
        if start is None or end is None:
            raise DataError(f"has no time_start or time_end, which the file of {youtube} is called by; fill them in")
        name = f"{youtube}_{int(start):06d}_{int(end):06d}.mp4"
    else:
        raise DataError("has no path; give it one")
    path = folder / name
    if "\0" in name or not path.exists():
        raise DataError(f"names {name!r}, which does not exist in {folder}; copy it there, or leave the row out")
    key = name if window == Window() else f"{name}#{window.start:g}-{'' if window.end is None else f'{window.end:g}'}"
    return Clip(key, path, label, window, number, (row.get("caption") or "").strip())


def _seconds(text: str | None, column: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"has the {column} {text!r}; write seconds, as in 4.5")
    return seconds


class ClipSource:
    """Clips as a loader's source: frames are a sample's pictures, made square already, its caption or label the text.

    Raises: DataError, when a sample is read, that names table and row of a clip that doesn't decode.
    """

    def __init__(
        self,
        table: Table,
        size_px: int,
        pixels: PixelConfig,
        frames: int = FRAMES,
        limits: Limits | None = None,
    ) -> None:
        self.table, self.size_px, self.pixels, self.frames, self.limits = table, size_px, pixels, frames, limits
        self.keys = [clip.key for clip in table.clips]
        self.skipped = table.skipped
        self.shards = [range(len(self.keys))]
        rows = [f"{clip.key}\t{clip.label}\t{clip.caption}" for clip in table.clips]
        self.fingerprint = hashlib.sha256("\n".join([f"{frames} frames", *rows]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        clip = self.table.clips[i]
        name = f"{self.table.path.name} row {clip.row} ({clip.path.name})"
        shown = read_frames(clip.path, self.frames, clip.window, self.limits, name)
        first, *others = (_bmp(to_square(frame, self.size_px, self.pixels)) for frame in shown)
        attributes = {"label": clip.label, "picture": clip.key}
        return Sample(clip.key, first, clip.caption or clip.label, attributes, more_pictures=tuple(others))


def _bmp(square: np.ndarray) -> bytes:
    """A file of every pixel as it is, which is quick to write and to read."""
    buffer = io.BytesIO()
    Image.fromarray(square).save(buffer, "BMP")
    return buffer.getvalue()
