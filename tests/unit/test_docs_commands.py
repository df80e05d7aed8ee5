"""Every `coca` command that README and docs show is one that the command line takes; a plan runs as README shows it."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from opencoca.cli import main as cli

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
REFUSED_ON_PURPOSE = re.compile(r"^coca: error")  # output that stands below such a command


def commands(page: str) -> Iterator[str]:
    """The command lines of the page's blocks of code, joined where they go on, without comments and redirections."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language not in ("", "sh", "text", "console"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            found = re.match(r"(?:\$ )?(coca [a-z].*)", line.strip())
            if found and not REFUSED_ON_PURPOSE.match(below):
                for piece in re.split(r"&|\||;|\d?>", re.sub(r"\s#.*", "", found[1])):
                    if piece.strip().startswith("coca "):
                        yield piece.strip()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_are_understood(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused = []
    for line in commands(page):
        name, *words = shlex.split(line)[1:]
        try:
            cli._parse(name, importlib.import_module(cli.COMMANDS[name].module).Args, words)
        except (SystemExit, KeyError) as error:
            if getattr(error, "code", 2) != 0:  # --help ends with 0
                refused.append((line, capsys.readouterr().err[-300:]))
    assert not refused


def test_the_pages_show_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 60


def test_the_plan_that_readme_shows_works(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = [line for line in commands("README.md") if "--gpus" in line]
    assert cli.main(shlex.split(line)[1:]) == cli.DONE
    assert "64 x cuda" in capsys.readouterr().out
