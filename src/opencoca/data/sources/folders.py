"""Folders of pictures: with a text file beside each, or with the folders' names as labels."""

from __future__ import annotations

from pathlib import PurePosixPath

from opencoca.data import storage
from opencoca.data.sources.captions import MOST_CHARACTERS
from opencoca.data.sources.labels import label_captions, readable
from opencoca.data.sources.pairs import FileSource, Pairs
from opencoca.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
MOST_LINES = 1_000


def picture_files(folder: str) -> tuple[list[str], set[str]]:
    """The pictures below a folder and its text files, as paths with / between; hidden ones are left out."""
    pictures, texts = [], set()
    for below, _, files in storage.walk(folder):
        for name in files:
            path = f"{below}/{name}" if below else name
            ending = PurePosixPath(name).suffix.lower()
            if ending in SUFFIXES:
                pictures.append(path)
            elif ending == ".txt":
                texts.add(path)
    return sorted(pictures), texts


def sidecar_of(picture: str) -> str:
    """The text file beside a picture."""
    return str(PurePosixPath(picture).with_suffix(".txt"))


def open_sidecars(folder: str, pictures: list[str]) -> FileSource:
    """Pictures with a text file beside each, cat.txt for cat.jpg; each line of it is a caption.

    Raises: DataError if nothing in it can be used.
    """
    pairs = Pairs()
    pairs.columns = {"picture": "files", "caption": ".txt beside each, a line each"}
    owners: dict[str, str] = {}
    for picture in pictures:
        sidecar = sidecar_of(picture)
        if owners.setdefault(sidecar, picture) != picture:
            pairs.skipped.append((picture, f"it shares {sidecar} with {owners[sidecar]}; rename one of the two"))
            continue
        try:
            location = storage.joined(folder, sidecar)
            storage.size_of(location, MOST_LINES * MOST_CHARACTERS)
            text = storage.read_file(location).decode("utf-8-sig")
        except DataError as error:
            pairs.skipped.append((picture, f"it has no caption: {error}"))
        except UnicodeDecodeError:
            pairs.skipped.append((picture, "its caption isn't UTF-8"))
        else:
            pairs.add(picture, picture, [line for line in text.splitlines() if line.strip()][:MOST_LINES])
    return pairs.finish(folder, folder)


def open_classes(folder: str, pictures: list[str]) -> FileSource:
    """Pictures in folders called as what they show; the names become captions (see `label_captions`).

    Raises: DataError if nothing in it can be used.
    """
    pairs = Pairs()
    pairs.columns = {"picture": "files", "label": "names of folders"}
    for picture in pictures:
        names = [readable(part) for part in PurePosixPath(picture).parts[:-1]]
        if names:
            pairs.add(picture, picture, label_captions(names))
        else:
            pairs.skipped.append((picture, "it lies in no folder that is a label, and has no .txt beside it"))
    return pairs.finish(folder, folder)
