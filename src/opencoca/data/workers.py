"""Processes or threads that read pairs ahead, in order, into memory of a fixed size.

Each worker process has a pipe of its own, so that a dead one leaves no lock behind; it gets its jobs in turn, each with
the slot of shared memory that it writes to. A worker that dies or hangs ends the reading with an error that names it.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple, Protocol

import numpy as np

from opencoca.data.reader import Drawn, PairReader
from opencoca.errors import DataError, OpenCoCaError

MOST_THREADS = 4  # beyond, they wait for the interpreter more than they decode
TIMEOUT_S = 300.0
SHUTDOWN_S = 2.0
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a terminal or a cluster sends them to the whole group


class ReadAhead(Protocol):
    """What the loader asks of either."""

    @property
    def free(self) -> int:
        """Jobs that can be given now."""
        ...

    @property
    def due(self) -> tuple[str, np.ndarray] | None:
        """(who reads it, indices of its samples) of the oldest job; None where there is none."""
        ...

    def give(self, epochs: np.ndarray, indices: np.ndarray) -> None:
        """Sends off a job: some samples by index, each with its epoch."""
        ...

    def take(self, pixels_BCHW: np.ndarray) -> list[Drawn]:
        """The pairs of the oldest job, whose pixels are copied into pixels_BCHW. Raises: what its reading raised."""
        ...

    def close(self) -> None:
        """Ends it, without waiting for what is being read."""
        ...


class ThreadPool:
    """Threads of this process that fill `slots` slots of `rows` pictures each. Decoding leaves the interpreter free.

    They take turns at the source, which need not be made for threads.
    """

    def __init__(self, reader: PairReader, rows: int, slots: int) -> None:
        self.reader = reader
        if isinstance(reader.turn, contextlib.nullcontext):
            reader.turn = threading.Lock()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(min(cores, MOST_THREADS), "loader")
        shape = slots, rows, reader.channels, reader.image_size_px, reader.image_size_px
        self._slots_NBCHW = np.empty(shape, np.uint8)
        self._free = deque(range(slots))
        self._jobs: deque[tuple[int, np.ndarray, list[Future[Drawn]]]] = deque()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def due(self) -> tuple[str, np.ndarray] | None:
        return ("the loader", self._jobs[0][1]) if self._jobs else None

    def give(self, epochs: np.ndarray, indices: np.ndarray) -> None:
        slot = self._free.popleft()
        rows = zip(epochs.tolist(), indices.tolist(), self._slots_NBCHW[slot], strict=False)
        pairs = [self._executor.submit(self.reader.read, *row) for row in rows]
        self._jobs.append((slot, indices, pairs))

    def take(self, pixels_BCHW: np.ndarray) -> list[Drawn]:
        slot, indices, futures = self._jobs[0]
        pairs = [future.result() for future in futures]
        self._jobs.popleft()
        pixels_BCHW[:] = self._slots_NBCHW[slot, : len(indices)]
        self._free.append(slot)
        return pairs

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Job(NamedTuple):
    slot: int
    worker: int
    epochs: np.ndarray
    indices: np.ndarray


class WorkerPool:
    """`workers` processes that fill `slots` slots of `rows` pictures each; results come in the order of the jobs.

    Args: timeout_s is how long a job may take once it is waited for.
    Raises: DataError if the reader's source can't be sent to another process.
    """

    def __init__(self, reader: PairReader, workers: int, rows: int, slots: int, timeout_s: float = TIMEOUT_S) -> None:
        self.reader, self.timeout_s = reader, timeout_s
        context = multiprocessing.get_context("spawn")  # a fork copies the locks of torch's threads, which then hang
        shape = slots, rows, reader.channels, reader.image_size_px, reader.image_size_px
        memory = context.RawArray("B", int(np.prod(shape)))  # a file without a name: no kill leaves it behind
        self._slots_NBCHW = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = deque(range(slots))
        self._jobs: deque[_Job] = deque()
        self._turns = itertools.cycle(range(workers))
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Before multiprocessing's own end, which would wait for workers that wait for this process.
        self._end = util.Finalize(self, _shut_down, (self._processes, self._pipes), exitpriority=100)
        try:
            sent = ForkingPickler.dumps(reader)
        except Exception as error:
            raise DataError(f"the pairs can't be sent to worker processes ({error}); set data.workers=0") from error
        for number in range(workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(
                target=_work, args=(theirs, memory, shape), name=f"loader worker {number}", daemon=True
            )
            try:
                with _signals_held_back():
                    process.start()
            except OSError as error:
                self.close()
                raise DataError(f"worker process {number} of {workers} can't start ({error}); take fewer") from error
            self._processes.append(process)
            theirs.close()
        for pipe in self._pipes:  # and not as an argument: a process that dies before it reads that would hang this one
            with contextlib.suppress(OSError):  # it is dead; `take` says so when its turn comes
                pipe.send_bytes(sent)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def due(self) -> tuple[str, np.ndarray] | None:
        return (f"loader worker {self._jobs[0].worker}", self._jobs[0].indices) if self._jobs else None

    def give(self, epochs: np.ndarray, indices: np.ndarray) -> None:
        job = _Job(self._free.popleft(), next(self._turns), epochs, indices)
        self._jobs.append(job)
        with contextlib.suppress(OSError):  # it is dead; `take` says so when its turn comes
            self._pipes[job.worker].send((job.slot, epochs, indices))

    def take(self, pixels_BCHW: np.ndarray) -> list[Drawn]:
        """As ReadAhead's. Raises: DataError, too, if a worker is dead, or hasn't answered in time."""
        job = self._jobs[0]
        outcome = self._answer(job)
        self._jobs.popleft()
        if isinstance(outcome, OpenCoCaError):
            raise outcome
        if isinstance(outcome, str):
            raise RuntimeError(f"loader worker {job.worker} failed on {self._names(job)}:\n{outcome}")
        pixels_BCHW[:] = self._slots_NBCHW[job.slot, : len(job.indices)]
        self._free.append(job.slot)
        return outcome

    def close(self) -> None:
        self._end()

    def _answer(self, job: _Job) -> list[Drawn] | str | OpenCoCaError:
        pipe = self._pipes[job.worker]
        if not wait([pipe], self.timeout_s):
            raise DataError(
                f"loader worker {job.worker} hasn't answered for {self.timeout_s:g} s while it read "
                f"{self._names(job)}; check these samples and the disk they are on"
            )
        try:
            return pipe.recv()
        except (EOFError, OSError):
            process = self._processes[job.worker]
            process.join(SHUTDOWN_S)  # the pipe may end a moment before the process
            code = process.exitcode
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            raise DataError(
                f"loader worker {job.worker} (process {process.pid}) ended {how} while it read {self._names(job)}; "
                "if memory ran out, take fewer data.workers"
            ) from None

    def _names(self, job: _Job) -> str:
        return ", ".join(self.reader.source.keys[int(i)] for i in job.indices)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that start in here are born deaf to what ends a whole group; this one hears of it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(processes: Sequence[BaseProcess], pipes: Sequence[Connection]) -> None:
    """Ends the workers: the idle ones see their pipe close, the others are killed."""
    for pipe in pipes:
        pipe.close()
    until = time.monotonic() + SHUTDOWN_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
        process.close()


def _work(pipe: Connection, memory, shape: tuple[int, ...]) -> None:
    """Reads jobs until the pipe closes, which it does too when the training process dies."""
    for number in GROUP_SIGNALS:  # the training process decides
        signal.signal(number, signal.SIG_IGN)
    slots_NBCHW = np.frombuffer(memory, np.uint8).reshape(shape)
    reader: PairReader = pipe.recv()
    while True:
        try:
            slot, epochs, indices = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pictures = slots_NBCHW[slot]
            outcome = [
                reader.read(int(epoch), int(index), pictures[row])
                for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True))
            ]
        except OpenCoCaError as error:
            outcome = error
        except Exception:
            outcome = traceback.format_exc()
        try:
            pipe.send(outcome)
        except OSError:
            return
