"""The table of an index: which file has which contents, and which contents have which row, caption and date.

One SQLite file. While it is worked on it lies beside the index under another name; what the manifest names is a copy
that never changes, and is opened as such.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opencoca.errors import DataError
from opencoca.search.files import Seen
from opencoca.search.filters import Filters

SCHEMA = """
CREATE TABLE contents(row INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, caption TEXT, taken INTEGER);
CREATE TABLE files(id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB UNIQUE NOT NULL, modified_ns INTEGER NOT NULL,
 bytes INTEGER NOT NULL, row INTEGER NOT NULL);
CREATE INDEX files_by_row ON files(row);
CREATE TABLE bad(path BLOB PRIMARY KEY, modified_ns INTEGER NOT NULL, bytes INTEGER NOT NULL, reason TEXT NOT NULL);
"""
RENUMBER = """
CREATE TEMP TABLE numbers AS SELECT row AS old, row_number() OVER (ORDER BY row) - 1 AS new FROM contents;
CREATE UNIQUE INDEX temp.numbers_by_old ON numbers(old);
UPDATE files SET row = (SELECT new FROM numbers WHERE old = row);
CREATE TABLE renumbered(row INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, caption TEXT, taken INTEGER);
INSERT INTO renumbered SELECT new, digest, caption, taken FROM contents JOIN numbers ON old = row ORDER BY new;
DROP TABLE contents;
ALTER TABLE renumbered RENAME TO contents;
DROP TABLE numbers
"""
MANY = 500  # values in one statement


class Row(NamedTuple):
    """A file with what is known of its contents; `taken` is in seconds, None where the file doesn't say."""

    id: int
    path: str
    modified_ns: int
    bytes: int
    row: int
    caption: str | None
    taken: int | None

    @property
    def date(self) -> datetime.datetime:
        """When the picture was taken, as its camera's clock said, else when the file was last changed."""
        if self.taken is not None:
            return datetime.datetime.fromtimestamp(self.taken, datetime.UTC).replace(tzinfo=None)
        return datetime.datetime.fromtimestamp(self.modified_ns / 1e9)


class Table:
    """An open table; every method may be called from any thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._bad_paths = {path for (path,) in self._all("SELECT path FROM bad")}

    @classmethod
    def opened(cls, file: Path) -> Table:
        """The table in a file that nobody changes, for reading."""
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        for pragma in ("trusted_schema=OFF", "query_only=ON", "mmap_size=1073741824"):
            connection.execute(f"PRAGMA {pragma}")
        return cls(connection)

    @classmethod
    def working(cls, file: Path, new: bool) -> Table:
        """The table in a file of one's own, for changes that are lost in a crash."""
        connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "secure_delete=ON", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}")
        if new:
            connection.executescript(SCHEMA)
        connection.execute("BEGIN")
        return cls(connection)

    def close(self) -> None:
        self._connection.close()

    def __del__(self) -> None:
        self._connection.close()  # an index is dropped, not closed: a later one may share none of its files

    def flush(self) -> None:
        """Everything that was changed is in the file now."""
        with self._lock:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")

    # --- reading ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._all("SELECT count(*) FROM files")[0][0]

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and rows of all files, both int64 [I], by id."""
        pairs = np.array(self._all("SELECT id, row FROM files ORDER BY id"), np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def known(self) -> dict[str, tuple[int, int, int, int]]:
        """Each file's path to its id, modification time, size and row."""
        found = self._all("SELECT path, id, modified_ns, bytes, row FROM files")
        return {os.fsdecode(path): (id_, time, size, row) for path, id_, time, size, row in found}

    def bad(self) -> dict[str, tuple[int, int, str]]:
        """Each unreadable file's path to its modification time, size and what is wrong with it."""
        found = self._all("SELECT path, modified_ns, bytes, reason FROM bad")
        return {os.fsdecode(path): (time, size, reason) for path, time, size, reason in found}

    def pictures(self, ids: Sequence[int]) -> list[Row]:
        """The files with these ids, in their order.

        Raises: DataError for an unknown id.
        """
        found: dict[int, Row] = {}
        for start in range(0, len(ids), MANY):
            some = [int(one) for one in ids[start : start + MANY]]
            rows = self._all(
                "SELECT id, path, modified_ns, bytes, files.row, caption, taken FROM files "
                f"LEFT JOIN contents ON contents.row = files.row WHERE id IN ({','.join('?' * len(some))})",
                some,
            )
            found |= {row[0]: Row(row[0], os.fsdecode(row[1]), *row[2:]) for row in rows}
        missing = next((one for one in ids if one not in found), None)
        if missing is not None:
            raise DataError(f"the index has no picture {missing}; search again for those that it has")
        return [found[one] for one in ids]

    def matching(self, filters: Filters) -> np.ndarray:
        """Ids int64 [I] of the files that keep the bounds, ascending."""
        clauses, values = [], []
        date = "coalesce(taken, modified_ns / 1000000000)"
        for bound, clause in (
            (filters.after and seconds(filters.after), f"{date} >= ?"),
            (filters.before and seconds(filters.before + datetime.timedelta(days=1)), f"{date} < ?"),
            (filters.min_bytes, "bytes >= ?"),
            (filters.max_bytes, "bytes <= ?"),
        ):
            if bound is not None:
                clauses.append(clause)
                values.append(bound)
        if filters.folder:
            clauses.append("substr(path, 1, ?) = ?")
            prefix = os.fsencode(filters.folder + "/")
            values += [len(prefix), prefix]
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        sql = f"SELECT id FROM files LEFT JOIN contents ON contents.row = files.row {where} ORDER BY id"
        return np.array(self._all(sql, values), np.int64).reshape(-1)

    def rows_of(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The row of each of these contents (`MANY` at most) that has one.

        One statement for all: in each the thread gives way to others, and waits for its turn again.
        """
        marks = ", ".join("?" * len(digests))
        return dict(self._all(f"SELECT digest, row FROM contents WHERE digest IN ({marks})", digests))

    def contents(self) -> np.ndarray:
        """All rows that have contents, int64, ascending."""
        return np.array(self._all("SELECT row FROM contents ORDER BY row"), np.int64).reshape(-1)

    def uncaptioned(self) -> list[tuple[int, str]]:
        """Rows without a caption, each with a file that has its contents."""
        sql = (
            "SELECT files.row, min(path) FROM files JOIN contents USING (row) WHERE caption IS NULL GROUP BY files.row"
        )
        return [(row, os.fsdecode(path)) for row, path in self._all(sql)]

    # --- changing -----------------------------------------------------------------------------------------------

    def add_contents(self, row: int, digest: bytes, caption: str | None, taken: int | None) -> None:
        self._do("INSERT INTO contents VALUES (?, ?, ?, ?)", (row, digest, caption, taken))

    def set_caption(self, row: int, caption: str) -> None:
        self._do("UPDATE contents SET caption = ? WHERE row = ?", (caption, row))

    def put_file(self, seen: Seen, row: int) -> None:
        """The file is there, with the contents of this row."""
        path = os.fsencode(seen.path)
        self._not_bad(path)
        self._do(
            "INSERT INTO files(path, modified_ns, bytes, row) VALUES (?, ?, ?, ?) ON CONFLICT(path) "
            "DO UPDATE SET modified_ns = excluded.modified_ns, bytes = excluded.bytes, row = excluded.row",
            (path, seen.modified_ns, seen.bytes, row),
        )

    def move_file(self, id_: int, seen: Seen) -> None:
        self._not_bad(os.fsencode(seen.path))
        values = (os.fsencode(seen.path), seen.modified_ns, seen.bytes, id_)
        self._do("UPDATE files SET path = ?, modified_ns = ?, bytes = ? WHERE id = ?", values)

    def put_bad(self, seen: Seen, reason: str) -> None:
        path = os.fsencode(seen.path)
        self._do("DELETE FROM files WHERE path = ?", (path,))
        self._do("INSERT OR REPLACE INTO bad VALUES (?, ?, ?, ?)", (path, seen.modified_ns, seen.bytes, reason))
        self._bad_paths.add(path)

    def remove(self, paths: Sequence[str]) -> None:
        """These files are gone."""
        for path in map(os.fsencode, paths):
            self._do("DELETE FROM files WHERE path = ?", (path,))
            self._not_bad(path)

    def forget_unused(self) -> None:
        """Removes contents that no file has any more."""
        self._do("DELETE FROM contents WHERE row NOT IN (SELECT row FROM files)")

    def renumber(self) -> None:
        """Contents become 0, 1, ... in the order of their rows."""
        with self._lock:
            for statement in RENUMBER.split(";"):
                self._connection.execute(statement)

    def _not_bad(self, path: bytes) -> None:
        if path in self._bad_paths:
            self._do("DELETE FROM bad WHERE path = ?", (path,))
            self._bad_paths.discard(path)

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def _do(self, sql: str, values: Sequence[Any] = ()) -> None:
        with self._lock:
            self._connection.execute(sql, values)


@contextlib.contextmanager
def readable(describe: str) -> Iterator[None]:
    """Turns SQLite's errors into a refusal that begins with `describe`.

    Raises: DataError.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"{describe} ({error})") from error


def seconds(day: datetime.date) -> int:
    """Midnight of the day, in the units of `taken`."""
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())
