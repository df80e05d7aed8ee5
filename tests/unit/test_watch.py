"""Speed figures, the spike guard and the stall watchdog, on clocks that the tests move."""

import json
import math
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from opencoca.errors import CheckpointError, TrainingError
from opencoca.train.watch import LOOKING, STALLED, Meter, SpikeGuard, StallWatchdog


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def move(self, seconds):
        self.now += seconds


# --- speed ------------------------------------------------------------------------------------------------------


def test_the_meter_divides_by_the_time_since_the_last_report():
    clock = Clock()
    meter = Meter(lambda: 1e9, device=torch.device("cpu"), clock=clock)
    for _ in range(2):
        clock.move(1.0)
        meter.data_arrived()
        clock.move(3.0)
        assert meter.count(samples=16, flops=int(1e9), tokens=160) == 4.0, "waiting for data is part of the step"
    rates = meter.rates()
    assert (rates["samples_per_s"], rates["tokens_per_s"]) == (4.0, 40.0)
    assert (rates["data_wait"], rates["mfu"], rates["matmul_gflops"]) == (0.25, 0.25, 1.0)
    assert rates["peak_memory_gb"] > 0.01 and "gpu_memory_gb" not in rates
    clock.move(2.0)
    meter.data_arrived()
    meter.count(samples=8, flops=0)
    rates = meter.rates()
    assert (rates["samples_per_s"], rates["tokens_per_s"], rates["data_wait"]) == (4.0, 0.0, 1.0)


def test_utilisation_is_of_the_mean_of_what_the_machine_could_do():
    clock = Clock()
    found = iter([4e9, 1e9, 1e9])  # neighbours took some of it

    def peak():
        clock.move(0.25)
        return next(found)

    meter = Meter(peak, clock=clock)
    for _ in range(2):
        clock.move(0.25 / LOOKING)
        meter.look_again()
    clock.move(1.0)
    assert meter.count(samples=1, flops=int(1e9)) == 1.0, "measuring is no part of the step"
    rates = meter.rates()
    assert (rates["mfu"], rates["matmul_gflops"]) == (0.5, 2.0)


def test_the_machine_is_measured_in_a_small_share_of_the_time():
    clock = Clock()
    looks = []

    def peak():
        looks.append(clock())
        clock.move(0.25)
        return 1e9

    meter = Meter(peak, clock=clock)
    while clock() < 200:
        clock.move(0.5)
        meter.look_again()
    assert 0.9 * LOOKING < 0.25 * len(looks) / (clock() - 100) <= 1.1 * LOOKING


def test_a_restart_forgets_what_was_not_training():
    clock = Clock()
    meter = Meter(lambda: 1e9, clock=clock)
    clock.move(1000.0)
    meter.restart()
    clock.move(1.0)
    meter.data_arrived()
    assert meter.count(3, 0) == 1.0
    assert meter.rates()["samples_per_s"] == 3.0


# --- spikes -----------------------------------------------------------------------------------------------------


def test_a_spike_is_what_lies_far_above_the_median_of_good_steps():
    guard = SpikeGuard(factor=2.0, warm_up=3)
    assert [guard.judge(loss) for loss in (50.0, 1.0, 1.0)] == [False] * 3, "nothing is a spike in the warm-up"
    assert [guard.judge(loss) for loss in (2.0, 3.1, 4.0, 1.9)] == [False, True, True, False]
    assert guard.median == 1.9, "of 50, 1, 1, 2, 1.9: spikes don't count"
    assert guard.judge(3.7) is False and guard.judge(4.0) is True


def test_a_loss_that_is_not_finite_is_a_spike_at_any_time_and_never_counts():
    guard = SpikeGuard(factor=2.0, warm_up=2)
    assert guard.judge(math.nan) and guard.judge(math.inf) and math.isnan(guard.median)
    assert not guard.judge(1.0) and not guard.judge(1.0) and guard.judge(math.nan)
    assert guard.median == 1.0


def test_old_steps_leave_the_median():
    guard = SpikeGuard(factor=2.0, window=4, warm_up=2)
    for loss in (100.0, 100.0, 1.0, 1.0, 1.0, 1.0):
        guard.judge(loss)
    assert guard.median == 1.0 and guard.judge(3.0)


def test_a_guard_goes_on_from_its_state_as_if_it_had_never_stopped():
    losses = [5.0 / (1 + i) + (40.0 if i in (23, 31, 44) else 0.0) + 0.1 * (i % 3) for i in range(60)]
    whole = SpikeGuard(factor=3.0)
    verdicts = [whole.judge(loss) for loss in losses]
    assert [i for i, spike in enumerate(verdicts) if spike] == [23, 31, 44]
    for stop in (0, 10, 24, 45):
        first = SpikeGuard(factor=3.0)
        judged = [first.judge(loss) for loss in losses[:stop]]
        second = SpikeGuard(factor=3.0)
        second.restore(json.loads(json.dumps(first.state())))
        assert judged + [second.judge(loss) for loss in losses[stop:]] == verdicts
        assert second.state() == whole.state()


def test_a_level_that_has_moved_ends_the_run_with_the_repair():
    guard = SpikeGuard(factor=2.0, warm_up=2, most_in_a_row=3)
    guard.judge(1.0), guard.judge(1.0)
    assert guard.judge(9.0) and guard.judge(9.0) and not guard.judge(1.0), "a good step begins the count anew"
    assert guard.judge(9.0) and guard.judge(9.0)
    with pytest.raises(TrainingError, match=r"3 steps in a row .* loss is 9, .* was 1, .* is 2; lower"):
        guard.judge(9.0)


@pytest.mark.parametrize("state", [{"losses": "no"}, {"losses": [1.0, "x"]}, {"losses": [], "in_a_row": None}])
def test_a_damaged_state_of_the_guard_is_refused(state):
    with pytest.raises(CheckpointError, match="spike guard"):
        SpikeGuard(2.0).restore(state)


def test_no_state_is_a_fresh_start():
    guard = SpikeGuard(2.0, warm_up=1)
    guard.judge(1.0)
    guard.restore({})
    assert guard.state() == {"losses": [], "in_a_row": 0}


# --- stalls -----------------------------------------------------------------------------------------------------


def watchdog(clock, **changes):
    return StallWatchdog(10.0, rank=3, clock=clock, start_timeout_s=60.0, **changes)


def test_a_stall_is_named_with_rank_step_and_what_it_waits_for():
    clock = Clock()
    dog = watchdog(clock, describe=lambda: "worker 1 on train-000007.tar")
    clock.move(59.0)
    assert dog.check() is None
    clock.move(1.0)
    assert dog.check() == (
        "rank 3 has stalled before its first step: nothing for 60 s while waiting for data "
        "(worker 1 on train-000007.tar)"
    )
    dog.alive(41)
    dog.alive(41, [f"key-{i}" for i in range(9)])
    clock.move(59.0)
    assert dog.check() is None, "the first step may take its time: it compiles"
    dog.alive(42)
    clock.move(9.9)
    assert dog.check() is None
    clock.move(0.2)
    assert dog.check() == (
        "rank 3 has stalled in step 42: nothing for 10 s while waiting for data (worker 1 on train-000007.tar)"
    )
    dog.alive(42, [f"key-{i}" for i in range(9)])
    assert dog.check() is None
    clock.move(11.0)
    assert dog.check() == (
        "rank 3 has stalled in step 42: nothing for 11 s while computing, or waiting for the other ranks, "
        "with the batch key-0, key-1, key-2, key-3, key-4, key-5, key-6, key-7, ..."
    )


def test_what_is_not_training_is_not_watched():
    clock = Clock()
    dog = watchdog(clock)
    dog.alive(1), dog.alive(2)
    with dog.paused("evaluation"):
        clock.move(1000.0)
        assert dog.check() is None
    assert dog.check() is None, "the time in the pause doesn't count afterwards"
    clock.move(10.0)
    assert "in step 2" in (dog.check() or "")


def test_a_description_that_fails_does_not_stop_the_report():
    clock = Clock()
    dog = watchdog(clock, describe=lambda: {}["worker"])
    clock.move(60.0)
    assert "waiting for data (and it can't say which: KeyError" in (dog.check() or "")


def test_the_report_holds_the_stacks_and_the_process_ends(tmp_path, capsys):
    ended, done = [], threading.Event()

    def end(code):
        ended.append(code)
        done.set()

    clock = Clock()
    with StallWatchdog(0.04, 1, run=tmp_path, start_timeout_s=0.04, linger_s=0.0, clock=clock, end=end) as dog:
        assert not done.wait(0.1), "the clock stands still, so nothing has stalled"
        clock.move(1.0)
        assert done.wait(10.0)
        assert dog.check() is not None
    assert ended == [STALLED]
    report = (tmp_path / "stall-rank1.txt").read_text()
    assert report.startswith("rank 1 has stalled before its first step: nothing for 1 s while waiting for data\n\n")
    assert "Thread 0x" in report and "test_watch.py" in report
    line, *stacks = capsys.readouterr().err.splitlines()
    assert line.startswith("coca: rank 1 has stalled") and line.endswith(f"ending with exit code {STALLED}")
    assert any("test_watch.py" in frame for frame in stacks)


def test_without_a_timeout_there_is_no_thread():
    before = threading.active_count()
    with StallWatchdog(0.0) as dog:
        dog.alive(1)
        assert threading.active_count() == before


def run_python(text, *arguments):
    words = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_a_collective_that_hangs_is_named_and_ended(tmp_path):
    done = run_python(
        """
        import datetime, pathlib, sys
        import torch, torch.distributed as dist
        from opencoca.train.watch import StallWatchdog

        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
        dist.init_process_group("gloo", store=dist.PrefixStore("x", store), rank=0, world_size=1)
        # a group of one never waits for another rank, so what hangs here is the store, below a collective's name
        with StallWatchdog(0.3, 0, run=pathlib.Path(sys.argv[1]), start_timeout_s=0.3, linger_s=0.1) as dog:
            dog.alive(7, ["a", "b"])
            dist.distributed_c10d._store_based_barrier(0, store, "g", 2, datetime.timedelta(seconds=50))
        """,
        tmp_path,
    )
    assert done.returncode == STALLED, done.stderr
    line = (tmp_path / "stall-rank0.txt").read_text().splitlines()[0]
    assert line.endswith("s while waiting for the other ranks in _store_based_barrier, with the batch a, b")
    assert "rank 0 has stalled in step 7" in line


def test_a_hang_that_holds_the_interpreters_lock_ends_too():
    done = run_python(
        """
        import ctypes
        from opencoca.train.watch import StallWatchdog

        sleep = ctypes.PyDLL(None).usleep  # PyDLL keeps the lock during the call: no other Python thread runs
        with StallWatchdog(0.2, start_timeout_s=0.2, linger_s=0.1) as dog:
            sleep(50_000_000)
        """
    )
    assert done.returncode == 1, done.stderr
    assert "Timeout" in done.stderr and 'File "<string>"' in done.stderr, "the stack of what hangs"
