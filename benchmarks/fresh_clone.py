"""`make test` and `make demo` on a fresh clone, one after the other: what the README shows of both.

    python benchmarks/fresh_clone.py                # `make test` as the very first command, then `make demo`
    python benchmarks/fresh_clone.py --first demo   # the other order; writes no result

It clones the committed state into a temporary folder, and takes a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS

ROOT = Path(__file__).parent.parent
SUMMARY = re.compile(r"(\d+) passed(?:, (\d+) skipped)?.* in [\d.]+s.*")


def main() -> None:
    """Runs both, and writes results/demo.json: the demo's own results, what it printed, and the tests' last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", choices=("test", "demo"), default="test")
    chosen = parser.parse_args()
    order = ["test", "demo"] if chosen.first == "test" else ["demo", "test"]
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "opencoca"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        said = {target: made(clone, target) for target in order}
        results = json.loads((clone / "runs/quickstart/results.json").read_text())
    summary = next(found for line in reversed(said["test"][0]) if (found := SUMMARY.search(line)))
    shown = said["demo"][0]
    shown = shown[next(i for i, line in enumerate(shown) if line.startswith("1/4")) :]
    tests: dict[str, Any] = {
        "command": f"make test, {'as the first command' if order[0] == 'test' else 'after make demo'} on a fresh clone",
        "passed": int(summary[1]),
        "skipped": int(summary[2] or 0),
        "summary": summary[0].strip(" ="),
        "seconds_with_installation": said["test"][1],
    }
    for line in (*shown, tests["summary"]):
        print(line)
    if chosen.first == "test":
        command = "make demo, after make test on a fresh clone"
        text = json.dumps(
            {"benchmark": "demo", "command": command, "tests": tests, "output": shown, **results}, indent=2
        )
        (RESULTS / "demo.json").write_text(text + "\n", encoding="utf-8")


def made(clone: Path, target: str) -> tuple[list[str], float]:
    """The lines that `make TARGET` prints, and its seconds.

    Raises: CalledProcessError where it fails, its output told before.
    """
    began = time.perf_counter()
    done = subprocess.run(
        ["make", target], cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout)
        done.check_returncode()
    return done.stdout.replace(f"{clone}/", "").splitlines(), round(time.perf_counter() - began, 1)


if __name__ == "__main__":
    main()
