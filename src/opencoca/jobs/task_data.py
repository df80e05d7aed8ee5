"""Fetches or builds the small data that the tasks are measured on here, each from packages alone.

python -m opencoca.jobs.task_data easy-vqa          # 3 MB from PyPI, into data/easy-vqa
python -m opencoca.jobs.task_data fashion-mnist     # 31 MB from Debian's archive, into data/fashion-mnist
python -m opencoca.jobs.task_data pairs             # statements about two OpenMoji drawings, from data/openmoji
python -m opencoca.jobs.task_data triples           # statements that a drawing entails, contradicts or leaves open
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from opencoca.data import easy_vqa, idx, statements
from opencoca.errors import DataError, OpenCoCaError
from opencoca.jobs.drawings import fetch

IDX_FOLDER = "usr/share/datasets/fashion-mnist"  # inside the package


def get_easy_vqa(folder: Path, downloads: Path) -> str:
    """Writes Easy-VQA's pictures and tables into `folder`, and says what is there."""
    wheel = downloads / easy_vqa.WHEEL
    if not wheel.is_file():
        downloads.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", easy_vqa.REQUIREMENT]
        try:
            subprocess.run([*command, "--dest", str(downloads)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.SubprocessError) as error:
            said = " ".join((getattr(error, "stderr", None) or str(error)).split())[-200:]
            raise DataError(
                f"pip can't fetch {easy_vqa.REQUIREMENT} ({said}); put {wheel.name} into {downloads}"
            ) from (error)
    prepared = easy_vqa.prepare(folder, wheel)
    pairs = ", ".join(f"{colour} {shape}" for shape, colour in prepared.held_out)
    return (
        f"{_counts(prepared.questions)} questions; {easy_vqa.PAIRS_TABLE} holds out {pairs}: {_counts(prepared.pairs)}"
    )


def get_fashion_mnist(folder: Path, downloads: Path) -> str:
    """Copies Fashion-MNIST's four files into `folder`."""
    (unpacked,) = fetch(downloads, idx.FASHION_PACKAGE).values()
    files = sorted((unpacked / IDX_FOLDER).glob("*.gz"))
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    counts = {split: len(idx.open_idx(folder, split, idx.FASHION)) for split in idx.PARTS}
    return f"{_counts(counts)} pictures of {len(idx.FASHION)} labels (by Zalando Research, licence MIT)"


def get_pairs(folder: Path, downloads: Path) -> str:
    """Builds statements about two drawings from `downloads`, the shards of OpenMoji."""
    return f"{_counts(statements.build(folder, downloads, 'pairs'))} statements about two drawings"


def get_triples(folder: Path, downloads: Path) -> str:
    """Builds statements about one drawing from `downloads`, the shards of OpenMoji."""
    return f"{_counts(statements.build(folder, downloads, 'triples'))} statements about a drawing"


GET: dict[str, tuple[Callable[[Path, Path], str], str]] = {  # and where it takes its files from
    "easy-vqa": (get_easy_vqa, "data/easy-vqa-package"),
    "fashion-mnist": (get_fashion_mnist, "data/fashion-mnist-package"),
    "pairs": (get_pairs, "data/openmoji"),
    "triples": (get_triples, "data/openmoji"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches or builds one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(GET))
    parser.add_argument("folder", type=Path, nargs="?", help="where it goes (default: data/NAME)")
    parser.add_argument("--downloads", type=Path, help="where packages go, or the shards of OpenMoji are")
    chosen = parser.parse_args(arguments)
    get, downloads = GET[chosen.name]
    folder = chosen.folder or Path("data") / chosen.name
    try:
        said = get(folder, chosen.downloads or Path(downloads))
    except OpenCoCaError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {said}")
    return 0


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
