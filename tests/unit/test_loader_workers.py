"""Worker processes: the same batches as without them, in bounded memory; a dead or hung one is named, nothing hangs."""

import io
import os
import signal
import time
from pathlib import Path

import pytest
from tests.faults import Faulty
from tests.pairs import make, photo, same

from opencoca.data.augment import Augmentation
from opencoca.data.shards import ShardWriter
from opencoca.errors import DataError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, samples_per_shard=20) as writer:
        for i in range(50):
            file = io.BytesIO()
            photo(40 + i, 30, seed=i).save(file, "PNG")
            writer.add("train", f"k{i:02d}", file.getvalue(), f"picture number {i}", {})
    return folder


def test_workers_change_nothing(folder):
    """Not with more workers than shards, damaged samples, a jump or a second start either."""
    options = {"batch_size": 24, "augmentation": Augmentation((0.5, 1.0), True, (1, 9), 1), "shuffle_window": 2}
    lost = {f"k{i:02d}": "lost" for i in (3, 7, 31)}
    plain = make(Faulty(folder, **lost), 2, **options)
    loader = make(Faulty(folder, **lost), 2, workers=4, **options)
    for positions in (range(0, 96, 24), range(29, 101, 24)):
        batches = loader.batches(positions[0])
        for position in positions:
            batch, after = next(batches)
            assert after == position + 24 and same(batch, plain.batch(position))
    assert loader.counts == plain.counts == {"can't be read": loader.counts.total()} and loader.counts.total() >= 6
    assert loader.skipped == plain.skipped and len(loader.skipped) == 3 and loader.drawn == plain.drawn
    assert "loader worker" in loader.describe() and "of 3" in loader.describe()
    loader.close()
    assert same(loader.batch(96), plain.batch(96))
    processes = loader._pool._processes
    pids = [process.pid for process in processes]
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 5 and not any(is_alive(pid) for pid in pids)


def test_threads_change_nothing_either(folder):
    """Read ahead or asked for singly, walking or jumping, after an error too."""
    source = Faulty(folder, k03="lost")
    loader, single = make(source, 2, batch_size=20), make(source, 2, batch_size=20)
    expected = [single.batch(20 * i) for i in range(6)]
    walking = loader.batches()
    assert all(same(next(walking)[0], batch) for batch in expected[:3])
    assert "the loader reads k" in loader.describe() and "of 3" in loader.describe()
    assert same(loader.batch(0), expected[0]) and loader.describe() == "the loader has nothing to read"
    assert same(next(loader.batches(100))[0], expected[5])
    source.faults["k17"] = "bug"
    with pytest.raises(ZeroDivisionError):
        for _ in zip(range(4), loader.batches(), strict=False):
            pass
    assert loader._pool is None
    del source.faults["k17"]
    assert same(loader.batch(40), expected[2])
    loader.close()
    loader.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def failing(folder: Path, fault: str, timeout_s: float = 60) -> tuple[Exception, float]:
    """What a loader with one bad sample among good ones raises, and after how many seconds."""
    loader = make(Faulty(folder, k17=fault), batch_size=10, workers=2)
    batches = loader.batches()
    assert "k17" not in next(batches)[0].keys  # the workers have started before the clock runs
    loader._pool.timeout_s = timeout_s
    with pytest.raises((DataError, RuntimeError)) as caught:
        for _ in range(5):
            began = time.monotonic()
            next(batches)
    assert loader._pool is None
    return caught.value, time.monotonic() - began


def test_a_killed_worker_is_named(folder):
    error, _ = failing(folder, "kill")
    assert isinstance(error, DataError) and "k17" in str(error) and "ended by signal 9 while it read" in str(error)
    assert "loader worker" in str(error) and "\n" not in str(error)


def test_an_idle_worker_that_is_killed_is_named(folder):
    loader = make(Faulty(folder), batch_size=10, workers=2)
    batches = loader.batches()
    next(batches)
    victim = loader._pool._processes[1]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=rf"loader worker 1 \(process {victim.pid}\) ended by signal 9"):
        for _ in zip(range(20), batches, strict=False):
            pass


def test_a_hung_worker_is_named(folder):
    error, seconds = failing(folder, "hang", timeout_s=1.0)
    assert isinstance(error, DataError) and "hasn't answered for 1 s while it read" in str(error)
    assert "k17" in str(error) and seconds < 10


def test_a_bug_is_no_bad_data(folder):
    error, _ = failing(folder, "bug")
    assert isinstance(error, RuntimeError) and "ZeroDivisionError: a bug" in str(error) and "k17" in str(error)


def test_a_source_that_cannot_be_sent_is_refused(folder):
    source = Faulty(folder)
    source.unsendable = open(os.devnull)  # noqa: SIM115
    with pytest.raises(DataError, match=r"can't be sent to worker processes .* set data.workers=0"):
        make(source, workers=1).batch(0)
    source.unsendable.close()


def test_signals_are_the_training_processs_affair(folder):
    loader = make(Faulty(folder), batch_size=10, workers=2)
    batches = loader.batches()
    next(batches)
    for process in loader._pool._processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    for _ in zip(range(20), batches, strict=False):
        pass
    loader.close()


def test_shared_memory_is_bounded_and_reused(folder):
    """Twenty batches pass through the slots of one."""
    loader = make(Faulty(folder), batch_size=40, workers=2)
    seen = {}
    for batch, _ in zip(range(20), loader.batches(), strict=False):
        del batch
        slots = loader._pool._slots_NBCHW
        seen[slots.ctypes.data] = slots.nbytes
    assert len(seen) == 1 and next(iter(seen.values())) <= (40 + 2 * 16 + 16) * 3 * 16 * 16
    loader.close()
