"""Files of words: a label or text a line."""

from __future__ import annotations

from pathlib import Path

from opencoca.errors import DataError


def lines(file: Path, option: str, what: str) -> list[str]:
    """The lines of a text file, without those that hold nothing but space.

    Raises: DataError, naming the option that gave the file, where it can't be read or holds none.
    """
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it isn't UTF-8 text"
        raise DataError(f"{option} {file} can't be read ({reason}); give a text file with a {what} a line") from error
    if not found:
        raise DataError(f"{option} {file} holds no {what}; write one a line")
    return found
