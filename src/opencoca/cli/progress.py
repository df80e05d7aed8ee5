"""Progress over pictures: how many are done, their rate and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0


class PictureProgress:
    """A bar on a terminal's standard error, once the work takes longer than `PATIENCE_S`."""

    def __init__(self, total: int, what: str = "pictures") -> None:
        self._total, self._what, self._began = total, what, time.monotonic()
        self._live: Progress | None = None

    def move(self, completed: int, total: int | None = None) -> None:
        """Says how many pictures are done, skipped ones included, and of how many if that wasn't known."""
        self._total = total or self._total
        seconds = time.monotonic() - self._began
        if self._live is None and seconds > PATIENCE_S and completed < self._total and sys.stderr.isatty():
            self._live = Progress(
                BarColumn(),
                TextColumn(f"{{task.completed}}/{{task.total}} {self._what}"),
                TextColumn(f"{{task.fields[rate]:.{{task.fields[digits]}}f}} {self._what}/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._live.add_task("", total=self._total, rate=0.0, digits=0)
            self._live.start()
        if self._live is not None:
            rate = completed / seconds
            self._live.update(self._task, completed=completed, rate=rate, digits=0 if rate >= 10 else 1)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Takes the bar away while something else is printed."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()

    def close(self) -> None:
        """Takes the bar away for good."""
        if self._live is not None:
            self._live.stop()
            self._live = None
