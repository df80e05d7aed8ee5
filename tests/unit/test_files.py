"""Files that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opencoca.files import replacing, write_atomically


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "old \u00e9")
    assert path.read_bytes() == b"old \xc3\xa9"
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff" and os.listdir(path.parent) == ["file.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_an_error_names_the_file_and_not_what_stands_for_it(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PermissionError) as refused:
        write_atomically(tmp_path / "file", b"new")
    assert refused.value.filename == str(tmp_path / "file")


WRITER = """
import os, sys
from pathlib import Path
from opencoca.files import write_atomically
os.fsync = lambda _: None
for _ in range(200):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path, seen = tmp_path / "file", set()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 5000, "b" * 5000} and seen
    assert os.listdir(tmp_path) == ["file"]
