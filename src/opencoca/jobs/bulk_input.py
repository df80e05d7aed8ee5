"""What a bulk run reads, in pieces that a worker opens by itself: a tar each, or a run of files or rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from opencoca.data import storage
from opencoca.data.manifest import read_manifest
from opencoca.data.sources import open_source, tar_index
from opencoca.data.sources.columns import split_name
from opencoca.data.sources.pairs import FileSource
from opencoca.data.sources.parquet import ParquetSource
from opencoca.data.sources.recognise import Part, recognise
from opencoca.data.sources.tar_scan import reading, scan
from opencoca.errors import DataError

PER_SHARD = 4096
FACTS = ("size", "mtime", "LastModified", "last_modified", "created", "ETag", "etag", "md5Hash")  # of remote files
TARS = ("prepared", "tars", "index")
PICTURES = ("sidecars", "classes")


class Shard(NamedTuple):
    """A piece of the input that becomes one file of the output, by the same name.

    prefix: what stands before the keys. location: of a tar, with the bytes and sha256 that it must have where they are
    known. source, start, stop: which rows of which source, otherwise.
    """

    name: str
    prefix: str
    location: str = ""
    bytes: int | None = None
    sha256: str | None = None
    source: int = -1
    start: int = 0
    stop: int = 0


class Pictures:
    """Picture files of a folder, whether or not they have captions: by index, as a source is read."""

    def __init__(self, root: str, keys: Sequence[str]) -> None:
        self.root, self.keys = root, list(keys)
        self.skipped: list[tuple[str, str]] = []
        self.shards = [range(len(self.keys))]

    def __len__(self) -> int:
        return len(self.keys)

    def picture(self, i: int) -> bytes:
        """The file's content. Raises: DataError if it can't be read."""
        return storage.read_file(storage.joined(self.root, self.keys[i]))


class Input(NamedTuple):
    """The pieces, the sources of those that aren't tars, and what was unfit when these were opened.

    root: the folder that holds the pictures as files, where they are files on this machine.
    """

    shards: list[Shard]
    sources: list[Any]
    skipped: list[tuple[str, str]]
    root: str | None = None


def open_input(location: str, split: str | None = None, per_shard: int = PER_SHARD, http: bool = False) -> Input:
    """The pieces of what lies at a location: all that `open_source` reads, and pictures and tars without captions.

    Raises: DataError if there is nothing to read.
    """
    if per_shard < 1:
        raise DataError(f"{per_shard} pictures in a shard are too few; give 1 or more")
    place = storage.checked(location, http)
    parts = recognise(place)
    if split is not None and parts[0].kind != "prepared":
        split = split_name(split)
    named = [part for part in parts if part.split is not None]
    if split is not None and named:
        parts = [part for part in parts if part.split == split]
        if not parts:
            there = ", ".join(dict.fromkeys(str(part.split) for part in named))
            raise DataError(f"{place} has no split {split!r}; its splits are: {there}")
    found = Input([], [], [])
    prefixes = [f"{part.split}/" if len(parts) > 1 and part.split else "" for part in parts]
    for part, prefix in zip(parts, prefixes, strict=True):
        if part.kind in TARS:
            found.shards.extend(_tars(part, prefix, split))
        elif part.kind in PICTURES:
            _refuse_split(part, split)
            _add(found, Pictures(part.root, _utf8(part, found, prefix)), prefix, per_shard)
    others = [part for part in parts if part.kind not in TARS + PICTURES]
    for wanted in dict.fromkeys(part.split for part in others):
        source = open_source(location, wanted or split, on_damage="count", http=http)
        _add(found, source, f"{wanted}/" if len(parts) > 1 and wanted else "", per_shard)
    names = [shard.name for shard in found.shards]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice or not names:
        raise DataError(f"{place} has {f'two shards {twice}' if twice else 'no picture'}; name other data")
    files = len(parts) == 1 and len(found.sources) == 1 and isinstance(found.sources[0], FileSource | Pictures)
    root = found.sources[0].root if files else None
    return found._replace(root=os.path.abspath(root) if root is not None and not storage.is_url(root) else None)


def read(shard: Shard, sources: Sequence[Any]) -> Iterator[tuple[str, bytes | DataError]]:
    """Each picture's key, and its content or why it can't be read.

    Raises: DataError where the whole shard can't be.
    """
    if not shard.location:
        source = sources[shard.source]
        for i in range(shard.start, shard.stop):
            key = shard.prefix + source.keys[i]
            try:
                content = source.picture(i) if isinstance(source, Pictures) else source[i].picture
            except DataError as error:
                yield key, error
            else:
                yield key, content
        return
    local = not storage.is_url(shard.location)
    size = storage.size_of(shard.location)
    if shard.bytes not in (None, size):
        raise DataError(f"{shard.location} has {size} bytes, and its index says {shard.bytes}; copy it again")
    if local and shard.sha256 not in (None, _file_digest(shard.location)):
        raise DataError(f"{shard.location} is damaged (its sha256 isn't what its index says); copy it again")
    with reading(shard.location) as (read_range, length):
        found = scan(read_range, length, shard.location, "count", captions=False)
        for key, fields in found.samples:
            yield shard.prefix + key, read_range(*fields["picture"])
    for key, reason in found.skipped:
        yield key if key == shard.location else shard.prefix + key, DataError(reason)


def stamp(shard: Shard, sources: Sequence[Any]) -> str:
    """A quick check of the input: the same as long as no file got another name, size or time.

    Raises: DataError where a file isn't there.
    """
    digest = hashlib.sha256()
    if shard.location:
        digest.update(f"{_facts(shard.location)} {shard.sha256}".encode())
        return digest.hexdigest()[:32]
    source = sources[shard.source]
    files = isinstance(source, FileSource | Pictures)
    if not files:
        digest.update(f"{source.fingerprint} {shard.start} {shard.stop}".encode())
    if isinstance(source, ParquetSource):
        digest.update(" ".join(map(_facts, source.files)).encode())
    for i in range(shard.start, shard.stop):
        digest.update(source.keys[i].encode(errors="surrogateescape") + b"\0")
        if files:
            try:
                digest.update(_facts(storage.joined(source.root, source.keys[i])).encode())
            except DataError:  # it is told when it is read
                digest.update(b"missing")
    return digest.hexdigest()[:32]


def _tars(part: Part, prefix: str, split: str | None) -> Iterator[Shard]:
    facts: list[dict[str, Any]]
    if part.kind == "prepared":
        facts, root = read_manifest(part.root)["shards"], part.root
        splits = dict.fromkeys(shard["split"] for shard in facts)
        facts = [shard for shard in facts if split in (None, shard["split"])]
        if not facts:
            raise DataError(f"{root} has no split {split!r}; its splits are: {', '.join(splits) or 'none'}")
    else:
        beside = storage.joined(part.root, tar_index.INDEX)
        known: dict[str, dict[str, Any]] = {}
        root = part.root
        if part.kind == "index" or storage.kind(beside) == "file":
            index = tar_index.load(part.files[0] if part.kind == "index" else beside)
            known, root = {tar["file"]: tar for tar in index.tars}, index.root
        _refuse_split(part, split)
        facts = [known.get(name, {"file": name}) for name in (known if part.kind == "index" else part.files)]
    for tar in facts:
        name = prefix + str(PurePosixPath(tar["file"].replace("\\", "/")).with_suffix(""))
        location = storage.joined(root, tar["file"])
        before = prefix if part.kind == "prepared" else f"{name}/"
        yield Shard(name, before, location, tar.get("bytes"), tar.get("sha256"))


def _add(found: Input, source: Any, prefix: str, per_shard: int) -> None:
    number = sum(shard.name.startswith(f"{prefix}part-") for shard in found.shards)
    for run in source.shards:
        for start in range(run.start, run.stop, per_shard):
            stop = min(start + per_shard, run.stop)
            shard = Shard(f"{prefix}part-{number:06d}", prefix, source=len(found.sources), start=start, stop=stop)
            found.shards.append(shard)
            number += 1
    found.sources.append(source)
    found.skipped.extend((prefix + key, reason) for key, reason in source.skipped)


def _utf8(part: Part, found: Input, prefix: str) -> list[str]:
    """The part's files, but for those whose names no table can hold."""
    good = []
    for name in part.files:
        try:
            name.encode()
            good.append(name)
        except UnicodeEncodeError:
            found.skipped.append((prefix + name, "its name isn't UTF-8; rename it"))
    return good


def _refuse_split(part: Part, split: str | None) -> None:
    if split not in (None, part.split, "train"):
        raise DataError(f"{part.root} tells no splits, so all of it is 'train'; leave --split out")


def _facts(location: str) -> str:
    if not storage.is_url(location):
        try:
            status = os.stat(location)
        except OSError as error:
            raise DataError(f"{location} can't be opened ({error.strerror}); copy it again") from error
        return f"{status.st_size} {status.st_mtime_ns}"
    fs, path = storage.file_system(location)
    try:
        known = fs.info(path)
    except Exception as error:
        raise DataError(f"{location} can't be opened ({error}); check the URL and its credentials") from error
    return " ".join(str(known.get(name)) for name in FACTS)


def _file_digest(location: str) -> str:
    with Path(location).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
