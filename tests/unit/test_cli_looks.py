"""How results look: on a terminal, in a pipe, and in an output that can't show every letter; and progress."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests import three_pictures, tiny
from tests.three_pictures import lines

from opencoca.cli import output, pictures, progress
from opencoca.cli.forms import JsonList, stdout_is_utf8
from opencoca.cli.main import main
from opencoca.cli.options import OutputOptions
from opencoca.errors import DataError

model = three_pictures.model
predictor = three_pictures.predictor
folder = three_pictures.folder


def found(*paths: str) -> pictures.Found:
    return pictures.Found([Path(path) for path in paths], [])


def test_a_terminal_gets_one_aligned_table_over_several_batches():
    console = Console(file=io.StringIO(), force_terminal=True, width=40, no_color=True, legacy_windows=False)
    columns = [output.Column("picture", width=8), output.Column("caption")]
    with output.Output(found("a.png", "long.png"), columns, OutputOptions(), console=console) as out:
        out.rows([output.Row(("a.png", "red circle"), {})])
        out.rows([output.Row(("long.png", "[bold]blue[/bold] \x1b[31m" + "x" * 30), {})])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    plain = [line.rstrip() for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert plain[:2] == ["picture   caption", "a.png     red circle"]
    assert "".join(line[10:] for line in plain[2:]) == "[bold]blue[/bold]\\x1b[31m" + "x" * 30
    assert all(len(line) <= 40 for line in plain)
    assert "\x1b[31m" not in text


def test_a_pipe_gets_neither_colours_nor_control_characters(folder, model, capsys):
    tiny.save_picture(Path("one\ttwo\n\x1b[31m.png"))
    assert main(["caption", "one\ttwo\n\x1b[31m.png", "--model", model, "--beams", "1"]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in lines(out)] == ["one\\ttwo\\n\\x1b[31m.png"]
    assert main(["caption", "one\ttwo\n\x1b[31m.png", "--model", model, "--beams", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == "one\ttwo\n\x1b[31m.png"


@pytest.mark.parametrize(("encoding", "held"), [("utf-8", "é 火"), ("cp1252", "\\u00e9 \\u706b")])
def test_json_survives_a_narrow_output(monkeypatch, encoding, held):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace"))
    form = JsonList()
    form.ascii = not stdout_is_utf8()
    row = output.Row((), {"caption": "é 火"})
    print(form.opening + form.piece(row, first=True) + form.closing(empty=False), flush=True)
    text = raw.getvalue().decode(encoding)
    assert held in text
    assert json.loads(text) == [{"caption": "é 火"}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "patience_s", "shown"), [(True, -1, True), (True, 60, False), (False, -1, False)])
def test_progress_shows_on_a_terminal_once_the_work_takes_a_while(monkeypatch, terminal, patience_s, shown):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(progress, "PATIENCE_S", patience_s)
    with output.Output(found("a.png", "b.png"), [output.Column("picture")], OutputOptions()) as out:
        out.done(1)
        out.rows([output.Row(("a.png",), {})])
        out.skip(Path("b.png"), DataError("b.png is empty"))
        assert out.finish() == 3
    err, said = sys.stderr.getvalue(), sys.stdout.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert ("1/2 pictures" in err) == shown
    assert "skipped b.png: it is empty\n" in err
    assert said == "a.png\n"
