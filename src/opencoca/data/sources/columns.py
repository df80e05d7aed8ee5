"""Which column of a table is what, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opencoca.errors import DataError

PATHS = (
    "path", "image_path", "img_path", "picture_path", "file_name", "filename", "filepath", "file_path", "image_file",
    "image_name", "image", "img", "picture", "file", "photo",
)  # fmt: skip
CAPTIONS = (
    "caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "comment", "alt_text",
    "alt", "prompt", "raw",
)  # fmt: skip
LABELS = ("labels", "label", "classes", "class", "categories", "category", "tags", "keywords")
SPLITS = ("split", "set", "subset", "partition")
KEYS = ("key", "__key__", "id", "uid", "image_id")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    "restval": "restval",
}


class Columns(NamedTuple):
    """The names of a table's columns, as the table writes them."""

    path: str
    captions: tuple[str, ...]
    labels: str | None
    split: str | None

    def told(self) -> dict[str, str]:
        """What was found, for people."""
        told = {"picture": self.path, "caption": ", ".join(self.captions), "label": self.labels, "split": self.split}
        return {what: name for what, name in told.items() if name}


def plain(name: Any) -> str:
    """A column's name in small letters, with _ between its words."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def find(names: Iterable[Any], where: str) -> Columns:
    """The columns of pictures, captions (or labels) and splits.

    Raises: DataError that lists the columns there are, if one that is needed isn't among them.
    """
    given = [name for name in names if isinstance(name, str)]
    by_name: dict[str, str] = {}
    for name in given:
        by_name.setdefault(plain(name), name)
    path = first(by_name, PATHS)
    caption = first(by_name, CAPTIONS)
    labels = None if caption else first(by_name, LABELS)
    if path is None or (caption is None and labels is None):
        missing, known = ("pictures", PATHS) if path is None else ("captions", CAPTIONS)
        there = ", ".join(name[:40] for name in given[:20]) or "none"
        raise DataError(f"{where} has no column of {missing} (its columns: {there}); call it {', '.join(known[:4])}")
    more = [] if caption is None else [n for n in given if re.fullmatch(rf"{plain(caption)}_?\d+", plain(n))]
    return Columns(path, tuple(filter(None, (caption, *more))), labels, first(by_name, SPLITS))


def first(by_name: Mapping[str, str], known: Sequence[str]) -> str | None:
    """The column whose name comes first among the known ones."""
    return next((by_name[name] for name in known if name in by_name), None)


def split_name(text: Any) -> str:
    """What a split is called here: val for validation, and so on."""
    return SPLIT_WORDS.get(plain(text), plain(text))


def split_in(name: str) -> str | None:
    """The split that a file's or folder's name tells, as in captions_val2017, or None."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def is_split_folder(name: str) -> bool:
    """True for train, val2017, ...: a folder that is a split and nothing else."""
    return re.fullmatch(r"([a-z]+)[_-]?\d*", name.lower()) is not None and split_in(name) is not None
