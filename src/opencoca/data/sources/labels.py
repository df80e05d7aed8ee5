"""The captions in a row of a table; and labels as text, as CoCa reads JFT's: names shuffled, joined and prompted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opencoca.data.sources.captions import texts_of
from opencoca.data.sources.columns import Columns

PROMPT = "a photo of the {}"
MOST_SHUFFLED = 4


def label_captions(names: Sequence[str]) -> tuple[str, ...]:
    """Every order of a picture's label names, as captions; the loader draws one of them each epoch.

    Of more than four names only the turns of the list and of its reverse: their orders are too many.
    Source: CoCa section 4.1, "a photo of the cat, animal".
    """
    names = list(dict.fromkeys(names))
    if len(names) <= MOST_SHUFFLED:
        orders = [list(order) for order in itertools.permutations(names)]
    else:
        turns = [names[i:] + names[:i] for i in range(len(names))]
        orders = turns + [turn[::-1] for turn in turns]
    return tuple(PROMPT.format(", ".join(order)) for order in orders)


def readable(name: str) -> str:
    """A folder's name as words: 001.golden_retriever is "golden retriever"."""
    words = re.sub(r"^\d+[._ -]+(?=\D)", "", name)
    return re.sub(r"[_\s-]+", " ", words).strip() or name


def names_of(value: Any) -> list[str]:
    """The label names in a table's cell: a list, or text with ; | or , between them."""
    if isinstance(value, str):
        separator = next((mark for mark in (";", "|", ",") if mark in value), ";")
        value = value.split(separator)
    if not isinstance(value, list | tuple):
        return []
    return [readable(name) for name in value if isinstance(name, str) and name.strip()]


def caption_texts(row: Mapping[str, Any], found: Columns) -> list[Any]:
    """What a row of a table gives as captions: those of its caption columns, or its labels as text."""
    if found.labels:
        names = names_of(row.get(found.labels))
        return list(label_captions(names)) if names else []
    first, *more = found.captions
    texts = texts_of(row.get(first))
    return texts + [text for column in more for text in texts_of(row.get(column)) if text not in (None, "")]
