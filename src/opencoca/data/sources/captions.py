"""What counts as a caption, and how several of them are told from a value."""

from __future__ import annotations

import json
from typing import Any

MOST_CHARACTERS = 20_000
MOST_CAPTIONS = 1_000


class UnfitError(ValueError):
    """A value that can't be used; its text goes on from "it" or "its": "its caption is empty"."""


def cleaned(value: Any) -> str:
    """The caption without white space around it.

    Raises: UnfitError for what isn't text, is empty, invisible, not Unicode, or longer than a book's chapter.
    """
    if not isinstance(value, str):
        raise UnfitError("it has no caption" if value is None else f"its caption is a {type(value).__name__}, not text")
    text = value.strip()
    if len(text) > MOST_CHARACTERS:
        raise UnfitError(f"its caption has {len(text)} characters, more than {MOST_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfitError("its caption isn't UTF-8") from error
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise UnfitError("its caption is empty")
    return text


def texts_of(value: Any) -> list[Any]:
    """The captions in a table's cell: a list, a list written as JSON, or the one that it is."""
    if isinstance(value, str) and value.lstrip().startswith('["') and value.rstrip().endswith('"]'):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    return list(value[:MOST_CAPTIONS]) if isinstance(value, list | tuple) else [value]


def parsed_json(content: bytes | str) -> Any:
    """The value of a JSON text. Raises: UnfitError that tells where it isn't JSON."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise UnfitError(f"it isn't JSON (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise UnfitError(f"it isn't UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; lists in lists in lists ...
        raise UnfitError(f"it isn't JSON that can be read ({str(error)[:80]})") from error
