"""What all endpoints share: the engine, the index, who made the answers, and what may not be said."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from opencoca.infer.predictor import Predictor
from opencoca.search.filters import Filters
from opencoca.search.query import Term
from opencoca.serve.batcher import BusyError
from opencoca.serve.engine import Engine
from opencoca.serve.metrics import Metrics
from opencoca.serve.schemas import About, Provenance
from opencoca.serve.settings import Settings
from opencoca.serve.words import WITHHELD, WordList

T = TypeVar("T")
SEARCHES = 32  # that wait or are under way
POLICY = Path(__file__).parent / "policy.txt"


class Searchable(Protocol):
    """What the server needs of `opencoca.search.index.Index`."""

    folder: Path

    def __len__(self) -> int: ...
    def embed_terms(self, terms: Sequence[Term], pictures: Any = None) -> Any: ...
    def search(self, query: Any, k: int, filters: Filters, blend: float) -> list[Any]: ...
    def thumbnail(self, id: int, size_px: int) -> bytes: ...


class Service:
    """One server's parts. `cut` counts connections that were ended, by reason."""

    def __init__(self, predictor: Predictor, settings: Settings, name: str, index: Searchable | None = None) -> None:
        self.settings, self.limits, self.index = settings, settings.limits, index
        self.engine = Engine(predictor, settings.limits)
        self.cut: dict[str, int] = dict.fromkeys(("header", "write", "evicted", "refused", "malformed", "pipelined"), 0)
        self.metrics = Metrics(lambda: self.engine.batcher.depth, self.engine.batches, self.cut)
        self.words = WordList.load(settings.words)
        self.policy = (settings.policy or POLICY).read_text("utf-8")
        self.dimensions = predictor.model.config.embed_dim
        self.provenance = Provenance(generator=_generator(), model=name, fingerprint=self.engine.fingerprint[:16])
        self.draining = False
        self._searchers = ThreadPoolExecutor(1, thread_name_prefix="opencoca-search")
        self._searches = 0

    def about(self) -> About:
        """What the page shows."""
        return About(
            model=self.provenance.model,
            generator=self.provenance.generator,
            fingerprint=self.provenance.fingerprint,
            dimensions=self.dimensions,
            pictures=None if self.index is None else len(self.index),
            answers=self.engine.has_answers,
            filtered=bool(self.words),
        )

    def check_room(self, count: int) -> None:
        """Raises: BusyError, where so many pictures would find no place."""
        if self.engine.batcher.full(count):
            raise BusyError(self.engine.batcher.retry_after_s)

    def said(self, text: str) -> tuple[str, bool]:
        """The text, or what stands for one that the word list withholds; and whether it does."""
        if not self.words.holds(text):
            return text, False
        self.metrics.filtered.inc()
        return WITHHELD, True

    async def searching(self, function: Callable[[], T]) -> T:
        """What a function of the index gives, from the thread for searches. Raises: BusyError."""
        if self._searches >= SEARCHES:
            raise BusyError(1)
        self._searches += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._searchers, function)
        finally:
            self._searches -= 1

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return not self.draining and self.engine.ready

    def close(self) -> None:
        """Ends the threads."""
        self.engine.close()
        self._searchers.shutdown(wait=False, cancel_futures=True)


def _generator() -> str:
    try:
        return f"OpenCoCa {importlib.metadata.version('opencoca')}"
    except importlib.metadata.PackageNotFoundError:
        return "OpenCoCa"
