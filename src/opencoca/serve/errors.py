"""What goes wrong with a request, as an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from opencoca.errors import OpenCoCaError
from opencoca.serve.batcher import BusyError
from opencoca.serve.engine import PictureError, TooLongError
from opencoca.serve.gate import RefusedError, error_body, invalid

KINDS = {404: "not_found", 405: "method_not_allowed"}


def refusal(error: Exception) -> RefusedError | None:
    """The answer to an error that isn't ours."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, BusyError):
        wait = error.retry_after_s
        return RefusedError(503, "busy", f"the server is busy; try again in {wait} s", (("Retry-After", str(wait)),))
    if isinstance(error, TooLongError):
        return RefusedError(503, "too_long", str(error), (("Retry-After", "60"),))
    if isinstance(error, PictureError | OpenCoCaError):
        return invalid(str(error))
    if isinstance(error, RequestValidationError):
        return invalid(in_words(error.errors()))
    if isinstance(error, ClientDisconnect):
        return RefusedError(499, "gone", "the client went away")
    if isinstance(error, HTTPException):
        headers = tuple((error.headers or {}).items())
        return RefusedError(error.status_code, KINDS.get(error.status_code, "refused"), str(error.detail), headers)
    return None


def handle_errors(app: FastAPI) -> None:
    """Lets the application answer with our errors, in one form."""

    async def handler(request: Request, error: Exception) -> Response:
        refused = refusal(error)
        if refused is None:
            raise error
        body = error_body(refused.kind, refused.message, request.scope["state"]["request_id"])
        return Response(body, refused.status, dict(refused.headers), "application/json")

    ours: list[Any] = [RefusedError, BusyError, TooLongError, PictureError, OpenCoCaError]
    kinds: list[Any] = [*ours, RequestValidationError, ClientDisconnect, HTTPException]
    for kind in kinds:
        app.add_exception_handler(kind, handler)


def in_words(errors: Sequence[Any]) -> str:
    """What pydantic says is wrong, and where; what was sent isn't repeated."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])[:100]
    where = json.dumps(where)[1:-1]  # a name that somebody made up may hold anything
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where or 'the body'}: {first['msg'][:200]}{more}"
