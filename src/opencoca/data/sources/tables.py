"""Tables of pictures and captions: CSV, TSV, JSON lines, lists in JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opencoca.data import storage
from opencoca.data.sources import columns
from opencoca.data.sources.captions import UnfitError, parsed_json
from opencoca.data.sources.labels import caption_texts
from opencoca.data.sources.pairs import FileSource, Pairs
from opencoca.errors import DataError

LARGEST_LINE = 1 << 22  # bytes of a line of any table
JSON = (".json", ".jsonl", ".ndjson")
DELIMITERS = (",", ";", "|", "\t")
BROKEN = "the rest of the table can't be read"

Row = tuple[str, Mapping[str, Any] | UnfitError]  # its name for people, and its cells by column, or what is wrong


def open_tables(
    files: Sequence[str], split: str | None, pictures: str | None = None, on_damage: str = "stop"
) -> FileSource:
    """The pictures that tables name, several rows of one picture joined; `pictures` is the folder they lie in.

    Raises: DataError if a table has no such columns, or breaks off (on_damage="count" notes that in `skipped`).
    """
    root = pictures or storage.parent(files[0])
    pairs = Pairs(local=not storage.is_url(files[0]))
    for file in files:
        found: columns.Columns | None = None
        try:
            for name, row in rows(file):
                if isinstance(row, UnfitError):
                    pairs.skipped.append((name, str(row)))
                    continue
                if found is None:
                    try:
                        found = columns.find(row, file)
                    except DataError as error:
                        if storage.suffix(file) not in JSON:
                            raise
                        pairs.skipped.append((name, str(error)))  # in JSON, each row names its columns itself
                        continue
                    pairs.columns |= found.told()
                _add(pairs, name, row, found, split)
        except csv.Error as error:
            if on_damage != "count":
                raise DataError(f"{error}; repair that line") from error
            pairs.skipped.append((file, f"{error}: {BROKEN}"))
    if split is not None and pairs.splits and split not in pairs.splits:
        raise DataError(f"{files[0]} has no split {split!r}; its splits are: {', '.join(pairs.splits)}")
    return pairs.finish(root, files[0])


def _add(pairs: Pairs, name: str, row: Mapping[str, Any], found: columns.Columns, split: str | None) -> None:
    if found.split:
        told = columns.split_name(row.get(found.split) or "train")
        pairs.splits[told] = None
        if split is not None and told != split:
            return
    pairs.add(name, row.get(found.path), caption_texts(row, found))


def rows(file: str) -> Iterator[Row]:
    """The rows of a table, each with its name (file and line).

    Raises: DataError if the table can't be read; csv.Error where it breaks off, with the line.
    """
    kind = storage.suffix(file)
    with storage.open_stream(file) as stream:
        if kind == ".json":
            yield from _json_rows(file, stream.read())
        elif kind in (".jsonl", ".ndjson"):
            yield from _json_lines(file, stream)
        elif kind == ".tsv":
            yield from _tsv_rows(file, stream)
        else:
            yield from _csv_rows(file, stream)


def _json_rows(file: str, content: bytes) -> Iterator[Row]:
    try:
        listed = parsed_json(content)
    except UnfitError as error:
        raise DataError(f"{file} can't be used: {error}; repair it") from error
    if not isinstance(listed, list):
        raise DataError(f"{file} holds no list of objects and isn't COCO's or Karpathy's json; give one of these")
    for number, row in enumerate(listed):
        fit = isinstance(row, dict)
        yield f"{file} entry {number}", row if fit else UnfitError(f"it is a {type(row).__name__}, not an object")


def _json_lines(file: str, stream: Any) -> Iterator[Row]:
    number = 0
    while line := stream.readline(LARGEST_LINE + 1):
        number += 1
        name = f"{file} line {number}"
        if len(line) > LARGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(LARGEST_LINE)
            yield name, UnfitError(f"it has more than {LARGEST_LINE} bytes")
        elif line.strip():
            try:
                row = parsed_json(line.removeprefix(b"\xef\xbb\xbf").strip())
                yield name, row if isinstance(row, dict) else UnfitError(f"it is a {type(row).__name__}, not an object")
            except UnfitError as error:
                yield name, error


def _tsv_rows(file: str, stream: Any) -> Iterator[Row]:
    """Lines with tabs: quotes mean something only where they surround a whole cell."""
    header: list[str] = []
    for number, line in enumerate(_Lines(file, stream), 1):
        cells = [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]
        if not header:
            header = cells
        elif cells != [""]:
            yield f"{file} line {number}", _fitted(header, cells)


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _csv_rows(file: str, stream: Any) -> Iterator[Row]:
    lines = _Lines(file, stream)
    delimiter = max(DELIMITERS, key=lines.peek().count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise csv.Error(f"{file} line {number} isn't CSV ({error})") from error
        if cells is None:
            return
        if not header:
            header = [cell.strip() for cell in cells]
        elif cells:
            yield f"{file} line {number}", _fitted(header, cells)


class _Lines:
    """The lines of a text file, with their ends as they are; bytes that aren't UTF-8 become half surrogates."""

    def __init__(self, file: str, stream: Any) -> None:
        self._file, self._stream = file, stream
        self._peeked = self._read().removeprefix("\ufeff")

    def peek(self) -> str:
        """The line that comes next."""
        return self._peeked

    def _read(self) -> str:
        line = self._stream.readline(LARGEST_LINE)
        if len(line) == LARGEST_LINE:
            raise csv.Error(f"{self._file} has a line of more than {LARGEST_LINE} bytes")
        return line.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._peeked
        if not line:
            raise StopIteration
        self._peeked = self._read()
        return line


def _fitted(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, str] | UnfitError:
    if len(cells) != len(header):
        return UnfitError(f"it has {len(cells)} cells, the header {len(header)}")
    return dict(zip(header, cells, strict=True))
