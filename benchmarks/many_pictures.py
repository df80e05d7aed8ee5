"""A folder of 10,000 pictures, 1% of them broken, through `coca caption`: nothing lost, and memory over time.

Writes benchmarks/results/many_pictures.json. The pictures are the demo's, several times over (`make demo` draws them).
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_result

from opencoca.data.shards import ShardReader

SPLITS = ("train", "val", "test_pictures", "test_combinations", "test_concepts")


def main() -> None:
    """Makes the folder, runs the command in a process of its own, and watches that process's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"))
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--broken-every", type=int, default=100)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary) / "pictures", Path(temporary) / "captions.csv"
        broken = make_folder(folder, chosen.data, chosen.pictures, chosen.broken_every)
        command = [sys.executable, "-m", "opencoca", "caption", str(folder), "--model", chosen.model, "--beams", "1"]
        began = time.perf_counter()
        with (Path(temporary) / "errors").open("w+") as errors:
            process = subprocess.Popen([*command, "--output", str(output)], stderr=errors)
            memory_mb = watched(process, output)
            errors.seek(0)
            skipped = [line for line in errors.read().splitlines() if line.startswith("skipped ")]
        seconds = time.perf_counter() - began
        with output.open(newline="", encoding="utf-8") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
    steady = [megabytes for rows, megabytes in memory_mb if rows >= chosen.pictures / 10]
    write_result(
        "many_pictures",
        {
            "model": chosen.model,
            "pictures": chosen.pictures,
            "broken": broken,
            "rows": len(paths),
            "different_rows": len(set(paths)),
            "named_as_skipped": len(set(skipped)),
            "exit_code": process.returncode,
            "seconds": round(seconds, 1),
            "memory_mb_after_a_tenth": steady[0],
            "memory_mb_at_the_end": steady[-1],
            "memory_mb_at_most": max(steady),
            "memory_mb_by_rows": memory_mb[:: max(1, len(memory_mb) // 20)],
        },
    )


def make_folder(folder: Path, data: Path, count: int, broken_every: int) -> int:
    """Writes `count` picture files, every so many of them cut in the middle, and returns how many that are."""
    folder.mkdir()
    pictures = [sample.picture for split in SPLITS for sample in ShardReader(data, split)]
    broken = 0
    for i in range(count):
        content = pictures[i % len(pictures)]
        if i % broken_every == 0:
            content, broken = content[: len(content) // 2], broken + 1
        (folder / f"{i:05d}.png").write_bytes(content)
    return broken


def watched(process: subprocess.Popen, output: Path) -> list[tuple[int, int]]:
    """Rows written so far and resident memory in MB, twice a second, until the process ends."""
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        resident = [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")]
        rows = output.read_bytes().count(b"\n") - 1 if output.exists() else 0
        if resident:
            seen.append((rows, resident[0]))
        time.sleep(0.5)
    return seen


if __name__ == "__main__":
    main()
