"""The dispatch of `coca`: which exit code and which words each outcome of a command gives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from opencoca.cli import main as cli
from opencoca.errors import DataError


@dataclass(frozen=True)
class Args:
    """Do what the test says.

    Examples:
      coca fake a.png --labels cat,dog
    """

    paths: cli.Paths
    """Picture files."""
    labels: cli.Labels = ()
    """Names to choose from."""
    beams: int = 4
    """Width of the beam."""


Outcome = Callable[[Args], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Outcome], None]:
    """Registers `coca fake`, whose body is the function given."""

    def register(run: Outcome) -> None:
        module = ModuleType("fake_command")
        module.__dict__.update(Args=Args, run=run)
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake_command", "Do what the test says"))

    return register


def raising(error: BaseException) -> Outcome:
    def run(args: Args) -> int:
        raise error

    return run


def test_arguments_reach_the_command_and_its_code_comes_back(command):
    seen: list[Args] = []

    def run(args: Args) -> int:
        seen.append(args)
        return cli.SKIPPED

    command(run)
    assert cli.main(["fake", "a.png", "b.png", "--labels", "cat, small dog", "--beams", "2"]) == 3
    assert seen == [Args((Path("a.png"), Path("b.png")), ("cat", "small dog"), 2)]


def test_bad_input_is_one_line_and_code_2(command, capsys):
    command(raising(DataError("cannot read a.png:\n  it is empty; remove it")))
    assert cli.main(["fake", "a.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "coca: error: cannot read a.png: it is empty; remove it\n")


def test_debug_switch_shows_the_traceback_of_bad_input(command, capsys, monkeypatch):
    monkeypatch.setenv("COCA_DEBUG", "1")
    command(raising(DataError("empty")))
    assert cli.main(["fake", "a.png"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("coca: error: empty\n")


def test_interrupt_is_130_without_traceback(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["fake", "a.png"]) == 130
    assert capsys.readouterr().err == "coca: interrupted\n"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), BrokenPipeError(errno.EPIPE, "a worker's pipe"), OSError("x")]
)
def test_a_bug_shows_its_traceback_and_asks_for_a_report(command, capsys, error):
    command(raising(error))
    assert cli.main(["fake", "a.png"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "please report it" in err.splitlines()[-1]


def test_a_full_disk_is_not_a_bug(command, capsys):
    command(raising(OSError(errno.ENOSPC, "No space left on device", "runs/x/model.safetensors")))
    assert cli.main(["fake", "a.png"]) == 2
    assert capsys.readouterr().err == (
        "coca: error: can't write runs/x/model.safetensors (No space left on device); free some space or choose "
        "another folder\n"
    )


@pytest.mark.parametrize(
    ("path", "readable", "said"),
    [
        (
            "runs/x",
            True,
            "can't write runs/x (Permission denied); choose a folder that you may write to",
        ),
        ("words.txt", False, "can't read words.txt (Permission denied); change its permissions"),
    ],
)
def test_a_missing_permission_is_not_a_bug(command, capsys, monkeypatch, path, readable, said):
    monkeypatch.setattr(os, "access", lambda path, mode: readable)  # root may do everything
    command(raising(PermissionError(errno.EACCES, "Permission denied", path)))
    assert cli.main(["fake", "a.png"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fake"], "no paths given"),
        (["fake", "a.png", "--beams", "many"], "'many' isn't a whole number"),
        (["finetune", "x", "--wise", "0.5", "a"], "Error parsing --wise: 'a' isn't a number"),
        (["ablate", "--seeds", "1.5"], "Error parsing --seeds: '1.5' isn't a whole number"),
        (["video", "nonsense", "x"], "'nonsense' isn't one of"),
        (["fake", "a.png", "--beems", "2"], "--beams"),
        (["fake", "a.png", "--labels", " , "], "separate labels by commas"),
        (["capton", "a.png"], "did you mean 'caption'?"),
        (["zzz"], "the commands are quickstart"),
        (["--beams", "2"], "options come after the command"),
        (["help", "capton"], "did you mean 'caption'?"),
    ],
)
def test_wrong_words_are_code_2_and_say_what_is_wrong(command, capsys, words, said):
    command(raising(AssertionError("the command ran")))
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["fake", "--help"], ["fake", "-h"], ["help", "fake"]])
def test_help_of_a_command_ends_with_its_examples(command, capsys, words):
    command(raising(AssertionError("the command ran")))
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: coca fake")
    assert "Width of the beam." in out
    assert out.endswith("examples:\n  coca fake a.png --labels cat,dog\n")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_lists_every_command(capsys, words):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_the_command_silently(unbuffered):
    code = "import sys; from opencoca.cli.main import main; sys.stdin.read(); sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == cli.PIPE_CLOSED


def test_a_file_name_that_is_not_unicode_can_be_printed():
    code = "import sys; from opencoca.cli import main as cli; cli.main([]); print('caf\\udce9.png')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == b"caf\\udce9.png"
