"""The index of a set of tars: where each sample lies, in 48 bytes and its key, with digests that show any damage.

The file is b"COCAIDX1", the length of a JSON header as 8 bytes, the header, three arrays (the keys' bytes, their ends,
the places) and the sha256 of all that. It is mapped, not read, so that the processes of a machine share its memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opencoca.data import storage
from opencoca.data.sources.captions import UnfitError, parsed_json
from opencoca.data.sources.tar_scan import is_safe, reading, scan
from opencoca.data.tar import Read
from opencoca.data.texts import Texts
from opencoca.errors import DataError

INDEX = "opencoca.index"
MAGIC = b"COCAIDX1"
PLACE = np.dtype(
    [
        ("picture", "<u8"), ("txt", "<u8"), ("json", "<u8"),
        ("picture_size", "<u4"), ("txt_size", "<u4"), ("json_size", "<u4"),
        ("check", "<u4"), ("digest", "<u8"),
    ]
)  # fmt: skip
REPAIR = "run `coca data index` again"


class TarIndex:
    """What a set of tars holds.

    Attributes: root, the folder or URL that the tars lie below; tars, facts of each (file, samples, bytes, and with
      digests sha256); keys; places, an array of PLACE; skipped; ignored; has_digests; file, where it was mapped from.
    """

    def __init__(self, root: str, tars: list[dict[str, Any]], keys: Texts, places: np.ndarray) -> None:
        self.root, self.tars, self.keys, self.places = root, tars, keys, places
        self.skipped: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()
        self.has_digests = False
        self.file: str | None = None


def build(
    root: str,
    names: Sequence[str],
    on_damage: str = "stop",
    digests: bool = False,
) -> TarIndex:
    """The index of the tars `names` below `root`, by their headers; with digests every byte is read.

    Raises: DataError if a tar is missing or damaged (see `scan`).
    """
    keys, tables, tars = Texts(), [], []
    index = TarIndex(root, tars, keys, np.empty(0, PLACE))
    for name in names:
        location = storage.joined(root, name)
        with reading(location) as (read, length):
            found = scan(read, length, location, on_damage)
            facts = {"file": name, "samples": len(found.samples), "bytes": length}
            if digests:
                facts["sha256"] = _sha256(read, length)
            table = np.zeros(len(found.samples), PLACE)
            for row, (key, fields) in enumerate(found.samples):
                keys.append(key)
                for field, (start, size) in fields.items():
                    table[row][field], table[row][f"{field}_size"] = start, size
                if digests:
                    contents = {field: read(*place) for field, place in fields.items()}
                    table[row]["digest"], table[row]["check"] = digest_of(contents), check_of(contents)
        tables.append(table)
        tars.append(facts)
        label = name.removesuffix(".tar")
        index.skipped += [(key if key == location else f"{label}/{key}", reason) for key, reason in found.skipped]
        index.ignored += found.ignored
    index.places = np.concatenate(tables) if tables else index.places
    index.has_digests = digests
    return index


def digest_of(contents: dict[str, bytes]) -> int:
    """The first 8 bytes of the sha256 of a sample's picture."""
    return int.from_bytes(hashlib.sha256(contents["picture"]).digest()[:8], "little")


def check_of(contents: dict[str, bytes]) -> int:
    """The CRC-32 of a sample's texts."""
    return zlib.crc32(contents.get("json", b""), zlib.crc32(contents.get("txt", b"")))


def _sha256(read: Read, length: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, length, 1 << 20):
        digest.update(read(offset, min(1 << 20, length - offset)))
    return digest.hexdigest()


def save(index: TarIndex, path: Path, base: str | None = None) -> Path:
    """Writes an index with digests, whole or not at all; `base` is where the tars are, if not beside it."""
    keys, ends = index.keys.buffers()
    facts = {"version": 1, "base": base, "tars": index.tars, "samples": len(index.keys), "keys": len(keys)}
    facts |= {"skipped": index.skipped, "ignored": index.ignored}
    header = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
    header += b" " * (-(len(MAGIC) + 8 + len(header)) % 64)  # so that the arrays begin at a multiple of 64
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for part in (
                MAGIC,
                len(header).to_bytes(8, "little"),
                header,
                ends.tobytes(),
                index.places.tobytes(),
                keys,
            ):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"can't write {path} ({error.strerror}); name another file (--out)") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(location: str) -> TarIndex:
    """The index in a file, mapped.

    Raises: DataError if it is damaged, foreign, or names a tar outside of its folder.
    """
    content = storage.read_file(location) if storage.is_url(location) else _mapped(location)
    if content[:8] != MAGIC or len(content) < 48:
        raise DataError(f"{location} is not an index of tars; {REPAIR}")
    body = memoryview(content)[:-32]
    if hashlib.sha256(body).digest() != content[-32:]:
        raise DataError(f"{location} is damaged (its sha256 isn't what it says); {REPAIR}")
    try:
        start = 16 + int.from_bytes(content[8:16], "little")
        facts = parsed_json(content[16:start])
        samples, base, tars = facts["samples"], facts["base"], facts["tars"]
        places = start + 8 * samples
        keys = places + PLACE.itemsize * samples
        good = (
            facts["version"] == 1 and len(body) == keys + facts["keys"] and sum(t["samples"] for t in tars) == samples
        )
        good = good and all(is_safe(tar["file"]) for tar in tars)
        good = good and (base is None or storage.is_url(storage.checked(base)))
    except (UnfitError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{location} has a header that can't be read ({error}); {REPAIR}") from error
    if not good:
        raise DataError(f"{location} has a header that doesn't fit its content; {REPAIR}")
    ends = np.frombuffer(body, "<i8", samples, start)
    index = TarIndex(
        base or storage.parent(location),
        tars,
        Texts.over(body[keys:], ends),
        np.frombuffer(body, PLACE, samples, places),
    )
    index.skipped = [(key, reason) for key, reason in facts["skipped"]]
    index.ignored, index.has_digests, index.file = Counter(facts["ignored"]), True, location
    return index


def _mapped(location: str) -> Any:
    try:
        with open(location, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{location} can't be read ({error}); {REPAIR}") from error
