"""What the README and docs/search.md show of `coca index`, `coca search` and `coca serve`: the commands' real output.

    coca data get drawings
    python benchmarks/search_demo.py

The folder holds 400 of the 1,667 drawings of the split `test_seen`, flags in a folder of their own, and the model is
the one that ships. tests/unit/test_readme.py compares both pages with the result.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_result

from opencoca.data.shards import ShardReader

PICTURES, SEED = 400, 0
COMMANDS = (
    "coca index pictures",
    "mv {moved} pictures/",
    "coca index pictures",
    'coca search pictures "flag of a country" --top 3',
    "coca search pictures pizza --top 2",
    "coca index pictures --duplicates --threshold 0.98 | head -3",
)
SERVE = "coca serve --index pictures"


def main() -> None:
    """Runs the commands in a new folder, one after the other, and writes what they print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/drawings"), help="folder of shards")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary), Path(temporary) / "cache"
        moved = extract(chosen.data, folder / "pictures")
        python = f'coca() {{ "{sys.executable}" -m opencoca "$@"; }}; '
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        shown = []
        for template in COMMANDS:
            command = template.format(moved=moved.relative_to(folder))
            done = subprocess.run(
                ["bash", "-c", python + command],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=300,
            )
            output = done.stdout.replace(str(cache), "/home/you/.cache")
            shown.append({"command": command, "output": [line for line in output.splitlines() if line]})
        shown.append({"command": SERVE, "output": [first_line(folder, environment)]})
    for one in shown:
        print("$", one["command"], *one["output"], sep="\n")
    if not chosen.dry:
        write_result("search_demo", {"pictures": PICTURES, "split": "test_seen", "model": "drawings", "shown": shown})


def extract(data: Path, folder: Path) -> Path:
    """Writes the pictures, named by their captions; returns one that is no flag."""
    with ShardReader(data, "test_seen") as reader:
        for row in sorted(random.Random(SEED).sample(range(len(reader)), PICTURES)):
            sample = reader[row]
            words = re.sub(r"\W+", "_", sample.caption.split(",")[0]).strip("_")[:40]
            path = folder / ("flags" if words.startswith("flag") else "things") / f"{words}-{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.picture)
    return min((folder / "things").iterdir())


def first_line(folder: Path, environment: dict[str, str]) -> str:
    """What the server prints when it is ready; it is ended then."""
    command = [sys.executable, "-m", "opencoca", *SERVE.split()[1:]]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout
        line = next(line for line in server.stdout if line.startswith("http"))
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    return line.strip()


if __name__ == "__main__":
    main()
