"""The endpoints that ask the index: for its pictures, by a sentence, a picture or both, and for small ones of them."""

from __future__ import annotations

import logging
from pathlib import Path as FilePath
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from opencoca.errors import DataError
from opencoca.search.filters import Filters
from opencoca.search.query import Term, parse
from opencoca.serve import schemas
from opencoca.serve.api import ERRORS, answer, takes, while_there
from opencoca.serve.bodies import read
from opencoca.serve.gate import RefusedError, invalid
from opencoca.serve.service import Searchable, Service

log = logging.getLogger("opencoca.serve")
MAX_PX = 1024  # of a thumbnail
PICTURE = "picture.png"  # how the picture that was sent is called in a query


def add_search(app: FastAPI, service: Service) -> None:
    """Adds the routes."""

    @app.post(
        "/search", response_model=schemas.SearchResponse, openapi_extra=takes(schemas.SearchRequest), responses=ERRORS
    )
    async def search(request: Request) -> Response:
        """The pictures of the indexed folder that fit a sentence, a picture or a sum of both, the best first."""
        wanted, pictures = await read(request, schemas.SearchRequest)
        index, words = index_of(service), wanted.query.strip()
        if not words and not pictures:
            raise invalid("give a query, an image, or both")
        service.check_room(len(pictures))
        filters = Filters(wanted.after, wanted.before, wanted.min_bytes, wanted.max_bytes, wanted.folder)
        terms = terms_of(words, bool(pictures))
        count = wanted.offset + wanted.top

        async def find() -> list[Any]:
            embed = (await service.engine.ask(pictures))[0] if pictures else np.empty(0)

            def look() -> list[Any]:
                query = index.embed_terms(terms, pictures=lambda _: embed) if words else embed
                return index.search(query, count + 1, filters, wanted.blend)

            try:
                return await service.searching(look)
            except DataError as error:  # which may name a file, or where the index is
                log.warning("a search failed: %s", error)
                raise invalid("this can't be searched for: an id is unknown, or the terms cancel each other") from None

        found = await while_there(request, find())
        hits = [
            schemas.Found(
                id=hit.id,
                name=name_of(hit.path, index.folder),
                score=hit.score,
                caption=service.said(hit.caption)[0],
                why=service.said(hit.why)[0],
                good=hit.good,
            )
            for hit in found[wanted.offset : count]
        ]
        return answer(schemas.SearchResponse(hits=hits, more=len(found) > count, provenance=service.provenance))

    @app.get(
        "/thumbnail/{id}",
        response_class=Response,
        responses={**ERRORS, 200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def thumbnail(
        id: Annotated[int, Path(ge=0, le=2**53)], size: Annotated[int, Query(ge=16, le=MAX_PX)] = 256
    ) -> Response:
        """A picture of the indexed folder, small, by the id that a search gave."""
        index = index_of(service)
        try:
            made = await service.searching(lambda: index.thumbnail(id, size))
        except DataError:  # whatever it says names a file
            raise RefusedError(404, "not_found", f"there is no picture {id}, or it can't be read any more") from None
        return Response(made, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def index_of(service: Service) -> Searchable:
    """The index. Raises: RefusedError where there is none."""
    if service.index is None:
        raise RefusedError(404, "no_index", "this server has no folder to search; start it with --index DIR")
    return service.index


def terms_of(words: str, picture: bool) -> list[Term]:
    """A query's terms, in which only `PICTURE` can be a picture: names of files are words here.

    Raises: DataError for a query that can't be understood.
    """
    if not words:
        return []
    begins = words.split()[0] in ("+", "-")
    terms = parse(words if not picture else f"{PICTURE} {words}" if begins else f"{PICTURE} + {words}")
    first = [terms.pop(0)] if picture else []
    return first + [term._replace(kind="text") if term.kind == "picture" else term for term in terms]


def name_of(path: FilePath, folder: FilePath) -> str:
    """A file's name in its folder, as JSON can carry it; where the folder is, is nobody's business."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path.name
    return str(inside).encode("utf-8", "replace").decode()
