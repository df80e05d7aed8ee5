"""docs/commands.md: what its commands print, with the quickstart's model of today.

    make demo
    python benchmarks/commands_demo.py

Runs the commands of the page's console blocks one after the other, in a folder with five drawings of the split
`test_pictures`, and puts what they print below them, in the page and in benchmarks/results/commands.json, which
tests/unit/test_readme.py compares. What the page says around the blocks is to be read again then.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common import write_result

from opencoca.data.shards import ShardReader
from opencoca.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs/commands.md"
SPLIT = "test_pictures"
PICTURES = {
    "bell": "bell with slash",
    "firefighter": "woman firefighter",
    "grandpa": "man with white hair",
    "heart": "green heart",
    "torn": "old woman",
}
SORTED = {
    "men": ("man juggling", "man dancing", "man singer", "man teacher"),
    "women": ("woman factory worker", "woman shrugging", "woman teacher", "woman artist"),
}
TORN, MENDED_BEFORE = "torn", 2  # from the so-manieth time on that the next command is shown, the picture is whole
REPEATED = "coca caption pictures --output captions.csv"
DOCTOR = "coca doctor"
LEFT_OUT = ("pillow", "safetensors", "tokenizers", "ftfy", "tyro", "rich")  # of its lines
EXPECTED = (0, 2, 3)


class Shown(NamedTuple):
    """A command of the page, and what it prints."""

    command: str
    output: list[str]

    def text(self) -> str:
        return "\n".join([f"$ {self.command}", *self.output, ""])


def main() -> None:
    """Runs the page's commands, and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart"), help="the quickstart's run")
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"), help="folder of shards")
    parser.add_argument("--dry", action="store_true", help="write neither page nor result")
    chosen = parser.parse_args()
    page, shown = PAGE.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "here"
        drawings = prepared(folder, chosen.data, chosen.model)

        def printed(block: re.Match[str]) -> str:
            here = [run(command, folder, drawings, shown) for command in commands(block[1])]
            return "".join(["```console\n", *(one.text() for one in here), "```"])

        page = re.sub(r"^```console\n(.*?)^```", printed, page, flags=re.MULTILINE | re.DOTALL)
    if not chosen.dry:
        write_atomically(PAGE, page)
        facts = {"model": str(chosen.model), "split": SPLIT, "pictures": PICTURES, "sorted": SORTED}
        write_result("commands", {**facts, "shown": [one._asdict() for one in shown]})


def prepared(folder: Path, data: Path, model: Path) -> dict[str, bytes]:
    """Puts pictures, labelled examples and the model into a new folder; returns the drawings by caption."""
    with ShardReader(data, SPLIT) as reader:
        drawings = {sample.caption: sample.picture for sample in (reader[row] for row in range(len(reader)))}
    files = {f"pictures/{name}.png": drawings[caption] for name, caption in PICTURES.items()}
    files[f"pictures/{TORN}.png"] = files[f"pictures/{TORN}.png"][: len(files[f"pictures/{TORN}.png"]) // 2]
    files |= {f"sorted/{label}/{said}.png": drawings[said] for label, some in SORTED.items() for said in some}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "runs").mkdir()
    (folder / "runs/quickstart").symlink_to(model.resolve())
    return drawings


def commands(block: str) -> Iterator[str]:
    """The commands of a block of code, each with all of its lines."""
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while not is_whole(command):
                command += f"\n{next(lines)}"
            yield command


def is_whole(command: str) -> bool:
    """Whether every quotation in it ends."""
    try:
        return bool(shlex.split(command))
    except ValueError:
        return False


def run(command: str, folder: Path, drawings: dict[str, bytes], before: list[Shown]) -> Shown:
    """Runs a command in the folder, and notes it behind those before it."""
    if command == REPEATED and sum(one.command == command for one in before) + 1 == MENDED_BEFORE:
        (folder / f"pictures/{TORN}.png").write_bytes(drawings[PICTURES[TORN]])
    python = shlex.quote(sys.executable)
    done = subprocess.run(
        ["bash", "-c", f'coca() {{ {python} -m opencoca "$@"; }}; python() {{ {python} "$@"; }}; {command}'],
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    print("$", command, done.stdout, sep="\n", flush=True)
    if done.returncode not in EXPECTED:
        raise SystemExit(f"{command} ended with {done.returncode}")
    lines = done.stdout.splitlines()
    shown = Shown(command, shortened(lines) if command == DOCTOR else lines)
    before.append(shown)
    return shown


def shortened(lines: list[str]) -> list[str]:
    """What the page shows of a long output."""
    kept: list[str] = []
    for line in lines:
        if line.split("\t")[1:2] not in [[name] for name in LEFT_OUT]:
            kept.append(line)
        elif kept[-1] != "...":
            kept.append("...")
    return kept


if __name__ == "__main__":
    main()
