"""`--help` is quick: it imports neither torch nor anything that takes as long."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opencoca.cli.main import COMMANDS

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
