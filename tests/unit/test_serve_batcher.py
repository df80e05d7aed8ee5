"""The queue in front of the model: batches, bounds, late jobs and jobs that nobody wants any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from opencoca.serve.batcher import Batcher, BusyError
from opencoca.serve.words import WordList


@dataclass
class Job:
    name: int = 0
    gone: bool = False
    late: bool = False

    def abandoned(self) -> bool:
        return self.gone

    def too_late(self) -> None:
        self.late = True


class Held:
    """A batcher whose model waits to be let go, batch by batch."""

    def __init__(self, **changes) -> None:
        self.batches: list[list[Job]] = []
        self.go, self.busy = threading.Semaphore(0), threading.Semaphore(0)
        options = {"max_batch": 4, "max_wait_s": 0.0, "max_queue": 10, "max_age_s": 60.0, **changes}
        self.batcher: Batcher[Job] = Batcher(self.run, **options)

    def run(self, jobs: list[Job]) -> None:
        self.batches.append(jobs)
        self.busy.release()
        self.go.acquire(timeout=10)

    def put(self, *jobs: Job) -> None:
        for job in jobs:
            self.batcher.reserve()
            self.batcher.submit(job)

    def names(self) -> list[list[int]]:
        return [[job.name for job in batch] for batch in self.batches]

    def end(self) -> None:
        self.go.release(100)
        self.batcher.close()
        assert not self.batcher.alive


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.end()


def test_what_comes_while_the_model_works_is_the_next_batch(held: Held) -> None:
    held.put(Job(0))
    held.busy.acquire(timeout=5)
    held.put(*(Job(i) for i in range(1, 7)))
    held.end()
    assert held.names() == [[0], [1, 2, 3, 4], [5, 6]]


def test_the_queue_is_bounded_and_what_is_reserved_counts(held: Held) -> None:
    held.put(Job(0))
    held.busy.acquire(timeout=5)
    held.batcher.reserve(9)
    held.put(Job(1))
    with pytest.raises(BusyError) as refused:
        held.batcher.reserve()
    assert 1 <= refused.value.retry_after_s <= 60
    held.batcher.release(9)
    held.batcher.reserve(9)
    held.batcher.release(9)
    assert held.batcher.depth == 1


def test_late_and_unwanted_jobs_are_left_out() -> None:
    held = Held(max_age_s=0.05)
    held.put(Job(0))
    held.busy.acquire(timeout=5)
    late, unwanted = Job(1), Job(2, gone=True)
    held.put(late, unwanted)
    time.sleep(0.1)
    fresh = Job(3)
    held.put(fresh)
    held.end()
    assert held.names() == [[0], [3]] and (late.late, unwanted.late, fresh.late) == (True, False, False)


def test_a_batch_waits_for_pictures_that_are_being_read_and_for_nothing_else() -> None:
    held = Held(max_wait_s=5.0)
    began = time.monotonic()
    held.put(Job(0))  # nobody else is announced
    held.busy.acquire(timeout=5)
    assert time.monotonic() - began < 2
    held.batcher.reserve(2)
    held.put(Job(1))
    held.go.release()
    time.sleep(0.1)
    assert len(held.batches) == 1  # it waits for the two
    for name in (2, 3):
        held.batcher.submit(Job(name))
    held.busy.acquire(timeout=5)
    assert held.names()[1] == [1, 2, 3]
    held.end()


def test_words_are_found_whole_in_any_case_and_encoding() -> None:
    words = WordList(["Bad", "two  words", "ünï", "c++", ""])
    for text in (
        "so bad!",
        "BAD",
        "two words",
        "Two, words",
        "two\nwords",
        "u\u0308ni\u0308",
        "ÜNÏ",
        "\uff42\uff41\uff44",
        "c++ code",
    ):
        assert words.holds(text), text
    for text in ("badge", "two swords", "uni", "c+", ""):
        assert not words.holds(text), text
    assert not WordList([]) and not WordList([]).holds("bad")
