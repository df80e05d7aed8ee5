"""Which samples a tar holds, in webdataset's and img2dataset's layout: told by names alone, and nothing lost unsaid."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from opencoca.data import storage
from opencoca.data.sources.captions import MOST_CHARACTERS
from opencoca.data.tar import PICTURES, DamageError, Read, members, next_header
from opencoca.errors import DataError

LARGEST_CAPTION = 4 * MOST_CHARACTERS
LARGEST_JSON = 1 << 20
LARGEST_PICTURE = 1 << 30
FIELDS = {**dict.fromkeys(PICTURES, "picture"), "txt": "txt", "json": "json"}
REPAIR = 'copy it again, or count the damage and go on (on_damage="count")'

Place = tuple[int, int]  # where a member's content starts, and its size


class Scanned(NamedTuple):
    """What a tar holds: (key, places by field) of each sample, (key, reason) of what is unfit, counts of the rest."""

    samples: list[tuple[str, dict[str, Place]]]
    skipped: list[tuple[str, str]]
    ignored: Counter[str]


@contextlib.contextmanager
def reading(location: str) -> Iterator[tuple[Read, int]]:
    """A function that reads ranges of a file from its beginning to its end, and the file's length."""
    length = storage.size_of(location)
    with storage.open_stream(location) as file:
        if storage.is_url(location) or length == 0:

            def read(offset: int, size: int) -> bytes:
                file.seek(offset)
                return file.read(size)

            yield read, length
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield (lambda offset, size: data[offset : offset + size]), len(data)


def scan(read: Read, length: int, name: str, on_damage: str = "stop", captions: bool = True) -> Scanned:
    """The samples of a tar by its members' names: what stands before the first dot is the key.

    Members of one key may lie anywhere in the tar. Where a picture or caption of a key comes twice, and all members of
    the key lie together in whole samples, the first of these is taken; where one strays, no pair is certain, and all
    are left out. Both are told. With captions=False, pictures may come without one.

    Raises: DataError where the tar is damaged; with on_damage="count" that is noted, and read on from the next header.
    """
    found = Scanned([], [], Counter())
    groups: dict[str, list[_Entry]] = {}
    start: int | None = 0
    number = 0
    while start is not None:
        try:
            for member in members(read, length, name, start, repair=REPAIR):
                named = _key_and_field(member.name, found.ignored)
                if named:
                    groups.setdefault(named[0], []).append(_Entry(number, named[1], (member.start, member.size)))
                    number += 1
            break
        except DamageError as error:
            if on_damage != "count":
                raise
            found.skipped.append((name, str(error).removesuffix(f"; {REPAIR}")))
            number += 1  # what is lost here lay between
            start = next_header(read, length, error.at)
    for key, entries in groups.items():
        fields = {entry.field: entry.place for entry in entries}
        if len(fields) < len(entries):
            wholes = [_whole(run) for run in _runs(entries)]
            fields = wholes[0] if all(wholes) else None
            what = "the first that lie together are taken" if fields else "no pair is certain"
            found.skipped.append((key, f"its picture or caption comes twice; {what}"))
        reason = _unfit(fields, captions) if fields else None
        if reason:
            found.skipped.append((key, reason))
        elif fields:
            found.samples.append((key, fields))
    return found


def _key_and_field(name: str | None, ignored: Counter[str]) -> tuple[str, str] | None:
    if name is None:
        ignored["link, folder or other kind"] += 1
        return None
    name = name.removeprefix("./")
    key, ending = _parts(name)
    field = FIELDS.get(ending)
    if not is_safe(name):
        ignored["name that leads elsewhere"] += 1
    elif key is None:
        ignored["name that isn't FOLDER/KEY.ENDING"] += 1
    elif field is None:
        ignored[f".{ending[:20]}"] += 1
    else:
        return key, field
    return None


class _Entry(NamedTuple):
    """A member of a sample, and its number among the members that count."""

    number: int
    field: str
    place: Place


def _runs(entries: list[_Entry]) -> list[list[_Entry]]:
    """Entries that follow each other in the tar."""
    runs = [[entries[0]]]
    for before, entry in itertools.pairwise(entries):
        if entry.number == before.number + 1:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _whole(run: list[_Entry]) -> dict[str, Place] | None:
    """The sample that entries make, if they make exactly one."""
    fields = {entry.field: entry.place for entry in run}
    return fields if len(fields) == len(run) > 1 and "picture" in fields else None


def _parts(name: str) -> tuple[str | None, str]:
    folder, slash, base = name.rpartition("/")
    key, dot, ending = base.partition(".")
    return (folder + slash + key if key and dot and ending else None), ending.lower()


def is_safe(name: str) -> bool:
    """True for a plain relative path: no root, no drive, no scheme, no .., no control characters."""
    return not re.search(r"^/|\\|:|[\x00-\x1f\x7f]|(^|/)\.\.(/|$)|\ufffd", name) and len(name) <= 1024


def _unfit(fields: dict[str, Place], captions: bool) -> str | None:
    if "picture" not in fields:
        return "it has no picture"
    if captions and "txt" not in fields and "json" not in fields:
        return "it has no caption"
    if not captions:
        fields = {"picture": fields["picture"]}
    for field, most in (("picture", LARGEST_PICTURE), ("txt", LARGEST_CAPTION), ("json", LARGEST_JSON)):
        size = fields.get(field, (0, 1))[1]
        what = {"picture": "picture", "txt": "caption", "json": "json"}[field]
        if size > most:
            return f"its {what} has {size} bytes, more than {most}"
        if size == 0 and (field != "txt" or "json" not in fields):
            return f"its {what} is empty"
    return None


def is_tar(location: str) -> bool:
    """True for what is called like a tar that can be read by offsets; compressed ones can't."""
    return storage.suffix(location) == ".tar"


def refuse_compressed(location: str) -> None:
    """Raises: DataError for a compressed tar."""
    if re.search(r"\.(tgz|tar\.\w+)$", location.lower()):
        raise DataError(f"{location} is a compressed tar, which can't be read by offsets; uncompress it first")
