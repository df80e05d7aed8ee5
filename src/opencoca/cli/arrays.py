"""Embeddings as one array in a file: .npz, .npy and .safetensors, written whole, and gone on with by a rerun.

Until all rows have come they stand, a JSON object a line, in `.partial-FILE.jsonl`; then FILE is written at one stroke.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from opencoca.cli.forms import JsonLines, Row
from opencoca.cli.journal import Journal, about_file, check_same, facts_of
from opencoca.cli.targets import check_file
from opencoca.errors import DataError, unwritable
from opencoca.files import fsync, write_atomically


class ArrayFile:
    """A file with the matrix `embeddings` [N,E] and the names of its rows, in the order in which they came."""

    def __init__(self, file: Path, form: str, about: Mapping[str, Any], width: int, overwrite: bool = False) -> None:
        """Reads the rows that are there: those of an earlier run, and those that one before its end left behind.

        Raises: DataError where FILE is somebody else's, of another model or of other options.
        """
        self.file, self._form, self._facts = file, form, facts_of(about, form)
        self._of, self._dtype = about["options"]["of"], np.dtype(about["options"]["dtype"])
        self._names: list[str] = []
        self._rows = np.empty((0, width), self._dtype)
        if file.exists() and not overwrite:
            check_same(file, self._facts)
            self._names, self._rows = self._read(width)
        check_file(file)
        self._partial = file.with_name(f".partial-{file.name}.jsonl")
        self._journal = Journal(self._partial, JsonLines(), about, overwrite)
        self._added = 0

    def left(self, names: Sequence[str]) -> list[bool]:
        """True for each name that has no row yet."""
        there = set(self._names)
        return [left and name not in there for name, left in zip(names, self._journal.left(names), strict=True)]

    def add(self, rows: Sequence[Row]) -> None:
        """Keeps more rows, beside the file."""
        self._journal.add(rows)

    def close(self) -> None:
        """Leaves what isn't in the file yet for the next run."""
        self._journal.close()

    def finish(self) -> None:
        """Writes the file, whole or not at all, and removes what stood beside it."""
        names, vectors = list(self._names), [self._rows]
        with self._partial.open("rb") as lines:
            for line in lines:
                record = json.loads(line)
                names.append(record[self._of[:-1]])
                vectors.append(np.asarray([record["embedding"]], self._dtype))
        if len(names) > len(self._names) or not self.file.exists():
            self._write(names, np.concatenate(vectors))
        self._journal.close()
        self._partial.unlink()
        about_file(self._partial).unlink()

    def _write(self, names: Sequence[str], rows: np.ndarray) -> None:
        partial = self.file.with_name(f".partial-{self.file.name}")
        try:
            if self._form == "npz":
                arrays: dict[str, Any] = {"embeddings": rows, self._of: np.array(names, dtype=np.str_)}
                with partial.open("wb") as file:
                    np.savez(file, **arrays)
            elif self._form == "npy":
                with partial.open("wb") as file:
                    np.save(file, rows)
            else:
                facts = {self._of: names, **self._facts}
                save_file({"embeddings": rows}, partial, {name: json.dumps(value) for name, value in facts.items()})
            fsync(partial)
        except (OSError, SafetensorError) as error:  # its own error for a full disk
            raise DataError(unwritable(self.file, error)) from error
        # The facts come first: with a file that they don't fit, the next run would only find rows missing.
        facts = {**self._facts, self._of: names} if self._form == "npy" else self._facts
        write_atomically(about_file(self.file), json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        os.replace(partial, self.file)
        fsync(self.file.parent)

    def _read(self, width: int) -> tuple[list[str], np.ndarray]:
        try:
            if self._form == "npz":
                with np.load(self.file, allow_pickle=False) as arrays:
                    names, rows = arrays[self._of].tolist(), arrays["embeddings"]
            elif self._form == "npy":
                names = json.loads(about_file(self.file).read_text(encoding="utf-8"))[self._of]
                rows = np.load(self.file, allow_pickle=False)
            else:
                with safe_open(self.file, framework="np") as file:
                    names, rows = json.loads(file.metadata()[self._of]), file.get_tensor("embeddings")
            if rows.dtype != self._dtype or rows.shape != (len(names), width):
                raise ValueError(f"{len(names)} names for {rows.dtype} {list(rows.shape)}")
        except (OSError, SafetensorError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.file} can't be read ({error}); restore it, name another --output, or start it afresh with "
                "--overwrite"
            ) from error
        return names, rows
