"""What `coca search` prints of an answer: its hits, what is to be said of them, and the page. Imports nothing slow."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opencoca.cli.forms import Row, named, shown, stdout_is_utf8
from opencoca.cli.targets import write_file

if TYPE_CHECKING:
    from opencoca.cli.search import Args
    from opencoca.search.answers import Answer


def say_named_before(folder: Path, count: int) -> None:
    """Counts on standard error the unreadable files that an earlier search has named."""
    what = f"{count:,} that can't be read and were named before"
    print(f"skipped {what}; list them with: coca index {shown(folder)}", file=sys.stderr)


def show(args: Args, query: str, answer: Answer, below: Path) -> None:
    """Prints what was found below `below`, and on standard error what is to be said of it; writes the page."""
    hits = [hit for hit in answer.hits if hit.good or not args.good]
    paths = [str(below / hit.path) for hit in hits]
    if args.json:
        form = named("json", [])
        form.ascii = not stdout_is_utf8()
        rows = [Row((), {**dataclasses.asdict(hit), "path": path}) for path, hit in zip(paths, hits, strict=True)]
        text = form.opening + "".join(form.piece(row, first=not i) for i, row in enumerate(rows))
        print(text + form.closing(empty=not rows), end="")
    else:
        width = max(map(len, map(shown, paths)), default=0) if sys.stdout.isatty() else 0
        for path, hit in zip(paths, hits, strict=True):
            line = (
                f"{shown(path):<{width}}  {hit.score:.3f}  {shown(hit.why)}"
                if width
                else f"{shown(path)}\t{hit.score:.3f}"
            )
            print(line)
    if answer.indexed < answer.total:
        what = f"{answer.indexed:,} of {answer.total:,} pictures"
        print(f"searched {what}; the others aren't indexed yet", file=sys.stderr)
    if not answer.hits and args.within and not (below / args.within).is_dir():
        print(f"no folder {shown(args.within)} in {shown(args.folder)}; check --within", file=sys.stderr)
    elif not any(hit.good for hit in answer.hits):
        best = f"the nearest picture has {answer.hits[0].score:.3f}" if answer.hits else "no picture passes"
        print(f"no good match: {best}; unrelated queries reach {answer.level:.3f} here", file=sys.stderr)
    if args.html or args.open:
        _page(args, query, answer, hits, below)


def _page(args: Args, query: str, answer: Answer, hits: list[Any], below: Path) -> None:
    import webbrowser

    from opencoca.search.sheet import Cell, sheet

    file = args.html or Path(tempfile.mkdtemp(prefix="opencoca-")) / "found.html"
    cells = [Cell(below / hit.path, hit.path, hit.caption, hit.why, hit.good) for hit in hits]
    note = f"The {len(cells)} best of {answer.indexed:,} pictures in {args.folder}"
    write_file(file, sheet(query, note, [("", cells)]).encode(errors="replace"))
    if args.open:
        webbrowser.open(file.absolute().as_uri())
