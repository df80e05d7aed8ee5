"""Captions that appear while they are written, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from opencoca.serve.engine import Partial, Wording, together
from opencoca.serve.errors import refusal
from opencoca.serve.gate import RefusedError, error_body
from opencoca.serve.schemas import Captioned
from opencoca.serve.service import Service

Event = tuple[str, dict[str, Any]]


class Stream:
    """The captions of one request.

    Events: "partial", the best beginning so far of picture `index`; "caption", all of it; "done"; or "error". With a
    word list there are no partial ones: half a word can't be judged.
    """

    def __init__(
        self,
        service: Service,
        pictures: Sequence[Callable[[], bytes]],
        wording: Wording,
        captioned: Callable[[Any], Captioned],
    ) -> None:
        """Begins. Raises: BusyError."""
        self._service, self._captioned = service, captioned
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        partials = [] if service.words else [self._partial(place) for place in range(len(pictures))]
        jobs = service.engine.start(pictures, wording, partials)
        for place, job in enumerate(jobs):
            job.future.add_done_callback(self._caption(place))
        self._all = together(jobs)
        self._all.add_done_callback(self._ended)

    async def next(self) -> Event | None:
        """The next event. Raises: what went wrong, if that is the event."""
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self._all.cancel()
            raise
        if event is not None and event[0] == "error" and (error := self._all.exception()):
            raise error
        return event

    async def events(self, event: Event | None) -> AsyncIterator[bytes]:
        """All events from `event` on, as text. Where nobody listens any more, the work ends."""
        try:
            while event is not None:
                yield f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n".encode()
                event = await self._events.get()
        finally:
            self._all.cancel()

    def _partial(self, place: int) -> Partial:
        return lambda text: self._events.put_nowait(("partial", {"index": place, "text": text}))

    def _caption(self, place: int) -> Callable[[asyncio.Future], None]:
        def tell(future: asyncio.Future) -> None:
            if not future.cancelled() and future.exception() is None:
                found = self._captioned(future.result()).model_dump()
                self._events.put_nowait(("caption", {"index": place, **found}))

        return tell

    def _ended(self, found: asyncio.Future) -> None:
        if found.cancelled():
            return
        error = found.exception()
        if error is None:
            self._events.put_nowait(("done", {"provenance": self._service.provenance.model_dump()}))
        else:
            bug = RefusedError(500, "bug", "the server has failed; its log says more")
            refused = (refusal(error) if isinstance(error, Exception) else None) or bug
            self._events.put_nowait(("error", json.loads(error_body(refused.kind, refused.message, ""))))
        self._events.put_nowait(None)
