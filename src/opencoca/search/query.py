"""The little language of queries: words, pictures, and sums of both.

    query    = [sign] term { sign term }
    sign     = "+" | "-"            standing alone, with a space on each side: "black-and-white" has none
    term     = quoted | picture | id | words
    quoted   = '"' any text '"'     always text: "-" and file names mean nothing in it
    picture  = the name of a picture file, as in ref.jpg
    id       = "id:" digits         a picture of the index, as a search before gave it
    words    = everything else up to the next sign

`a boat on a lake` is one term. `"red car" + ref.jpg - night` is the direction of "red car", plus that of the picture,
minus that of "night": each term's unit-norm embedding is added or subtracted, and the sum is made unit-norm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

from opencoca.errors import DataError
from opencoca.search.files import SUFFIXES

EMPTY = 'the query is empty; say what to look for, as in "a boat on a lake"'
_PIECES = re.compile(r'"[^"]*"|\S+')
_SMALL_WORDS = "a an and are at by for from in is it of on or the to with"
_STOP = frozenset(_SMALL_WORDS.split())


class Term(NamedTuple):
    """One term of a query, and whether it is looked for (1) or avoided (-1)."""

    sign: int
    kind: Literal["text", "picture", "id"]
    value: str


def parse(query: str) -> list[Term]:
    """The terms of a query.

    Raises: DataError for an empty query, a sign without a term, or a query that only avoids.
    """
    terms: list[Term] = []
    pieces: list[str] = []
    sign, signed = 1, False
    for piece in [*_PIECES.findall(query), None]:
        if piece is not None and piece not in ("+", "-"):
            pieces.append(piece)
            continue
        if pieces:
            terms.append(_term(sign, pieces))
        elif signed or (piece is None and terms):
            raise DataError(f"{query!r} has a sign without a term; write it as in: boat - night")
        sign, signed, pieces = (-1 if piece == "-" else 1), piece is not None, []
    if not terms:
        raise DataError(EMPTY)
    if not any(term.sign > 0 for term in terms):
        raise DataError(f"{query!r} only says what to avoid; say what to look for, as in: boat - night")
    return terms


def words(text: str) -> frozenset[str]:
    """What counts when a caption's words are compared with a query's: no small words, no plural s."""
    found = re.findall(r"\w+", text.casefold())
    return frozenset(word[:-1] if len(word) > 3 and word[-1] == "s" else word for word in found if word not in _STOP)


def wanted_words(terms: Sequence[Term]) -> frozenset[str]:
    """The words of the texts that are looked for."""
    return frozenset().union(*(words(term.value) for term in terms if term.sign > 0 and term.kind == "text"))


def _term(sign: int, pieces: Sequence[str]) -> Term:
    if len(pieces) == 1 and len(pieces[0]) >= 2 and pieces[0][0] == pieces[0][-1] == '"':
        value = pieces[0][1:-1].strip()
        if not value:
            raise DataError(EMPTY)
        return Term(sign, "text", value)
    value = " ".join(pieces)
    if re.fullmatch(r"id:[0-9]{1,18}", value):
        return Term(sign, "id", value[3:])
    if PurePath(value).suffix.lower() in SUFFIXES:
        return Term(sign, "picture", value)
    return Term(sign, "text", value.replace('"', ""))
