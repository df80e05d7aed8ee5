"""Watching a run: how fast it is, whether its loss jumps, and whether it still moves at all."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from opencoca.errors import CheckpointError, TrainingError
from opencoca.train.machine import peak_memory_bytes

STALLED = 70  # the exit code of a run that the watchdog ended (EX_SOFTWARE)
SHOWN_KEYS = 8
LOOKING = 0.02  # of the time goes into measuring what the machine could do, at most


class Meter:
    """Speed since the last report: samples and caption tokens per second, waiting for data, model-FLOPs utilisation.

    What one device could do is measured again and again (`look_again`), since machines are shared; the mean counts.

    Args: peak_flops measures operations per second; `device`, where it is a GPU, has its memory reported too.
    """

    def __init__(
        self,
        peak_flops: Callable[[], float],
        device: torch.device | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._measure, self._clock = peak_flops, clock
        self._peaks: list[float] = []
        self._next_look = -math.inf
        self._gpu = device if device is not None and device.type == "cuda" else None
        self.look_again()

    @property
    def peak_flops(self) -> float:
        """Operations per second that one device could do: the mean of what was measured so far."""
        return statistics.fmean(self._peaks)

    def look_again(self) -> None:
        """Measures what the device can do now, unless too little time has passed (LOOKING), and begins a new span."""
        began = self._clock()
        if began < self._next_look:
            return
        self._peaks.append(self._measure())
        ended = self._clock()
        self._next_look = ended + (ended - began) / LOOKING
        self.restart()

    def restart(self) -> None:
        """Begins a new span, for which nothing is counted yet."""
        self._began = self._mark = self._step_began = self._clock()
        self._waited = self._flops = 0.0
        self._samples = self._tokens = 0

    def data_arrived(self) -> None:
        """Notes that all since the last step was waiting for data."""
        self._waited += self._clock() - self._mark

    def count(self, samples: int, flops: int, tokens: int = 0) -> float:
        """Notes a finished step and returns the seconds that it took, waiting for its data included.

        Args: samples and tokens are those of the global batch (real caption tokens, no padding); flops is this
          rank's share of the operations, since `peak_flops` is one device's.
        """
        self._samples += samples
        self._tokens += tokens
        self._flops += flops
        seconds = self._clock() - self._step_began
        self._mark = self._step_began = self._clock()
        return seconds

    def rates(self) -> dict[str, float]:
        """The figures since the last report, and a new span begins. Memory is the most so far, in GB."""
        seconds = max(self._clock() - self._began, 1e-9)
        rates = {
            "samples_per_s": self._samples / seconds,
            "tokens_per_s": self._tokens / seconds,
            "matmul_gflops": self.peak_flops / 1e9,
            "mfu": self._flops / seconds / self.peak_flops,
            "data_wait": self._waited / seconds,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        if self._gpu is not None:
            rates["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._gpu) / 1e9
        self.restart()
        return rates


class SpikeGuard:
    """Says which steps to leave out: those whose loss is more than `factor` times the recent median.

    It is a function of the losses alone: ranks that give it the global loss judge alike, and `state` makes it the
    same after a resume. The median is over the last `window` good steps; the first `warm_up` are all good.
    """

    def __init__(self, factor: float, window: int = 100, warm_up: int = 20, most_in_a_row: int = 50) -> None:
        self.factor, self.warm_up, self.most_in_a_row = factor, warm_up, most_in_a_row
        self._losses: deque[float] = deque(maxlen=window)
        self._in_a_row = 0

    def judge(self, loss: float) -> bool:
        """True for a spike, which then doesn't count for the median; a loss that isn't finite always is one.

        Raises: TrainingError after `most_in_a_row` spikes: the loss has not jumped, it has moved.
        """
        is_spike = not math.isfinite(loss)
        if len(self._losses) >= self.warm_up:
            is_spike |= loss > self.factor * self.median
        if not is_spike:
            self._losses.append(loss)
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._in_a_row >= self.most_in_a_row:
            median = f"{self.median:.4g}" if self._losses else "none yet"
            raise TrainingError(
                f"{self._in_a_row} steps in a row were left out as spikes: the loss is {loss:.4g}, the recent median "
                f"was {median}, run.max_loss_spike is {self.factor:g}; lower the learning rate, or set it to 0"
            )
        return True

    @property
    def median(self) -> float:
        """Median loss of the recent good steps; NaN before the first."""
        return statistics.median(self._losses) if self._losses else math.nan

    def state(self) -> dict[str, Any]:
        """What a checkpoint carries, ready for JSON: some hundred numbers."""
        return {"losses": list(self._losses), "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`; an empty one is a fresh start.

        Raises: CheckpointError for anything else.
        """
        losses, in_a_row = state.get("losses", []), state.get("in_a_row", 0)
        numbers = isinstance(losses, list) and all(isinstance(loss, int | float) for loss in losses)
        if not numbers or not isinstance(in_a_row, int):
            raise CheckpointError(f"the state of the spike guard is {str(state)[:80]}; resume from another checkpoint")
        self._losses.clear()
        self._losses.extend(losses)
        self._in_a_row = in_a_row


class StallWatchdog:
    """Ends a process that has stopped moving, and says where it hangs: on standard error and in RUN/stall-rank<k>.txt.

    As a context manager around the steps; `alive` is the sign of life. A thread of its own reports after `timeout_s`
    without one, waits `linger_s` for the other ranks' reports, and ends the process with exit code 70. Nothing gentler
    is sure to work: the main thread is inside a collective or a read that never returns, so no exception reaches it and
    no signal handler runs. The launcher sees the exit, stops the other ranks and starts again from the checkpoint.
    Should the hang also keep this thread from running (it holds the interpreter's lock), `faulthandler`, which needs
    no interpreter, prints the stacks and ends the process with exit code 1.

    Args:
        timeout_s: seconds without a sign of life; 0 watches nothing.
        rank: this process's number, for the report.
        describe: says in a few words what the data is waiting for (workers, shards); called from the thread.
        run: the folder that the report goes into.
        start_timeout_s: the same for the first step, which compiles and connects; default: 10 minutes or `timeout_s`,
            whichever is longer.
    """

    def __init__(
        self,
        timeout_s: float,
        rank: int = 0,
        describe: Callable[[], str] | None = None,
        run: Path | None = None,
        *,
        start_timeout_s: float | None = None,
        linger_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.timeout_s, self.rank, self._describe, self._run = timeout_s, rank, describe, run
        self._start_timeout_s = max(timeout_s, 600.0) if start_timeout_s is None else start_timeout_s
        self._linger_s, self._clock, self._end = linger_s, clock, end
        self._interval_s = min(1.0, timeout_s / 4)
        self._backstop_s = max(timeout_s, self._start_timeout_s) + linger_s + self._interval_s
        self._backstop = False
        self._main = threading.get_ident()
        self._step: int | None = None
        self._steps_seen = 0
        self._keys: tuple[str, ...] = ()
        self._paused = ""
        self._last = clock()
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StallWatchdog:
        self._main, self._last = threading.get_ident(), self._clock()
        if self.timeout_s > 0:
            self._backstop = _arm(self._backstop_s)
            self._thread = threading.Thread(target=self._watch, name="stall watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        if self._thread is not None:
            self._thread.join()

    def alive(self, step: int, keys: Sequence[str] = ()) -> None:
        """A sign of life: `step` begins to wait for its data, or has its batch, whose `keys` are then given."""
        if step != self._step:
            self._step, self._steps_seen = step, self._steps_seen + 1
        self._keys = tuple(keys)
        self._last = self._clock()

    @contextlib.contextmanager
    def paused(self, reason: str) -> Iterator[None]:
        """Watches nothing inside the block, which takes as long as it takes: an evaluation, a checkpoint."""
        self._paused = reason
        try:
            yield
        finally:
            self._last = self._clock()
            self._paused = ""

    def check(self) -> str | None:
        """What there is to say, in one line, if the process has stalled."""
        limit = self.timeout_s if self._steps_seen > 1 else self._start_timeout_s
        still_s = self._clock() - self._last
        if self._paused or still_s < limit:
            return None
        where = "before its first step" if self._step is None else f"in step {self._step}"
        return f"rank {self.rank} has stalled {where}: nothing for {still_s:.0f} s while {self._doing()}"

    def _doing(self) -> str:
        collective = _collective(sys._current_frames().get(self._main))
        if collective:
            what = f"waiting for the other ranks in {collective}"
        elif self._keys:
            what = "computing, or waiting for the other ranks"
        else:
            what = "waiting for data"
            if self._describe is not None:
                try:
                    what += f" ({self._describe()})"
                except Exception as error:  # a report that fails must not keep the process alive
                    what += f" (and it can't say which: {type(error).__name__}: {error})"
        if self._keys:
            more = ", ..." if len(self._keys) > SHOWN_KEYS else ""
            what += f", with the batch {', '.join(self._keys[:SHOWN_KEYS])}{more}"
        return what

    def _watch(self) -> None:
        armed = time.monotonic()
        while not self._leave.wait(self._interval_s):
            if self._backstop and time.monotonic() - armed > self._backstop_s / 10:
                _arm(self._backstop_s)
                armed = time.monotonic()
            line = self.check()
            if line is not None:
                self._report(line)
                self._leave.wait(self._linger_s)
                self._end(STALLED)
                break
        if self._backstop:
            faulthandler.cancel_dump_traceback_later()

    def _report(self, line: str) -> None:
        stacks = _stacks()
        path = None if self._run is None else self._run / f"stall-rank{self.rank}.txt"
        with contextlib.suppress(OSError):  # a full disk must not keep the process alive either
            if path is not None:
                path.write_text(f"{line}\n\n{stacks}")
        with contextlib.suppress(OSError, ValueError):
            end = f"; the stacks are in {path}, too" if path is not None else ""
            print(f"coca: {line}{end}; ending with exit code {STALLED}\n{stacks}", file=sys.stderr, flush=True)


def _stacks() -> str:
    """The Python stacks of all threads, as `faulthandler` writes them."""
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()
    except OSError as error:
        return f"(no stacks: {error})\n"


def _collective(frame: FrameType | None) -> str:
    """The name of the torch.distributed function that a thread's stack is in, the innermost; empty for none."""
    while frame is not None:
        if f"torch{os.sep}distributed" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


def _arm(seconds: float) -> bool:
    """Sets faulthandler's own timer anew; False where standard error is no file that it could write to."""
    try:
        faulthandler.dump_traceback_later(seconds, exit=True)
    except (OSError, ValueError, AttributeError, RuntimeError):
        return False
    return True
