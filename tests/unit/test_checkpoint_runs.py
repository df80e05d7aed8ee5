"""Which checkpoint of a run is the latest, and which are removed."""

import contextlib
import itertools
from pathlib import Path

import pytest
from tests.checkpoints import refused, value_of, write

from opencoca import checkpoint
from opencoca.checkpoint import MODEL
from opencoca.errors import CheckpointError


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_older_checkpoints_are_removed(tmp_path, keep):
    for step in (5, 10, 15, 20):
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path, step), step), keep)
        assert steps(tmp_path) == [5, 10, 15, 20][: step // 5][-keep:]
        assert value_of(tmp_path) == step


def test_the_latest_is_never_removed(tmp_path):
    """A run that went back to an older checkpoint has newer folders beside it, which don't push it out."""
    for step in (5, 10, 15):
        write(checkpoint.checkpoint_folder(tmp_path, step), step)
    checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 10), keep=1)
    assert steps(tmp_path) == [10, 15]
    assert value_of(tmp_path) == 10


def test_a_damaged_checkpoint_never_becomes_the_latest(tmp_path):
    for step in (5, 10):
        write(checkpoint.checkpoint_folder(tmp_path, step), step)
    checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 5), keep=1)
    (checkpoint.checkpoint_folder(tmp_path, 10) / MODEL).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=MODEL):
        checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 10), keep=1)
    assert value_of(tmp_path) == 5


@pytest.mark.parametrize(
    "name", ["step-00000099", "", ".", "..", "../..", "/etc", "step-1/../..", "x" * 5000, "a\0b", "\xff"]
)
def test_a_pointer_that_names_no_checkpoint_is_refused(tmp_path, name):
    checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path, 5)), keep=2)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.write_bytes(name.encode("latin-1"))
    refused(tmp_path, str(pointer), "write the name of another checkpoint")


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoint.latest_checkpoint(tmp_path) is None
    assert checkpoint.latest_checkpoint(tmp_path / "nowhere") is None


def test_a_damaged_pointer_never_names_another_checkpoint(tmp_path):
    """Two checkpoints whose names differ by one bit, and every flip of the pointer."""
    for step in (2, 3):
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path, step), step), keep=2)
    pointer = tmp_path / "checkpoints" / "latest"
    whole = pointer.read_bytes()
    for place, bit in itertools.product(range(len(whole)), range(8)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        pointer.write_bytes(flipped)
        with contextlib.suppress(CheckpointError):
            found = checkpoint.latest_checkpoint(tmp_path)
            assert found is not None and found.name == "step-00000003"
    pointer.write_text("step-00000002\n")  # by hand, as the error says
    assert value_of(tmp_path) == 2
