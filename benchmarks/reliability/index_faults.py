"""A damaged, shared or cut-off index of `coca index`: rows of `server_faults`, which a server with --index stands on.

Every row has its trials, those that went as they must, and silent failures: damage that was taken for an index, a file
outside the folder that was read, an old index that was lost.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import tiny

from opencoca.errors import DataError
from opencoca.search.index import Index
from opencoca.search.store import Store

NUMBER = 6  # pictures
WRITE = """
import sys
from tests import tiny
from opencoca.errors import DataError
from opencoca.search.index import Index
try:
    print(len(Index.make(sys.argv[1], tiny.predictor(), "tiny", index=__import__("pathlib").Path(sys.argv[2]))))
except DataError as error:
    print(error)
"""


@contextlib.contextmanager
def indexed() -> Iterator[tuple[Path, Path]]:
    """A folder of a few pictures, and its index."""
    with tempfile.TemporaryDirectory() as root:
        folder, place = Path(root, "pictures"), Path(root, "index")
        for seed in range(NUMBER):
            tiny.save_picture(folder / f"{seed}.png", seed)
        Index.make(folder, tiny.predictor(), "tiny", index=place, captions=True)
        yield folder, place


def parts(place: Path) -> list[Path]:
    """The files that make up an index."""
    return sorted(path for path in place.iterdir() if path.name != "lock")


def opened(folder: Path, place: Path) -> str:
    """Whether an index is taken, and if not, whether the repair is named."""
    try:
        Store.open(folder, place)
    except DataError as error:
        return "refused with the repair" if "--anew" in str(error) else f"refused without: {error}"
    return "taken"


def index_flipped(trials: int) -> dict[str, Any]:
    """One bit of one file of an index flipped: it isn't opened, and the command that makes it anew is named."""
    chance, outcomes = random.Random(0), Counter[str]()
    with indexed() as (folder, place):
        for turn in range(trials):
            file = parts(place)[turn % len(parts(place))]
            whole = file.read_bytes()
            at, bit = chance.randrange(len(whole)), chance.randrange(8)
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            outcomes[opened(folder, place)] += 1
            file.write_bytes(whole)
    return {"outcomes": outcomes, "good": {"refused with the repair"}}


def index_cut(trials: int) -> dict[str, Any]:
    """One file of an index cut short: the same."""
    chance, outcomes = random.Random(0), Counter[str]()
    with indexed() as (folder, place):
        for turn in range(trials):
            file = parts(place)[turn % len(parts(place))]
            whole = file.read_bytes()
            least = len(whole.rstrip())  # the newline at the manifest's end says nothing
            file.write_bytes(whole[: chance.randrange(least)])
            outcomes[opened(folder, place)] += 1
            file.write_bytes(whole)
    return {"outcomes": outcomes, "good": {"refused with the repair"}}


def index_links(trials: int) -> dict[str, Any]:
    """Links that lead out of the folder, there before indexing or put there after it: nothing behind them is read."""
    outcomes: Counter[str] = Counter()
    with indexed() as (folder, place), tempfile.TemporaryDirectory() as elsewhere:
        secret = tiny.save_picture(Path(elsewhere, "secret.png"), 99)
        predictor = tiny.predictor()
        for turn in range(trials):
            link = folder / f"{NUMBER + turn}.png"
            target = (secret, Path("..") / ".." / secret.relative_to("/"), secret.parent)[turn % 3]
            link.symlink_to(target)
            index = Index.make(folder, predictor, "tiny", index=place)
            there = {hit.path.name for hit in index.search("red", 100)}
            outcomes["indexed" if link.name in there else "left out"] += 1
            link.unlink()
            changed = folder / f"{turn % NUMBER}.png"
            kept = changed.read_bytes()
            id = next(hit.id for hit in index.search("red", 100) if hit.path == changed)
            changed.unlink()
            changed.symlink_to(secret)
            try:
                index.thumbnail(id, 64)
                outcomes["shown"] += 1
            except DataError:
                outcomes["not shown"] += 1
            changed.unlink()
            changed.write_bytes(kept)
    return {"outcomes": outcomes, "good": {"left out", "not shown"}}


def index_twice(trials: int) -> dict[str, Any]:
    """Two processes that index one folder at once: one does, the other waits for nothing and says so."""
    outcomes: Counter[str] = Counter()
    with indexed() as (folder, place):
        for turn in range(trials):
            tiny.save_picture(folder / f"new{turn}.png", 100 + turn)
            command = [sys.executable, "-c", WRITE, str(folder), str(place)]
            both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            for one in both:
                said = one.communicate(timeout=600)[0].strip()
                right = said == str(NUMBER + turn + 1) or "another process is indexing" in said
                outcomes["indexed or refused" if right else f"said {said}"] += 1
            outcomes["whole" if len(Index.open(folder, tiny.predictor(), place)) == NUMBER + turn + 1 else "lost"] += 1
    return {"outcomes": outcomes, "good": {"indexed or refused", "whole"}}


def index_full(trials: int) -> dict[str, Any]:
    """A disk that takes only so many bytes of a file: an error, and the old index is whole and is added to later."""
    chance, outcomes = random.Random(0), Counter[str]()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with indexed() as (folder, place):
        predictor = tiny.predictor()
        before = Index.open(folder, predictor, place).search("red")
        largest = max(path.stat().st_size for path in parts(place))
        for _turn in range(trials):
            new = tiny.save_picture(folder / "new.png", 200)
            resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(largest), hard))
            try:
                Index.make(folder, predictor, "tiny", index=place)
                outcome = "done"
            except (OSError, sqlite3.Error, DataError) as error:
                outcome = type(error).__name__
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            now = Index.open(folder, predictor, place)
            if outcome != "done":
                outcomes[f"{outcome}, the old one whole" if now.search("red") == before else "the old one lost"] += 1
            else:
                outcomes["done" if len(now) == NUMBER + 1 else "done, but not whole"] += 1
            new.unlink()
            Index.make(folder, predictor, "tiny", index=place)
            outcomes["as before" if Index.open(folder, predictor, place).search("red") == before else "changed"] += 1
    wrong = {"the old one lost", "done, but not whole", "changed"}
    return {"outcomes": outcomes, "good": set(outcomes) - wrong}


INDEX_ROWS = {
    "index, bit flipped": (index_flipped, 1),
    "index, cut short": (index_cut, 0.5),
    "index, links": (index_links, 0.1),
    "index, two at once": (index_twice, 0.01),
    "index, full disk": (index_full, 0.1),
}
