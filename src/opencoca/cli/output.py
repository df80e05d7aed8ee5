"""What a command over pictures prints: rows, skipped pictures and progress, each where it belongs.

Rows go to standard output: a table on a terminal, tab-separated lines in a pipe, or one JSON list. The rest goes to
standard error, progress only on a terminal and only where the work takes longer than `PATIENCE_S`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from opencoca.cli.main import DONE, SKIPPED
from opencoca.cli.pictures import Found, Skipped
from opencoca.errors import DataError

PATIENCE_S = 2.0


class Column(NamedTuple):
    """A column of the table; without a width it takes what it needs of the room that is left."""

    title: str
    style: str = ""
    justify: Literal["left", "right"] = "left"
    width: int | None = None


class Row(NamedTuple):
    """One result: its cells in text, and its object in JSON."""

    cells: Sequence[str]
    record: Mapping[str, Any]


class Output:
    """The printed side of one command over the pictures `found`."""

    def __init__(self, found: Found, columns: Sequence[Column], as_json: bool, console: Console | None = None) -> None:
        self._columns, self._as_json = columns, as_json
        self._console = console or Console()
        self._progress = _Progress(len(found.paths))
        self._records: list[Mapping[str, Any]] = []
        self._held: list[Skipped] = []
        self._done = self._skipped = 0
        self._titled = False
        for skipped in found.skipped:
            self._skip(skipped)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def skip(self, path: Path, error: DataError) -> None:
        """Names a picture that can't be read."""
        self._skip(Skipped(path, str(error).removeprefix(f"{path} ")))

    def done(self, count: int) -> None:
        """Counts pictures that were read and went through the model."""
        self._done += count
        with self._progress.hidden():
            for skipped in self._held:
                self._show(skipped)
        self._held = []
        self._progress.move(self._done + self._skipped)

    def rows(self, rows: Sequence[Row]) -> None:
        """Prints results now, or keeps them for one JSON list."""
        if self._as_json:
            self._records += [row.record for row in rows]
            return
        with self._progress.hidden():
            if self._console.is_terminal:
                self._console.print(self._table(rows))
            else:
                for row in rows:
                    print("\t".join(map(shown, row.cells)))
            sys.stdout.flush()

    def finish(self) -> int:
        """The exit code, after what remains to be said.

        Raises: DataError where not one picture could be read.
        """
        self._progress.close()
        if not self._done and self._held:
            lead = f"none of {len(self._held)} could be read; the first: " if len(self._held) > 1 else ""
            raise DataError(f"{lead}{self._held[0].path} {self._held[0].what}")
        if self._as_json:
            print(json_list(self._records))
        if self._skipped:
            print(f"{self._done} done, {self._skipped} skipped", file=sys.stderr)
        return SKIPPED if self._skipped else DONE

    def _skip(self, skipped: Skipped) -> None:
        self._skipped += 1
        if self._done:
            with self._progress.hidden():
                self._show(skipped)
        else:  # if no picture at all turns out to be readable, one line will say so
            self._held.append(skipped)

    def _show(self, skipped: Skipped) -> None:
        print(f"skipped {shown(skipped.path)}: it {shown(skipped.what)}", file=sys.stderr)

    def _table(self, rows: Sequence[Row]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=not self._titled, header_style="bold")
        self._titled = True
        for title, style, justify, width in self._columns:
            limit = None if width is None else max(len(title), min(width, self._console.width // 2))
            table.add_column(title, style=style, justify=justify, width=limit, overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(cell)) for cell in row.cells))
        return table


def width_of(texts: Sequence[object]) -> int:
    """How many terminal cells the widest text takes."""
    return max((cell_len(shown(text)) for text in texts), default=0)


def shown(text: object) -> str:
    """A text on one line: control characters, which file names may hold, are written as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], str(text))


def json_list(records: Sequence[Mapping[str, Any]]) -> str:
    """A JSON list with one object a line, in characters that standard output can show."""
    lines = ",\n".join(f"  {json_text(record)}" for record in records)
    return f"[\n{lines}\n]" if records else "[]"


def json_text(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A JSON object; letters beyond ASCII stay as they are where standard output is UTF-8."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(record, indent=indent, ensure_ascii=not utf8)


class _Progress:
    """Pictures done, their rate and the time left, on a terminal's standard error, once the work takes a while."""

    def __init__(self, total: int) -> None:
        self._total, self._began = total, time.monotonic()
        self._live: Progress | None = None

    def move(self, completed: int) -> None:
        seconds = time.monotonic() - self._began
        if self._live is None and seconds > PATIENCE_S and completed < self._total and sys.stderr.isatty():
            self._live = Progress(
                BarColumn(),
                TextColumn("{task.completed}/{task.total} pictures"),
                TextColumn("{task.fields[rate]:.0f} images/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._live.add_task("", total=self._total, rate=0.0)
            self._live.start()
        if self._live is not None:
            self._live.update(self._task, completed=completed, rate=completed / seconds)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Takes the bar away while something else is printed."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
