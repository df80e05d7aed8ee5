"""The README's figures, and the commands' output that it and the docs show, are those of the committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_comes_from_the_result_file() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/readme.py"), "--check"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0, "run python benchmarks/readme.py"


@pytest.mark.parametrize("page", ["README.md", "docs/search.md"])
def test_commands_on_pictures_show_their_real_output(page: str) -> None:
    lines = [line.strip() for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    result = json.loads((ROOT / "benchmarks/results/search_demo.json").read_text(encoding="utf-8"))
    known = {(one["command"], *one["output"]) for one in result["shown"]}
    told = [
        shown_at(lines, i) for i, line in enumerate(lines) if line.startswith("$ ") and line[2:] in _commands(known)
    ]
    assert len(told) >= 4
    for command, *output in told:
        whole = [printed for said, *printed in known if said == command]
        assert any(printed[: len(output)] == output for printed in whole), f"{command}: run benchmarks/search_demo.py"


def test_the_page_of_commands_shows_their_real_output() -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    result = json.loads((ROOT / "benchmarks/results/commands.json").read_text(encoding="utf-8"))
    shown = ["\n".join([f"$ {one['command']}", *one["output"], ""]) for one in result["shown"]]
    assert len(shown) > 15 and "".join(blocks) == "".join(shown), "run benchmarks/commands_demo.py"


def _commands(known: set[tuple[str, ...]]) -> set[str]:
    return {command for command, *_ in known}


def shown_at(lines: list[str], i: int) -> list[str]:
    """The command in line i, and what stands below it until the next command or the end of the block."""
    below = lines[i + 1 :]
    ends = (n for n, line in enumerate(below) if not line or line.startswith(("$ ", "```")))
    return [lines[i][2:], *below[: next(ends, None)]]
