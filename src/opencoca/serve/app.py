"""The application: routes of the page, of health and of figures; others are in `api.py` and `searching.py`."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from opencoca.serve import schemas
from opencoca.serve.api import DEFINITIONS, ERRORS, answer, make_router
from opencoca.serve.errors import handle_errors, refusal
from opencoca.serve.gate import PAGE_HEADERS, STATIC, Gate, RefusedError
from opencoca.serve.searching import add_search
from opencoca.serve.service import Service

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
JSON, PLAIN = "application/json", "text/plain"
# FastAPI's own tracing is off, whatever its environment variables say: nothing leaves this process
TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)


def make_app(service: Service) -> Gate:
    """The ASGI application."""
    app = FastAPI(
        title="OpenCoCa",
        version=service.provenance.generator.rpartition(" ")[2],
        description="One image-text model that captions, classifies, embeds and finds pictures.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere; /docs is ours
        redoc_url=None,
        openapi_url=None,  # made once, below
        redirect_slashes=False,  # a redirect is built from what the client says our name is
        telemetry=TELEMETRY,
    )
    handle_errors(app)
    router = make_router(service)
    app.include_router(router)
    add_search(app, service)
    _add_health(app, service)
    app.openapi()["components"]["schemas"].update(DEFINITIONS)
    _add_page(app, json.dumps(app.openapi()).encode())
    direct = {route.path: route.endpoint for route in router.routes if isinstance(route, APIRoute)}
    return Gate(app, service.settings, service.metrics, direct, refusal)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/livez", response_class=Response)
    async def livez() -> Response:
        """Whether the process answers at all."""
        return Response("ok\n", media_type=PLAIN)

    @app.get("/readyz", response_class=Response, responses={503: {"description": "busy, or about to end"}})
    async def readyz() -> Response:
        """Whether requests are welcome: there is room in the queue, and nobody has asked the server to end."""
        return Response("ok\n" if service.ready else "not ready\n", 200 if service.ready else 503, media_type=PLAIN)

    @app.get("/metrics", response_class=Response, responses={401: ERRORS[401]})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/about", response_model=schemas.About, responses={401: ERRORS[401]})
    async def about() -> Response:
        """Which model answers, and how many pictures it can search."""
        return answer(service.about())

    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> dict[str, Any]:
        """The one model, as OpenAI's clients ask for it."""
        return {"object": "list", "data": [{"id": service.provenance.model, "object": "model", "owned_by": "opencoca"}]}

    @app.get("/policy", response_class=Response)
    async def policy() -> Response:
        """What this server may be used for."""
        return Response(service.policy, media_type="text/plain; charset=utf-8")


def _add_page(app: FastAPI, description: bytes) -> None:
    """Files of the page are read once and looked up by name: no request ever names a path on the disk."""
    files = {"openapi.json": (description, JSON)} | {
        file.name: (file.read_bytes(), f"{TYPES[file.name.rpartition('.')[2]]}; charset=utf-8")
        for file in resources.files("opencoca.serve").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in TYPES
    }

    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, (content, _) in files.items()}

    def page(request: Request, name: str) -> Response:
        if name not in files:
            raise RefusedError(404, "not_found", "there is no such file")
        content, media_type = files[name]
        tag = tags[name]
        headers = {**PAGE_HEADERS, "ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return page(request, "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return page(request, "docs.html")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        return page(request, "openapi.json")

    @app.get(STATIC + "{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return page(request, name)
