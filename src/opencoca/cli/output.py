"""What a command over pictures prints and writes: rows, skipped pictures and progress, each where it belongs.

Rows go to standard output: a table on a terminal, tab-separated lines in a pipe, or the form that was asked for; or
into the file of --output (see `journal`). With --write the words go beside each picture, too (see `sidecar`). The rest
goes to standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opencoca.cli import forms
from opencoca.cli.forms import Row, json_text, shown
from opencoca.cli.journal import Journal
from opencoca.cli.main import DONE, SKIPPED
from opencoca.cli.options import FileOptions, OutputOptions, Printing
from opencoca.cli.pictures import Found, Skipped
from opencoca.cli.progress import PictureProgress
from opencoca.cli.sidecar import Sidecars
from opencoca.cli.xmp import Field
from opencoca.errors import DataError

__all__ = ["Column", "Output", "Row", "json_text", "shown", "width_of"]


Item = TypeVar("Item", Path, str)


class Column(NamedTuple):
    """A column of the table; without a width it takes what it needs of the room that is left."""

    title: str
    style: str = ""
    justify: Literal["left", "right"] = "left"
    width: int | None = None


class Sink(Protocol):
    """A file that rows go into, and that a rerun goes on with."""

    file: Path

    def left(self, names: Sequence[str]) -> list[bool]:
        """True for each name whose row is not there yet."""
        ...

    def add(self, rows: Sequence[Row]) -> None:
        """Takes more rows."""
        ...

    def finish(self) -> None:
        """All rows have come."""
        ...

    def close(self) -> None:
        """No more rows will come, all or not."""
        ...


class Output:
    """The results of one command over the pictures `found`.

    `todo` are the pictures that are left to do: those without a row in the file of --output, or without words beside
    them where --write was given; `texts` are the texts that are left.
    """

    def __init__(
        self,
        found: Found,
        columns: Sequence[Column],
        options: Printing,
        header: Sequence[str] = (),
        about: Callable[[], Mapping[str, Any]] | None = None,
        field: Field = "description",
        labels: Sequence[str] = (),
        sink: Sink | None = None,
        texts: Sequence[str] = (),
        console: Console | None = None,
    ) -> None:
        """`header` names the values of a CSV row, `about` tells what made its rows (see `Journal`), `sink` is a file
        of another kind; for field and labels see `Sidecars`.

        Raises: DataError where the file of --output can't be gone on with.
        """
        self._columns, self._console = columns, console or Console()
        self._held: list[Skipped] = []
        self._named: list[Skipped] = []
        self._done = self._skipped = 0
        self._titled = self._printed = False
        self._sink, self._sidecars = sink, None
        self.todo, self.texts, cannot = found.paths, list(texts), []
        if isinstance(options, FileOptions) and options.output and about and not sink:
            self._sink = Journal(options.output, forms.named(options.file_form, header), about(), options.overwrite)
        if self._sink:
            self.todo = _left(self._sink, found.paths)
            self.texts = _left(self._sink, self.texts)
        elif isinstance(options, OutputOptions) and options.write:
            self._sidecars = Sidecars(options.write, field, labels, options.overwrite)
            self.todo, cannot = self._sidecars.left(found.paths)
        self._there = len(found.paths) - len(self.todo) - len(cannot) + len(texts) - len(self.texts)
        self._table_shown = options.form is None and self._console.is_terminal
        self._form = forms.named(options.form or "tsv", header)
        self._form.ascii = not forms.stdout_is_utf8()
        if options.csv and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(newline="")  # its lines end in CR LF everywhere: Windows would add another CR
        self._progress = PictureProgress(len(self.todo))
        for skipped in (*found.skipped, *cannot):
            self._skip(skipped)
        self._beforehand = self._skipped

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        if self._printed:
            print(self._form.closing(empty=False), end="")
            self._printed = False
        if self._sink:
            self._sink.close()
        if kind is not KeyboardInterrupt:
            return
        for skipped in self._held:
            self._show(skipped)
        if self._sink or self._sidecars:
            where = self._sink.file if self._sink else "files beside the pictures"
            print(f"{self._done} done, kept in {where}; the same command does the rest", file=sys.stderr)

    def skip(self, path: Path, error: DataError, named: bool = False) -> None:
        """Names a picture that can't be read; one that was named before, only where no picture at all can be."""
        self._skip(Skipped(path, str(error).removeprefix(f"{path} ")), named)

    def done(self, count: int) -> None:
        """Counts pictures that were read and went through the model."""
        self._done += count
        with self._progress.hidden():
            for skipped in self._held:
                self._show(skipped)
        self._held = []
        self._progress.move(self._done + self._skipped - self._beforehand)

    def rows(self, rows: Sequence[Row]) -> None:
        """Prints results, or writes them into the file; and the words of each beside its picture."""
        if self._sidecars:
            rows = [row for row in rows if self._written(self._sidecars, row)]
        if self._sink:
            self._sink.add(rows)
        elif rows:
            with self._progress.hidden():
                self._print(rows)

    def finish(self) -> int:
        """The exit code, after what remains to be said.

        Raises: DataError where not one picture could be read.
        """
        self._progress.close()
        none = [*self._held, *self._named]
        if not self._done and not self._there and none:
            lead = f"none of {len(none)} could be read; the first: " if len(none) > 1 else ""
            raise DataError(f"{lead}{none[0].path} {none[0].what}")
        for skipped in self._held:
            self._show(skipped)
        if self._sink:
            self._sink.finish()
        elif not self._printed and not self._table_shown:
            print(self._form.opening + self._form.closing(empty=True), end="")
        if self._skipped or self._there or self._sink or self._sidecars:
            counts = [(self._done, "done"), (self._there, "there already"), (self._skipped, "skipped")]
            said = ", ".join(f"{count} {what}" for count, what in counts if count or what == "done")
            print(said, file=sys.stderr)
        return SKIPPED if self._skipped else DONE

    def _print(self, rows: Sequence[Row]) -> None:
        if self._table_shown:
            self._console.print(self._table(rows))
            return
        text = "" if self._printed else self._form.opening
        for row in rows:
            text += self._form.piece(row, first=not self._printed)
            self._printed = True
        print(text, end="", flush=True)

    def _written(self, sidecars: Sidecars, row: Row) -> bool:
        path = Path(row.record["path"])
        try:
            sidecars.write(path, row.words)
        except DataError as error:
            self._done -= 1
            self.skip(path, error)
            return False
        return True

    def _skip(self, skipped: Skipped, named: bool = False) -> None:
        self._skipped += 1
        if named:
            self._named.append(skipped)
        elif self._done:
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


def _left(sink: Sink, items: Sequence[Item]) -> list[Item]:
    return [item for item, left in zip(items, sink.left([str(item) for item in items]), strict=True) if left]


def width_of(texts: Sequence[object]) -> int:
    """How many terminal cells the widest text takes."""
    return max((cell_len(shown(text)) for text in texts), default=0)
