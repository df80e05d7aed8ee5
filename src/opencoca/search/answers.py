"""A search as a request and an answer of plain values: what travels between `coca search` and a resident process."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opencoca.search.filters import Filters
from opencoca.search.query import Term

if TYPE_CHECKING:
    from opencoca.search.index import Index


@dataclass(frozen=True)
class Request:
    """What is asked: names of picture files in the terms are absolute."""

    terms: list[Term]
    top: int = 10
    blend: float = 0.0
    filters: Filters = field(default_factory=Filters)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "terms": [list(term) for term in self.terms],
            "filters": {
                k: v.isoformat() if isinstance(v, datetime.date) else v for k, v in asdict(self.filters).items()
            },
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Request:
        """Raises: KeyError, TypeError or ValueError for what `to_json` can't have made."""
        bounds = dict(found["filters"])
        for name in ("after", "before"):
            bounds[name] = datetime.date.fromisoformat(bounds[name]) if bounds[name] else None
        terms = [Term(int(sign), kind, str(value)) for sign, kind, value in found["terms"]]
        return cls(terms, int(found["top"]), float(found["blend"]), Filters(**bounds))


@dataclass(frozen=True)
class Found:
    """One picture of an answer; `path` is below the folder."""

    id: int
    path: str
    score: float
    caption: str
    why: str
    good: bool


@dataclass(frozen=True)
class Answer:
    """The pictures that were found, the best first.

    level: what unrelated queries reach. indexed, total: how many pictures the index has, of how many. bad: those that
    can't be read, each with its reason, but for so many that a search before this one has named (`named_before`).
    """

    hits: list[Found]
    level: float
    indexed: int
    total: int
    bad: list[tuple[str, str]] = field(default_factory=list)
    named_before: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Answer:
        hits = [Found(**hit) for hit in found["hits"]]
        bad = [(path, what) for path, what in found["bad"]]
        return cls(hits, found["level"], found["indexed"], found["total"], bad, found.get("named_before", 0))


def answer(index: Index, request: Request, total: int, bad: list[tuple[str, str]], named_before: int = 0) -> Answer:
    """What the index says to a request; `total`, `bad` and `named_before` are what was seen in the folder besides.

    Raises: DataError for a picture of the query that can't be read.
    """
    read: Callable[[str], Path] = Path
    query = index.embed_terms(request.terms, pictures=read)
    hits = index.search(query, request.top, request.filters, request.blend)
    found = [
        Found(hit.id, os.fspath(hit.path.relative_to(index.folder)), hit.score, hit.caption, hit.why, hit.good)
        for hit in hits
    ]
    return Answer(found, query.level, len(index), max(total, index.total), bad, named_before)
