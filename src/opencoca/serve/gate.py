"""What every request passes first: who may ask, from where, and how much. It also logs, counts and times each one."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from opencoca.serve.metrics import Metrics
from opencoca.serve.settings import LOOPBACK_NAMES, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[Response]]

PUBLIC = frozenset(("/", "/docs", "/openapi.json", "/policy", "/livez", "/readyz"))
STATIC = "/static/"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),  # unless it is the page itself
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DISCARD_BYTES, DISCARD_S = 4_000_000, 1.0  # of a body that is refused, so that the client reads the answer
log = logging.getLogger("opencoca.serve")


class RefusedError(Exception):
    """An answer other than the one asked for: `kind` is a word for programs, the message is for people."""

    def __init__(self, status: int, kind: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers


def invalid(message: str) -> RefusedError:
    """The answer to fields or pictures that can't be used."""
    return RefusedError(422, "invalid", message)


class Gate:
    """An ASGI application in front of another.

    direct: endpoints by path that are called with POST at once. The other application has them, too, and describes
    them; finding the way through it takes longer than the rest of a request, the model apart.
    translate: gives the answer to an error of an endpoint, or None for a bug.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        metrics: Metrics,
        direct: Mapping[str, Endpoint],
        translate: Callable[[Exception], RefusedError | None],
    ) -> None:
        self._app, self._settings, self._limits, self._metrics = app, settings, settings.limits, metrics
        self.direct, self.translate = direct, translate
        self._token = _digest(settings.token.encode()) if settings.token is not None else None
        self._hosts = {name.lower() for name in (*LOOPBACK_NAMES, settings.host, *settings.hosts)}
        self._held = 0  # bytes of bodies, of all requests

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)

    def check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Raises: RefusedError for a request from the wrong place, by nobody we know, or larger than it may be."""
        self._check_headers(scope)
        self._check_host(headers)
        self._check_origin(headers)
        public = scope["path"] in PUBLIC or scope["path"].startswith(STATIC)
        if self._token is not None and not public and not self._knows(headers.get(b"authorization", b"")):
            raise RefusedError(
                401,
                "unauthorized",
                "this needs the header Authorization: Bearer TOKEN",
                (("WWW-Authenticate", "Bearer"),),
            )
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise RefusedError(400, "bad_request", "a body has a Content-Length or a Transfer-Encoding, not both")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise RefusedError(415, "unsupported_media_type", "leave Content-Encoding out")
        if int(headers.get(b"content-length", b"0")) > self._limits.body_bytes:
            raise self.too_large()

    def hold(self, count: int) -> None:
        """Accounts for bytes of a body. Raises: RefusedError, where all requests together hold too much."""
        if self._held + count > self._limits.held_bytes:
            raise RefusedError(503, "busy", "the server holds as much as it can; try again", (("Retry-After", "2"),))
        self._held += count

    def let_go(self, count: int) -> None:
        """Accounts for bytes that are no longer held."""
        self._held -= count

    def too_large(self) -> RefusedError:
        """The answer to a body beyond the limit."""
        return RefusedError(413, "too_large", f"a body may have at most {self._limits.body_bytes} bytes")

    def _knows(self, authorization: bytes) -> bool:
        scheme, _, given = authorization.partition(b" ")
        same = hmac.compare_digest(_digest(given.strip()), self._token or b"")
        return scheme.lower() == b"bearer" and same

    def _check_headers(self, scope: Any) -> None:
        """h11 counts only headers that come in pieces: those that come at once are all there before it looks."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self._limits.header_bytes:
            raise RefusedError(431, "too_large", f"headers may have at most {self._limits.header_bytes} bytes")

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A page of somebody else whose name leads to our address (DNS rebinding) sends that name here."""
        name = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if name in self._hosts or (not self._settings.loopback and _is_address(name)):
            return
        raise RefusedError(421, "wrong_host", "this server doesn't go by that name; --allow-host NAME lets it")

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """A browser says which page sends a request; other pages than ours have no business here."""
        origin, host = headers.get(b"origin"), headers.get(b"host", b"").decode("latin-1").lower()
        foreign = origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host
        sites = headers.get(b"sec-fetch-site", b"none"), headers.get(b"sec-fetch-mode", b"navigate")
        if foreign or (sites[0] in (b"cross-site", b"same-site") and sites[1] != b"navigate"):
            raise RefusedError(403, "foreign_origin", "other sites' pages may not ask this server")


class _Exchange:
    """One request and its answer."""

    def __init__(self, gate: Gate, scope: Any, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self._receive, self._send = gate, scope, receive, send
        self.began, self.limits = time.monotonic(), gate._limits
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.headers, self.id = headers, given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        self.status, self.sent, self.got, self.whole, self.ended = 0, 0, 0, False, False
        self.route = "other"
        scope.setdefault("state", {})["request_id"] = self.id

    async def run(self) -> None:
        cancelled = False
        try:
            self.gate.check(self.scope, self.headers)
            endpoint = self.gate.direct.get(self.scope["path"]) if self.scope["method"] == "POST" else None
            if endpoint is None:
                await self.gate._app(self.scope, self.receive, self.send)
                self.route = getattr(self.scope.get("route"), "path", "other")
            else:
                self.route = self.scope["path"]
                response = await endpoint(Request(self.scope, self.receive))
                await response(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            cancelled = True
            raise
        except Exception as error:
            refused = self.gate.translate(error)
            if refused is None:
                log.exception("a request failed", extra={"fields": {"id": self.id}})
            await self.refuse(refused or RefusedError(500, "bug", "the server has failed; its log says more"))
        finally:
            self.gate.let_go(self.got)
            self.note(cancelled)

    async def receive(self) -> Message:
        """The next part of the body, within limits. Raises: RefusedError."""
        if self.whole:
            return await self._receive()  # a disconnect, and nothing else can come
        left = self.began + self.limits.body_s - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(408, "too_slow", f"the body took more than {self.limits.body_s:g} s") from None
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            if self.got + count > self.limits.body_bytes:
                raise self.gate.too_large()
            self.gate.hold(count)
            self.got += count
            self.whole = not message.get("more_body", False)
        else:
            self.whole = True
        return message

    async def send(self, message: Message) -> None:
        """Passes the answer on, with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.id.encode())]
            if self.unread:
                own.append((b"connection", b"close"))
            there = {name.lower() for name, _ in message["headers"]}
            own += [header for header in (*HEADERS, (b"cache-control", b"no-store")) if header[0] not in there]
            message = {**message, "headers": [*message["headers"], *own]}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            if self.ended and self.unread:
                await self._send({**message, "more_body": True})
                await self._discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    @property
    def unread(self) -> bool:
        """Whether a part of the body may still come: a client that is cut off while it sends reads no answer."""
        return not self.whole and (
            self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers
        )

    async def refuse(self, refused: RefusedError) -> None:
        """Answers with an error."""
        if self.status:  # the answer has begun; an end without its last part tells that it isn't whole
            if not self.ended:
                raise ConnectionError("cut off")
            return
        body = error_body(refused.kind, refused.message, self.id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in refused.headers),
        ]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def _discard(self) -> None:
        left, until = DISCARD_BYTES, time.monotonic() + DISCARD_S
        while left > 0 and (seconds := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(seconds):
                    message = await self._receive()
            except TimeoutError:
                return
            left -= len(message.get("body", b"")) + 1
            if message["type"] != "http.request" or not message.get("more_body", False):
                return

    def note(self, cancelled: bool) -> None:
        """Logs and counts the request. Its path is in neither, but the route's: paths are of users' making."""
        seconds = time.monotonic() - self.began
        metrics = self.gate._metrics
        metrics.requests.labels(self.route, str(self.status)).inc()
        metrics.seconds.labels(self.route).observe(seconds)
        metrics.received.inc(self.got)
        client = self.scope.get("client")
        fields = {
            "id": self.id,
            "client": client[0] if client else None,
            "method": self.scope["method"] if self.scope["method"].isalpha() else "other",
            "route": self.route,
            "status": self.status,
            "whole": self.ended and not cancelled,
            "ms": round(1000 * seconds, 1),
            "received": self.got,
            "sent": self.sent,
        }
        if log.isEnabledFor(logging.INFO):  # without looking for who called, which takes as long as the rest
            log.handle(log.makeRecord(log.name, logging.INFO, "", 0, "request", (), None, extra={"fields": fields}))


def error_body(kind: str, message: str, request_id: str) -> bytes:
    """An error as JSON, in the form that OpenAI's clients read."""
    error = {"message": message, "type": kind, "code": kind, "request_id": request_id}
    return json.dumps({"error": error}).encode()


def _digest(token: bytes) -> bytes:
    """So that neither bytes nor length tell on a comparison."""
    return hashlib.sha256(token).digest()


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[1 : name.find("]")] if "]" in name else ""
    return name.rpartition(":")[0] if ":" in name else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
