"""Requests that wait for the model, in a bounded queue that one thread empties batch by batch."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue knows of a job: whether anybody still wants it, and how to tell that it came too late."""

    def abandoned(self) -> bool: ...
    def too_late(self) -> None: ...


Job = TypeVar("Job", bound=Waiting)


class BusyError(Exception):
    """There is no room in the queue, or a job waited too long; `retry_after_s` says when to come again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"busy; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Batcher(Generic[Job]):
    """Calls `run` with up to `max_batch` jobs at a time, in a thread of its own, first come, first served.

    Room is reserved before a job is there, while its picture is read: so the queue is bounded from the first byte on.
    A batch that isn't full waits up to `max_wait_s` for those, and for nothing else: where nobody comes, nobody waits.
    """

    def __init__(
        self, run: Callable[[list[Job]], None], max_batch: int, max_wait_s: float, max_queue: int, max_age_s: float
    ) -> None:
        self._run, self._max_batch, self._max_wait_s = run, max_batch, max_wait_s
        self._max_queue, self._max_age_s = max_queue, max_age_s
        self._queue: deque[tuple[float, Job]] = deque()
        self._changed = threading.Condition()
        self._reserved = self._running = 0
        self._rate = 0.0  # jobs per second, of late
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="opencoca-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait, or whose pictures are being read."""
        return len(self._queue) + self._reserved

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def retry_after_s(self) -> int:
        """When the queue will be half empty, from 1 to 60 seconds."""
        ahead = max(0, self.depth + self._running - self._max_queue // 2)
        return min(60, max(1, math.ceil(ahead / self._rate))) if self._rate else 1

    def full(self, count: int = 1) -> bool:
        """Whether so many jobs would be refused now."""
        return self._closing or self.depth + count > self._max_queue

    def reserve(self, count: int = 1) -> None:
        """Makes room for jobs to come; `submit` or `release` must follow. Raises: BusyError."""
        with self._changed:
            if self.full(count):
                raise BusyError(self.retry_after_s)
            self._reserved += count

    def release(self, count: int = 1) -> None:
        """Gives up what was reserved."""
        with self._changed:
            self._reserved -= count
            self._changed.notify()

    def submit(self, job: Job) -> None:
        """Puts in a job whose room was reserved."""
        with self._changed:
            self._reserved -= 1
            self._queue.append((time.monotonic(), job))
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Lets the jobs that wait end, and the thread too."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while jobs := self._next():
            began = time.monotonic()
            self._run(jobs)
            seconds = max(1e-6, time.monotonic() - began)
            now = self._running / seconds
            self._rate = now if not self._rate else 0.8 * self._rate + 0.2 * now
            self._running = 0

    def _next(self) -> list[Job]:
        """The next batch, which is never empty but at the end."""
        while True:
            jobs: list[Job] = []
            late: list[Job] = []
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return []
                until = time.monotonic() + self._max_wait_s
                while len(self._queue) < self._max_batch and self._reserved and not self._closing:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                oldest = time.monotonic() - self._max_age_s
                while self._queue and len(jobs) < self._max_batch:
                    came, job = self._queue.popleft()
                    if job.abandoned():
                        continue
                    (late if came < oldest else jobs).append(job)
                self._running = len(jobs)
            for job in late:
                job.too_late()
            if jobs:
                return jobs
