"""Fetches Tux Paint's stamps and writes them as captioned pictures: a folder of PNG files with captions.csv.

python -m opencoca.jobs.stamps data/stamps      # 161 MB from Debian's archive, by apt-get and dpkg-deb
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from opencoca.data import stamps
from opencoca.errors import OpenCoCaError
from opencoca.jobs.drawings import fetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches the package where it isn't there yet, and writes the pictures and their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/stamps"), help="where the pictures go")
    parser.add_argument("--downloads", type=Path, default=Path("data/stamps-package"), help="where the package goes")
    chosen = parser.parse_args(arguments)
    try:
        unpacked = fetch(chosen.downloads, stamps.PACKAGE)
        prepared = stamps.prepare(chosen.folder, unpacked["tuxpaint-stamps-default"])
    except OpenCoCaError as error:
        print(error, file=sys.stderr)
        return 2
    for reason, count in prepared.left_out.items():
        print(f"left out {count}: {reason}", file=sys.stderr)
    print(f"{chosen.folder}: " + ", ".join(f"{count} {split}" for split, count in prepared.counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
