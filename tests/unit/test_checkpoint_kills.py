"""A save that is killed or meets a full disk leaves the old checkpoint or the new one."""

import contextlib
import errno
import os
import shutil

import pytest
from tests.checkpoints import (
    Killed,
    calls_of,
    failing,
    file_size_limit,
    leftovers,
    refused,
    value_of,
    write,
)

from opencoca import checkpoint
from opencoca.errors import CheckpointError


@pytest.fixture
def no_wait(monkeypatch):
    """The disk is not waited for, which is most of a small save's time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_inside_a_save_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, no_wait, after):
    calls = calls_of(monkeypatch, lambda: write(write(tmp_path / "c", 1.0), 2.0))
    assert calls > 30
    seen = []
    for at in range(1, calls):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        write(tmp_path / "c", 1.0)
        with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
            write(tmp_path / "c", 2.0)
        seen.append(value_of(tmp_path / "c"))
        if at % 3 == 0:  # killed again, at the same place, while it makes up for it
            with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
                write(tmp_path / "c", 2.0)
            assert value_of(tmp_path / "c") in (1.0, 2.0)
            assert value_of(tmp_path / "c") >= seen[-1]
        write(tmp_path / "c", 3.0)
        assert value_of(tmp_path / "c") == 3.0
        assert leftovers(tmp_path) == []
    assert set(seen) == {1.0, 2.0} and seen == sorted(seen)


def test_a_kill_inside_the_first_save_leaves_nothing_that_loads(tmp_path, monkeypatch, no_wait):
    calls = calls_of(monkeypatch, lambda: write(tmp_path / "c", 1.0))
    for at in range(1, calls + 1):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        with failing(monkeypatch, at, Killed(), False), contextlib.suppress(Killed):
            write(tmp_path / "c", 2.0)
        if (tmp_path / "c").exists():
            assert value_of(tmp_path / "c") == 2.0
        else:
            refused(tmp_path / "c", "doesn't exist")


@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_is_one_clear_line_and_the_old_one_stays(tmp_path, monkeypatch, no_wait, replacing):
    def start():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        if replacing:
            write(tmp_path / "c", 1.0)

    start()
    calls = calls_of(monkeypatch, lambda: write(tmp_path / "c", 2.0))
    errors = 0
    for at in range(1, calls + 1):
        start()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            with failing(monkeypatch, at, full, False):
                write(tmp_path / "c", 2.0)
        except CheckpointError as error:
            errors += 1
            assert str(error) == (
                f"can't write {tmp_path / 'c'} (No space left on device); free some space or choose another folder; "
                "older checkpoints are untouched"
            )
            if replacing:
                assert (tmp_path / "c").is_dir()
                assert value_of(tmp_path / "c") in (1.0, 2.0)
        else:
            assert value_of(tmp_path / "c") == 2.0  # only tidying up failed
    assert errors > 10


def test_a_full_disk_in_the_weights(tmp_path):
    """The real thing: the system refuses to let a file grow, and safetensors raises an error of its own."""
    write(tmp_path / "c", 1.0)
    said = r"can't write .*c \(.*(File too large|os error 27).*\); raise the limit on the .*; older checkpoints are"
    with file_size_limit(1_000_000), pytest.raises(CheckpointError, match=said):
        write(tmp_path / "c", 2.0, size=400_000)
    assert value_of(tmp_path / "c") == 1.0
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_latest_moves_leaves_a_run_that_loads(tmp_path, monkeypatch, no_wait, after):
    def begin():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for step in (1, 2):
            checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path / "run", step), step), keep=2)

    def go_on():
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path / "run", 3), 3.0), keep=2)

    begin()
    calls, seen = calls_of(monkeypatch, go_on), []
    for at in range(1, calls + 1):
        begin()
        with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
            go_on()
        seen.append(value_of(tmp_path / "run"))
        go_on()
        assert value_of(tmp_path / "run") == 3.0
        assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step-00000002", "step-00000003"]
    assert set(seen) == {2.0, 3.0} and seen == sorted(seen)
