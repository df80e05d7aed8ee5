"""What a picture must be besides like the query: taken when, how large, in which folder."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from opencoca.errors import DataError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Filters:
    """Bounds that a picture must keep; None and "" ask nothing.

    after, before: the day it was taken (EXIF), else last changed, both included. min_bytes, max_bytes: of its file.
    folder: below the indexed folder, with `/`, as in "2024/summer"; its subfolders count.
    """

    after: datetime.date | None = None
    before: datetime.date | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        if self.after and self.before and self.after > self.before:
            raise DataError(f"after {self.after} and before {self.before} leave no day; exchange them")
        if self.min_bytes is not None and self.max_bytes is not None and self.min_bytes > self.max_bytes:
            raise DataError(f"min_bytes {self.min_bytes} and max_bytes {self.max_bytes} leave no size; exchange them")
        parts = PurePosixPath(self.folder).parts
        if ".." in parts or self.folder.startswith("/") or "\0" in self.folder:
            raise DataError(f"the folder {self.folder!r} leaves what is indexed; name one below it, as in 2024/summer")
        object.__setattr__(self, "folder", "/".join(parts))

    def __bool__(self) -> bool:
        return self != Filters()


def day(text: str) -> datetime.date:
    """The day that "2024-05-31" means.

    Raises: DataError for anything else.
    """
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"{text!r} is no day; write it as in 2024-05-31") from error


def size(text: str) -> int:
    """The bytes that "200k", "1.5MB" or "2MiB" mean.

    Raises: DataError for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise DataError(f"{text!r} is no size; write it as in 200k or 1.5MB")
    return int(float(match[1]) * _UNITS[match[2]])
