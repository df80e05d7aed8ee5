"""Damaged and hostile data: rows 13 to 16 and 20 of the reliability sheet.

Run from the repository's root: `python -m benchmarks.reliability.data_faults`. Every row has its trials, those that
went as they must, and silent failures: a sample lost, or another one given, without an error or a count. Where
webdataset is installed (it is no dependency of ours), the same tars go through it, read as its documentation does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import logging
import os
import pickle
import random
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import write_result

from opencoca.data.sources import open_source, tar_index
from opencoca.data.sources.tar_index import INDEX
from opencoca.errors import DataError

SAMPLES, OTHER, BIT_SEED = 200, 99_999, 0
TIMES = {"tar": 1700000000, "webdataset": 1700000000.5}  # its writer's fractions cost a header more for each member
Pairs = dict[str, tuple[bytes, str]]
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", mtime: float = TIMES["tar"]) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), mtime
    return info, content


def picture(i: int) -> bytes:
    return b"\xff\xd8\xff" + f"picture {i} ".encode() * 80


def pair(i: int, mtime: float = TIMES["tar"]) -> list[Member]:
    return [member(f"{i:06d}.jpg", picture(i), mtime), member(f"{i:06d}.txt", f"caption {i}".encode(), mtime)]


def write_tar(path: Path, members: list[Member]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def whole(count: int = SAMPLES) -> Pairs:
    return {f"{i:06d}": (picture(i), f"caption {i}") for i in range(count)}


def headers_of(content: bytes) -> list[int]:
    """Where every header begins, those that tell of the next one too."""
    found, offset = [], 0
    while content[offset : offset + 512].strip(b"\0"):
        found.append(offset)
        offset += 512 + -(-int(content[offset + 124 : offset + 135], 8) // 512) * 512
    return found


def ours(path: Path, on_damage: str = "stop") -> tuple[Pairs, int]:
    """What is read, and how many things are named or counted. Raises: DataError as it comes."""
    source = open_source(path, on_damage=on_damage)  # type: ignore[arg-type]
    pairs, named = {}, len(source.skipped) + source.ignored.total()
    for i in range(len(source)):
        try:
            sample = source[i]
            pairs[sample.key.rpartition("/")[2]] = (sample.picture, sample.caption)
        except DataError:
            named += 1
    source.close()
    return pairs, named


def webdatasets(path: Path, on_damage: str = "stop") -> tuple[Pairs, int]:
    """What webdataset reads; its warnings count as named."""
    wds = importlib.import_module("webdataset")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = wds.WebDataset(str(path), shardshuffle=False, empty_check=False).to_tuple("__key__", "jpg", "txt")
        pairs = {key: (jpg, txt.decode()) for key, jpg, txt in data}
    return pairs, sum(not issubclass(warning.category, ResourceWarning) for warning in said)  # an intact tar has these


def outcome(read: Callable[[], tuple[Pairs, int]], truth: Pairs) -> str:
    """same, error, counted, or silent."""
    try:
        pairs, named = read()
    except Exception as error:
        return "error" if str(error) or isinstance(error, DataError) else "silent"
    other = (picture(OTHER), f"caption {OTHER}")  # belong together, too
    right = all(key in truth and value in (truth[key], other) for key, value in pairs.items())
    if pairs == truth:
        return "same"
    return "counted" if right and named else "silent"


def summed(outcomes: Counter[str]) -> dict[str, Any]:
    trials, silent = outcomes.total(), outcomes["silent"]
    return {
        "trials": trials,
        "passes": trials - silent,
        "silent_failures": silent,
        "outcomes": dict(sorted(outcomes.items())),
    }


def damaged(folder: Path, damage: Callable[[bytes], Iterator[bytes]], peer: bool) -> dict[str, Any]:
    """Tars of both writers, damaged in all ways and read by all readers; the index is the whole tar's."""
    plain, indexed = folder / "plain" / "t.tar", folder / "indexed" / "t.tar"
    truth, counts = whole(), {name: Counter() for name in ("stop", "count", "index", "webdataset")}
    for mtime in TIMES.values():
        for path in (plain, indexed):
            path.parent.mkdir(exist_ok=True)
            content = write_tar(path, [m for i in range(SAMPLES) for m in pair(i, mtime)])
        tar_index.save(tar_index.build(str(indexed.parent), ["t.tar"], digests=True), indexed.parent / INDEX)
        for trial in damage(content):
            plain.write_bytes(trial)
            indexed.write_bytes(trial)
            counts["stop"][outcome(lambda: ours(plain), truth)] += 1
            counts["count"][outcome(lambda: ours(plain, "count"), truth)] += 1
            counts["index"][outcome(lambda: ours(indexed, "count"), truth)] += 1
            if peer:
                counts["webdataset"][outcome(lambda: webdatasets(plain), truth)] += 1
    return {
        "opencoca": summed(counts["stop"]),
        "opencoca, counting damage": summed(counts["count"]),
        "opencoca, with an index": summed(counts["index"]),
        "webdataset": summed(counts["webdataset"]) if peer else None,
    }


def flips(content: bytes, trials: int) -> Iterator[bytes]:
    chance, headers = random.Random(BIT_SEED), headers_of(content)
    for _ in range(trials):
        trial = bytearray(content)
        trial[chance.choice(headers) + chance.randrange(512)] ^= 1 << chance.randrange(8)
        yield bytes(trial)


def row_13(folder: Path, trials: int, peer: bool) -> dict[str, Any]:
    """One bit of one header flipped."""
    return damaged(folder, lambda content: flips(content, trials // len(TIMES)), peer)


def row_14(folder: Path, trials: int, peer: bool) -> dict[str, Any]:
    """The tar cut at every 512th byte (at so many of them, evenly spread)."""

    def cuts(content: bytes) -> Iterator[bytes]:
        step = max(1, len(TIMES) * len(content) // 512 // trials)
        return (content[:size] for size in range(0, len(content), 512 * step))

    return damaged(folder, cuts, peer)


def row_15(folder: Path, trials: int, peer: bool) -> dict[str, Any]:
    """Members in any order, and keys that come twice: no wrong pair, and nothing lost unsaid."""
    chance, path, truth = random.Random(BIT_SEED), folder / "t.tar", whole(12)
    counts = {name: Counter() for name in ("opencoca", "webdataset")}
    for trial in range(trials):
        members = [m for i in range(12) for m in pair(i)]
        if trial % 2:
            chance.shuffle(members)
        else:
            for _ in range(chance.randint(1, 4)):
                doubled = chance.randrange(12)
                ending, content = chance.choice([("jpg", picture(OTHER)), ("txt", f"caption {OTHER}".encode())])
                members.insert(chance.randint(0, len(members)), member(f"{doubled:06d}.{ending}", content))
        write_tar(path, members)
        counts["opencoca"][outcome(lambda: ours(path), truth)] += 1
        if peer:
            counts["webdataset"][outcome(lambda: webdatasets(path), truth)] += 1
    return {name: summed(count) if count else None for name, count in counts.items()}


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def attacks(marker: Path) -> dict[str, list[Member]]:
    """Members that lead elsewhere or want to run."""
    link, hard, device = (tarfile.TarInfo(name) for name in ("x.jpg", "x.jpg", "x.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, str(marker.parent / "secret")
    hard.type, hard.linkname, device.type = tarfile.LNKTYPE, "../secret", tarfile.CHRTYPE
    code = pickle.dumps(Runs(marker))
    names = [
        "../x.jpg",
        "../../x.jpg",
        "/x.jpg",
        "a/../../x.jpg",
        "..\\x.jpg",
        "c:x.jpg",
        "pipe:x.jpg",
        f"{marker}.jpg",
    ]
    found: dict[str, list[Member]] = {name: [member(name, b"x"), member("x.txt", b"x")] for name in names}
    found |= {"symlink": [(link, b"")], "hard link": [(hard, b"")], "device": [(device, b"")]}
    found |= {f"x.{ending}": [member(f"x.{ending}", code)] for ending in ("pyd", "pickle", "pkl", "pth", "pt")}
    found["a url in a member"] = [
        member("x.jpg", f"pipe:touch {marker}".encode()),
        member("x.__url__", b"pipe:touch x"),
    ]
    return found


def row_16(folder: Path, trials: int, peer: bool) -> dict[str, Any]:
    """Members and locations that lead elsewhere or want to run: counted or refused, nothing written, nothing run."""
    marker, inside = folder / "ran", folder / "inside"
    inside.mkdir()
    (folder / "secret").write_bytes(b"secret")
    before = sorted(path.name for path in folder.iterdir())
    counts = {name: Counter() for name in ("opencoca", "webdataset")}
    truth = whole(3)

    def judged(read: Callable[[], tuple[Pairs, int]], patience_s: float = 0.0) -> str:
        result = outcome(read, truth)
        time.sleep(patience_s)  # a pipe's command may still be on its way
        ran = marker.exists() or sorted(path.name for path in folder.iterdir()) != before
        marker.unlink(missing_ok=True)
        return "silent" if ran else "counted" if result == "same" else result

    def decoded(path: str) -> tuple[Pairs, int]:
        wds = importlib.import_module("webdataset")
        list(wds.WebDataset(path, shardshuffle=False, empty_check=False).decode())
        return truth, 1

    path = inside / "t.tar"
    for members in attacks(marker).values():
        write_tar(path, [m for i in range(3) for m in pair(i)] + members)
        seen = ours(path)[1]
        counts["opencoca"][judged(lambda: ours(path)) if seen else "silent"] += 1
        if peer:
            counts["webdataset"][judged(lambda p=str(path): decoded(p))] += 1
    for url in (f"pipe:touch {marker}", f"pipe:cat {inside}/t.tar; touch {marker}"):
        counts["opencoca"][judged(lambda u=url: ours(u), 0.5)] += 1  # type: ignore[arg-type]
        if peer:
            counts["webdataset"][judged(lambda u=url: decoded(u), 0.5)] += 1
    return {name: summed(count) if count else None for name, count in counts.items()}


BAD_CELLS = [
    "",
    " ",
    "\u200b",
    "\ud800",
    "x" * 30_000,
    "a\0b",
    '"',
    "\n",
    "pipe:touch x",
    "../x.png",
    "https://x/y.png",
    "\u202e",
]


def row_20(folder: Path, trials: int, peer: bool) -> dict[str, Any]:
    """Tables and COCO's json with bad cells, entries of a wrong kind, and bytes changed anywhere."""
    chance, counts = random.Random(BIT_SEED), {name: Counter() for name in ("csv", "jsonl", "coco", "bytes")}
    for trial in range(trials):
        kind = ("csv", "jsonl", "coco", "bytes")[trial % 4]
        rows = [(f"{i}.png", f"caption {i}") for i in range(8)]
        bad = chance.sample(range(8), 2)
        for i in bad if kind != "bytes" else []:
            rows[i] = (chance.choice([rows[i][0], *BAD_CELLS]), chance.choice(BAD_CELLS))
        good = {path: (b"", caption) for i, (path, caption) in enumerate(rows) if i not in bad or kind == "bytes"}
        counts[kind][_table(folder, kind, rows, good, chance)] += 1
    return {
        "opencoca": summed(sum(counts.values(), Counter())),
        "opencoca, by kind": {k: summed(c) for k, c in counts.items()},
    }


def _table(folder: Path, kind: str, rows: list[tuple[str, str]], good: Pairs, chance: random.Random) -> str:
    if kind == "jsonl":
        path, content = folder / "t.jsonl", "\n".join(json.dumps({"path": p, "text": c}) for p, c in rows).encode()
    elif kind == "coco":
        images = [{"id": i, "file_name": p} for i, (p, _) in enumerate(rows)]
        annotations: list[Any] = [{"image_id": i, "caption": c} for i, (_, c) in enumerate(rows)]
        annotations += [None, {"image_id": 99, "caption": "x"}, {"image_id": [], "caption": 5}]
        path, content = folder / "t.json", json.dumps({"images": images, "annotations": annotations}).encode()
    else:
        import csv

        file = io.StringIO()
        csv.writer(file).writerows([("path", "caption"), *rows])
        path, content = folder / "t.csv", file.getvalue().encode(errors="surrogatepass")
    if kind == "bytes":
        changed = bytearray(content)
        at = chance.randrange(len("path,caption\r\n"), len(content))
        changed[at] = (
            chance.choice(b"\",\n\r\0\xff;'x") if chance.random() < 0.7 else changed[at] ^ (1 << chance.randrange(8))
        )
        touched = content[:at].count(b"\n") - 1
        good = {path: value for i, (path, value) in enumerate(good.items()) if i not in (touched, touched + 1)}
        content = bytes(changed)
    path.write_bytes(content)
    try:
        source = open_source(path)
    except DataError as error:
        return "error" if str(path) in str(error) else "silent"
    named = len(source.skipped) + source.ignored.total()
    read = dict(zip(source.keys, source.captions, strict=True))
    if kind == "bytes":  # a changed name may be another picture's, whose caption then stands beside its own
        for place in good:
            (folder / place).write_bytes(b"not read")
        known = {key: source[i].captions for i, key in enumerate(source.keys) if key in good}
        missing = [key for key, (_, caption) in good.items() if caption not in known.get(key, ())]
    else:
        missing = [key for key, (_, caption) in good.items() if read.get(key) != caption]
    if missing:
        return "silent" if kind != "bytes" or not named else "counted"
    if kind != "bytes" and len(source.keys) + named < len(rows):
        return "silent"
    return "counted" if named else "same"


def webdataset_version() -> str | None:
    with contextlib.suppress(Exception):
        importlib.import_module("webdataset")
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version("webdataset")
        return "unknown"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of each row")
    trials = parser.parse_args().trials
    logging.disable(logging.WARNING)
    os.environ.setdefault("WDS_VERBOSE_CACHE", "0")
    version, rows = webdataset_version(), {}
    for number, row in {13: row_13, 14: row_14, 15: row_15, 16: row_16, 20: row_20}.items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows[str(number)] = {
                "trial": (row.__doc__ or "").splitlines()[0],
                **row(Path(folder), trials, version is not None),
            }
        print(number, f"{time.perf_counter() - began:.0f} s", json.dumps(rows[str(number)]))
    write_result("reliability_data", {"samples_per_tar": SAMPLES, "webdataset": version, "rows": rows})


if __name__ == "__main__":
    main()
