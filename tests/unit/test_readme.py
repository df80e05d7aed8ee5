"""The README's figures are those of the committed results."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_comes_from_the_result_file() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/readme.py"), "--check"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0, "run python benchmarks/readme.py"
