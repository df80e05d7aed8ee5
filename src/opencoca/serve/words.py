"""An optional filter of what the model says: texts that hold a word of a list are withheld."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from opencoca.errors import DataError

WITHHELD = "[withheld by this server's word list]"


class WordList:
    """Words and phrases, found whole and whatever their case, accents' encoding or the space between them."""

    def __init__(self, words: list[str]) -> None:
        found = [re.escape(_plain(word)).replace(r"\ ", r"\W+") for word in words if _plain(word)]
        self._found = re.compile(rf"(?<!\w)(?:{'|'.join(found)})(?!\w)") if found else None

    @classmethod
    def load(cls, path: Path | None) -> WordList:
        """The words of a file, one a line; lines that begin with # say nothing. Raises: DataError."""
        if path is None:
            return cls([])
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no word list that can be read ({error}); give a UTF-8 text file") from error
        return cls([line for line in lines if not line.lstrip().startswith("#")])

    def __bool__(self) -> bool:
        return self._found is not None

    def holds(self, text: str) -> bool:
        """Whether the text has one of the words."""
        return self._found is not None and self._found.search(_plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
