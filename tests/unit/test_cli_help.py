"""`--help` is quick: it imports neither torch nor anything that takes as long."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import pytest

from opencoca.cli.main import COMMANDS, main

SLOW_IMPORTS = {"torch", "tokenizers", "PIL", "tensorboard"}
PROGRAM = """
import sys
from opencoca.cli.main import main
code = main(sys.argv[1:])
print("modules:", *sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_slow_and_shows_examples(words):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.rpartition("modules:")
    assert SLOW_IMPORTS.isdisjoint(modules.split())
    assert text.startswith("usage: coca")
    assert "\nexamples:\n  coca " in text


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_is_as_wide_as_the_terminal_and_has_no_gaps(name, encoding, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    shown.seek(0)
    text, _, _ = shown.read().partition("\nexamples:\n")
    assert max(map(len, text.splitlines())) <= 80
    assert "\n\n\n" not in text and "(default: )" not in text
    assert not [line for line in text.splitlines() if line.startswith("│") and not line.strip("│ ")]
    for paragraph in text.partition("\n╭" if encoding == "utf-8" else "\n ")[0].strip().split("\n\n"):
        for line, following in itertools.pairwise(paragraph.split("\n")):
            assert len(f"{line} {following.split()[0]}") > 80, "a line ends before it must"
