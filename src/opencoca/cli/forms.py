"""The forms that results are written in: tab-separated lines, JSON, JSON lines and CSV; written, and read back.

A text in one of them is `opening`, a `piece` per row, and `closing`. What comes from a file is read back as far as it
is whole, so that a rerun can go on behind it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple


class Row(NamedTuple):
    """One result: its cells in text, its object in JSON, its values in CSV, and its words in a sidecar file."""

    cells: Sequence[str]
    record: Mapping[str, Any]
    values: Sequence[object] = ()
    words: Sequence[str] = ()


class Kept(NamedTuple):
    """A whole record in a file: which picture or text it is of, and the position of its end."""

    key: str
    end: int


class Form:
    """Tab-separated lines, and what the other forms have in common with them."""

    name = "tsv"
    opening = ""
    ascii = False  # True where the reader of the output can't show other letters

    def piece(self, row: Row, first: bool) -> str:
        """A row's text, whatever separates it from its neighbours included."""
        return "\t".join(map(shown, row.cells)) + "\n"

    def closing(self, empty: bool) -> str:
        """What comes after the last row."""
        return ""

    def key(self, key: str) -> str:
        """How a picture's or text's name looks once it is read back."""
        return shown(key).encode(errors="backslashreplace").decode()

    def read(self, file: BinaryIO) -> Iterator[Kept]:
        """The whole records of a file; the torn end that a crash may leave is passed over.

        Raises: ValueError where the file is of another form.
        """
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield Kept(line.decode().partition("\t")[0].rstrip("\r\n"), end)


class JsonLines(Form):
    """One JSON object a line."""

    name = "jsonl"

    def piece(self, row: Row, first: bool) -> str:
        return self._object(row) + "\n"

    def key(self, key: str) -> str:
        return key

    def read(self, file: BinaryIO) -> Iterator[Kept]:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield Kept(_key(json.loads(line)), end)

    def _object(self, row: Row) -> str:
        return json.dumps(row.record, ensure_ascii=self.ascii)


class JsonList(JsonLines):
    """One JSON list, with an object a line."""

    name = "json"
    opening = "["

    def piece(self, row: Row, first: bool) -> str:
        return f"{'' if first else ','}\n  {self._object(row)}"

    def closing(self, empty: bool) -> str:
        return "]\n" if empty else "\n]\n"

    def read(self, file: BinaryIO) -> Iterator[Kept]:
        end = 0
        for number, line in enumerate(file):
            text = line.rstrip()
            if number == 0 and not text.startswith(b"["):
                raise ValueError("it doesn't begin with [")
            if number and not text.startswith(b"]"):
                try:
                    yield Kept(_key(json.loads(text.removesuffix(b","))), end + len(text.removesuffix(b",")))
                except ValueError:
                    if line.endswith(b"\n"):
                        raise
                    return
            end += len(line)


class Csv(Form):
    """Comma-separated values under a header, as RFC 4180 has them."""

    name = "csv"

    def __init__(self, header: Sequence[str]) -> None:
        self.opening = self._line(header)

    def piece(self, row: Row, first: bool) -> str:
        return self._line(row.values)

    def key(self, key: str) -> str:
        return key.encode(errors="backslashreplace").decode()

    def read(self, file: BinaryIO) -> Iterator[Kept]:
        end, quotes, record = 0, 0, b""
        for line in file:
            record += line
            quotes += line.count(b'"')
            if quotes % 2 or not line.endswith(b"\n"):  # inside a quoted value, which may hold line ends
                continue
            start, end = end, end + len(record)
            if start:
                yield Kept(next(csv.reader([record.decode()]))[0], end)
            elif record.decode().rstrip("\r\n") != self.opening.rstrip("\r\n"):
                raise ValueError("it has other columns")
            quotes, record = 0, b""

    @staticmethod
    def _line(values: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text).writerow(values)
        return text.getvalue()


def named(name: str, header: Sequence[str]) -> Form:
    """The form called tsv, jsonl, json or csv; `header` names the columns of CSV."""
    return Csv(header) if name == "csv" else {"tsv": Form, "jsonl": JsonLines, "json": JsonList}[name]()


def shown(text: object) -> str:
    """A text on one line: control characters, which file names may hold, are written as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], str(text))


def json_text(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A JSON object; letters beyond ASCII stay as they are where standard output is UTF-8."""
    return json.dumps(record, indent=indent, ensure_ascii=not stdout_is_utf8())


def stdout_is_utf8() -> bool:
    """True where standard output can show every letter."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def _key(record: object) -> str:
    if not isinstance(record, dict) or not isinstance(key := record.get("path", record.get("text")), str):
        raise ValueError("it holds something else than objects with a path")
    return key
