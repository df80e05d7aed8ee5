"""Connections that may be slow, hostile or both: what uvicorn's own h11 protocol leaves open is closed here.

By itself it waits without end for the first byte of a connection and for the end of headers that drip, lets a finished
request's body drip on, and holds an answer for a client that doesn't read it. `sweep` ends all of these, some time
after their limits. Where all places are taken, a new connection takes that of the one that has been idle, or busy with
its headers, for the longest: so slow clients crowd out each other, and not the good ones. That happens a moment later:
of a thousand connections that come at once, those that have sent their request are known by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from opencoca.serve.settings import Limits

LOOK_S = 0.05  # for requests that have come with their connection; twice as many connections find no such patience
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with a clock. `limits` and the counters are set by the server, on a subclass of its own."""

    limits = Limits()
    cut: dict[str, int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a place, somebody else's if need be."""
        self.idle_since: float = time.monotonic()
        self.stalled_since: float | None = None
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limits.connections:
            self._make_room()
        elif len(self.connections) > self.limits.connections:
            self.loop.call_later(LOOK_S, self._make_room)

    def _make_room(self) -> None:
        """Ends the connection that has been idle for the longest, if there are still too many."""
        idle = [other for other in self.connections if isinstance(other, GuardedProtocol) and not other.busy]
        if len(self.connections) <= self.limits.connections or not idle:
            return
        oldest = min(idle, key=lambda other: other.idle_since)
        if oldest is self:
            self.transport.write(BUSY)
            self.cut["refused"] += 1
            self.transport.close()
        else:
            oldest.end("evicted")
        self.connections.discard(oldest)

    def data_received(self, data: bytes) -> None:
        """Passes data on. Who sends the next request before this one is answered could queue up thousands for the price
        of a few packets; that is nothing browsers or libraries do, and their connection ends with this answer."""
        super().data_received(data)
        if self.busy and self.conn.their_state is h11.DONE and self.conn.trailing_data[0] and self.cycle.keep_alive:
            self.cut["pipelined"] += 1
            self.cycle.keep_alive = False
            self.headers.append(CLOSE_HEADER)  # uvicorn repeats it in its answer

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def overdue(self, now: float) -> str | None:
        """Which limit the connection is beyond."""
        if self.stalled_since is not None and now - self.stalled_since > self.limits.write_s:
            return "write"
        kept_alive = self.limits.idle_s if self.cycle is not None else 0
        return "header" if not self.busy and now - self.idle_since > self.limits.header_s + kept_alive else None

    def end(self, why: str) -> None:
        """Closes the connection at once, whatever is under way."""
        self.cut[why] += 1
        self.transport.abort()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self.idle_since = time.monotonic()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Says what uvicorn says, also where an answer is under way already; then it only closes."""
        self.cut["malformed"] += 1
        with contextlib.suppress(h11.LocalProtocolError):
            return super().send_400_response(msg)
        self.transport.abort()

    def pause_writing(self) -> None:
        """The client doesn't read."""
        self.stalled_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self.stalled_since = None
        super().resume_writing()


def sweep(state: ServerState) -> None:
    """Ends the connections that are beyond a limit."""
    now = time.monotonic()
    for connection in list(state.connections):
        if isinstance(connection, GuardedProtocol) and (why := connection.overdue(now)):
            connection.end(why)
