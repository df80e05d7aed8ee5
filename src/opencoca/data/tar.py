"""The members of a tar by their headers alone: nothing is extracted, and no damage is passed over without a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from opencoca.errors import DataError

BLOCK = 512
PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
REPAIR = "copy or write it again"
LARGEST_EXTENSION = 1 << 20  # bytes of a header that tells a long name; no honest one is near it

Read = Callable[[int, int], bytes]  # (offset, size): fewer bytes only at the end of the file


class Member(NamedTuple):
    """A member's name, and where its content lies; the name is None for links, folders and all but plain files."""

    name: str | None
    start: int
    size: int


class DamageError(DataError):
    """A tar that can't be trusted from the byte `at` on."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def members(read: Read, length: int, name: str, start: int = 0, repair: str = REPAIR) -> Iterator[Member]:
    """The members of a tar of `length` bytes, in their order, from the header at byte `start` on.

    Raises: DamageError at the first header that doesn't hold, at a member that is cut off, and where data follow the
      end: a reader that goes on loses samples without a word.
    """
    offset, told = start, {}
    while offset + BLOCK <= length:
        header = read(offset, BLOCK)
        if len(header) < BLOCK:
            raise DamageError(f"{name} became shorter while it was read; {repair}", offset)
        if not header.strip(b"\0"):
            _check_end(read, offset, length, name, repair)
            return
        size = _checked_size(header)
        if size is None:
            raise DamageError(f"{name} has a damaged tar header at byte {offset}; {repair}", offset)
        kind, content = header[156:157], offset + BLOCK
        size = told.get("size", size)
        if content + size > length:
            raise DamageError(f"{name} ends inside the member at byte {offset}; {repair}", offset)
        after = content + -(-size // BLOCK) * BLOCK
        if kind in (b"x", b"L"):  # the next member's long name, as Python's and GNU's tar write it
            if size > LARGEST_EXTENSION:
                raise DamageError(f"{name} has a header of {size} bytes at byte {offset}; {repair}", offset)
            content_bytes = read(content, size)
            try:
                told |= _pax(content_bytes) if kind == b"x" else {"path": content_bytes.rstrip(b"\0")}
            except ValueError as error:
                raise DamageError(f"{name} has a damaged long header at byte {offset}; {repair}", offset) from error
        elif kind in (b"K", b"g"):  # a long link, or facts about all members: neither matters here
            pass
        else:
            yield Member(_name(header, told) if kind in (b"0", b"\0", b"7") else None, content, size)
            told = {}
        offset = after
    raise DamageError(f"{name} ends without the tar's closing block; {repair}", length)


def next_header(read: Read, length: int, after: int) -> int | None:
    """Where the next header that holds begins behind the damaged one at byte `after`, or None."""
    window = 2048 * BLOCK
    for first in range(after + BLOCK, length - BLOCK + 1, window):
        blocks = read(first, min(window, length - first))
        for place in range(0, len(blocks) - BLOCK + 1, BLOCK):
            header = blocks[place : place + BLOCK]
            if header[257:262] == b"ustar" and _checked_size(header) is not None:
                return first + place
    return None


def _check_end(read: Read, offset: int, length: int, name: str, repair: str) -> None:
    """Behind the first block of zeros there may be only zeros: else a block of them hides what follows."""
    for first in range(offset, length, 1 << 20):
        if read(first, min(1 << 20, length - first)).strip(b"\0"):
            raise DamageError(f"{name} has a block of zeros at byte {offset} with data behind it; {repair}", offset)


def _checked_size(header: bytes) -> int | None:
    """The size that a header tells, or None if its checksum or its size doesn't hold."""
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(header[148:156]) != unsigned:
        return None
    return _number(header[124:136])


def _number(field: bytes) -> int | None:
    if field[0] == 0x80:  # GNU's form for 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]{1,12}", digits) else None


def _name(header: bytes, told: dict) -> str | None:
    if "sparse" in told:
        return None
    name = told.get("path")
    if name is None:
        name = header[:100].split(b"\0")[0]
        if header[257:265] == b"ustar\x0000" and header[345] != 0:
            name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "replace")


def _pax(content: bytes) -> dict:
    """What we need of the records "LENGTH KEY=VALUE\\n". Raises: ValueError if they don't hold."""
    told = {}
    while content:
        digits, space, _ = content[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[:length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length <= len(digits) + 1 or len(record) != length or record[-1:] != b"\n" or not equals:
            raise ValueError("not a record")
        if key == b"path":
            told["path"] = value
        elif key == b"size":
            told["size"] = int(value)
            if told["size"] < 0:
                raise ValueError("a size below 0")
        elif key.startswith(b"GNU.sparse"):
            told["sparse"] = True
        content = content[length:]
    return told
