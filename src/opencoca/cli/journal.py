"""The FILE of --output: whole rows, written as they come, and a rerun that goes on behind the last of them.

Beside it stands FILE.about.json with the command, the model's fingerprint and the options that made the rows, so that
rows of two models never mix.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from opencoca.cli.forms import Form, Row
from opencoca.cli.targets import writing
from opencoca.errors import DataError
from opencoca.files import write_atomically

VERSION = 1


def about_file(file: Path) -> Path:
    """Where the facts about an output file stand."""
    return file.with_name(f"{file.name}.about.json")


class Journal:
    """An output file in which each picture has its row once.

    `done` counts the rows that were there already, by picture. Between two calls of `add` the file is whole.
    """

    def __init__(self, file: Path, form: Form, about: Mapping[str, Any], overwrite: bool = False) -> None:
        """Opens the file, and reads which rows it has.

        Raises: DataError where it is somebody else's, of another model or of other options, or can't be written.
        """
        self.file, self._form = file, form
        if file.is_dir():
            raise DataError(f"{file} is a folder; name a file for --output")
        facts = facts_of(about, form.name)
        fresh = overwrite or not file.exists() or file.stat().st_size == 0
        if not fresh:
            check_same(file, facts)
        self.done: Counter[str] = Counter()
        self._end, self._empty = 0, True
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("r+b" if file.exists() else "x+b", buffering=0)
        try:
            _lock(self._file, file)
            if not fresh:
                self._read()
            if not self._end:
                write_atomically(about_file(file), json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
                self._append(form.opening, empty=True)
        except BaseException:
            self._file.close()
            raise

    def left(self, names: Sequence[str]) -> list[bool]:
        """True for each name whose row is not there yet."""
        there = self.done.copy()
        left = []
        for name in names:
            key = self._form.key(name)
            left.append(there[key] == 0)
            there[key] -= not left[-1]  # two names that are written alike have two rows
        return left

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows behind those that are there."""
        pieces = [self._form.piece(row, first=self._empty and not i) for i, row in enumerate(rows)]
        self._append("".join(pieces), empty=self._empty and not rows)

    def finish(self) -> None:
        """Flushes the file to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, which is whole at any time."""
        self._file.close()

    def _read(self) -> None:
        try:
            with self.file.open("rb") as lines:
                for kept in self._form.read(lines):
                    self.done[kept.key] += 1
                    self._end = kept.end
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.file} isn't {self._form.name} as it was written ({error}); restore it, name another --output, "
                "or start it afresh with --overwrite"
            ) from error
        if self.done:
            self._append("", empty=False)

    def _append(self, text: str, empty: bool) -> None:
        """Puts `text` where the last row ends, and what closes the file behind it; on an error all is as before."""
        content = text.encode(errors="backslashreplace")
        try:
            self._put(content + self._form.closing(empty).encode())
        except BaseException:
            with contextlib.suppress(OSError):
                self._put(self._form.closing(self._empty).encode())
            raise
        self._end += len(content)
        self._empty = empty

    def _put(self, content: bytes) -> None:
        self._file.seek(self._end)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file.truncate()


def facts_of(about: Mapping[str, Any], form: str) -> dict[str, Any]:
    """What stands in FILE.about.json of a file in this form."""
    return json.loads(json.dumps({"version": VERSION, **about, "form": form}))  # tuples become lists


def check_same(file: Path, facts: Mapping[str, Any]) -> None:
    """Refuses an output file that something else has made than what is about to be added.

    Raises: DataError that names the first difference and the repair.
    """
    repair = "name another --output, or start it afresh with --overwrite"
    try:
        written = json.loads(about_file(file).read_text(encoding="utf-8"))
        if not isinstance(written["options"], dict) or not isinstance(facts["options"], dict):
            raise TypeError("options")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{file} is there already and has no {about_file(file).name} that fits; {repair}") from None
    for name in ("version", "command", "form"):
        if written.get(name) != facts[name]:
            raise DataError(f"{file} was written with {name} {written.get(name)!r}, not {facts[name]!r}; {repair}")
    if written.get("model") != facts["model"]:
        raise DataError(f"{file} was written with another model; give that one by --model, {repair}")
    before, now = written["options"], facts["options"]
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            was, wanted = (_short(options.get(name)) for options in (before, now))
            raise DataError(f"{file} was written with {name} {was}, and now it is {wanted}; give the same, {repair}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lock(opened: BinaryIO, file: Path) -> None:
    """Keeps a second command from writing the same file; the system frees it when this one ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{file} is being written by another command; wait for it, or name another --output") from error
    except OSError:  # a file system without locks
        return
