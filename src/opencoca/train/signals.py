"""Ctrl-C and SIGTERM: the step is finished, the state saved, and the run ends, on all ranks at the same step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from opencoca.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Takes Ctrl-C and SIGTERM while a run goes on, as a context manager.

    A process on its own is interrupted wherever it is but in `undivided` blocks. One of several ranks only notes the
    signal, and the ranks agree at the end of each step; a second signal of its kind interrupts at once.
    """

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self._got: set[int] = set()
        self._held_back = False
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._usual = {number: signal.getsignal(number) for number in SIGNALS}
            for number, usual in self._usual.items():
                if callable(usual) or number == signal.SIGTERM:  # who ignores Ctrl-C goes on ignoring it
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)

    @contextlib.contextmanager
    def undivided(self) -> Iterator[None]:
        """Holds signals back until the end of the block, which changes what belongs together."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
            if self.alone and self._got:
                self._end(None)

    def received(self) -> dict[str, float]:
        """What this rank got, to be summed over ranks."""
        return {number.name: float(number in self._got) for number in SIGNALS}

    def agreed(self, sums: Mapping[str, float]) -> None:
        """Ends the run where some rank got a signal; `sums` holds those of `received`."""
        self._got |= {number for number in SIGNALS if sums[number.name]}
        if any(sums[number.name] for number in SIGNALS):
            self._end(None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = number in self._got
        self._got.add(number)
        if again or (self.alone and not self._held_back):
            self._end(frame)

    def _end(self, frame: FrameType | None) -> None:
        got, self._got = self._got, set()
        if signal.SIGTERM in got:
            raise StoppedError("stopped by SIGTERM; the run goes on from here when it is started again")
        usual = self._usual.get(signal.SIGINT)
        if callable(usual):
            usual(signal.SIGINT, frame)  # it raises KeyboardInterrupt, unless somebody wants it otherwise
        else:
            raise KeyboardInterrupt
