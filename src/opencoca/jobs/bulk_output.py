"""The folder that a bulk run writes: one file a shard, a record beside it, and a manifest once all is there.

    bulk.json              which model, what is made, with which options; never changes
    shards/NAME.parquet    a row for each readable picture of an input shard, in the input's order
    shards/NAME.json       the record: sha256 of that file, what it was made of, and which pictures were bad
    manifest.json          all shards with their digests; written last, removed when a run begins

A shard is done when its record stands, and a record is written after its file, both in one step. So a run may be killed
at any moment, and two workers that do the same shard write the same bytes. The folder may be on this machine or on a
file system that all workers share, or an object store's URL, which writes a file in one step too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.data import storage
from opencoca.errors import DataError
from opencoca.files import write_atomically

BULK, MANIFEST, SHARDS = "bulk.json", "manifest.json", "shards"
FORMAT, VERSION = "opencoca bulk", 1
# Stores that write a file in one step.
AT_ONCE = frozenset({"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hf"})


@dataclass(frozen=True)
class Record:
    """What a shard's file was made of, and what is in it.

    what: digest of the model and all options. stamp: a quick check of the input (names, sizes, times). content: sha256
    of all keys and of what is behind them. bad: (key, reason) of each picture that has no row.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    what: str
    stamp: str
    content: str
    bad: tuple[tuple[str, str], ...] = ()

    @property
    def pictures(self) -> int:
        return self.rows + len(self.bad)


class Failure(NamedTuple):
    """A shard that couldn't be read, and why."""

    name: str
    reason: str


class Place:
    """A folder on this machine or behind a URL; files in it are there whole or not at all."""

    def __init__(self, location: str) -> None:
        """Raises: DataError for a place that can't be written to in one step."""
        self.location = storage.checked(location)
        if storage.is_url(self.location) and self.location.partition(":")[0].lower() not in AT_ONCE:
            raise DataError(f"{location} can't be written in one step; name a folder, or a URL of {sorted(AT_ONCE)}")

    def __str__(self) -> str:
        return self.location

    @property
    def folder(self) -> Path | None:
        """The folder, where it is on this machine."""
        return None if storage.is_url(self.location) else Path(self.location)

    def at(self, name: str) -> str:
        """Where a file is."""
        return storage.joined(self.location, name)

    def write(self, name: str, content: bytes) -> None:
        """Raises: DataError where it can't be written."""
        if self.folder is not None:
            write_atomically(self.folder / name, content)
            return
        with self._named(name):
            fs, path = storage.file_system(self.at(name))
            if self.location.startswith("memory:"):
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, content)

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        if storage.kind(self.at(name)) != "file":
            return None
        return storage.read_file(self.at(name))

    def remove(self, name: str) -> None:
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
            return
        with self._named(name):
            fs, path = storage.file_system(self.at(name))
            if fs.exists(path):
                fs.rm_file(path)
            fs.invalidate_cache()

    def clean(self) -> None:
        """Removes what killed writers left."""
        if self.folder is not None:
            for path in self.folder.rglob(".partial-*"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def records(self) -> dict[str, Record]:
        """The records of all shards that are done, by name.

        Raises: DataError for one that is damaged.
        """
        if storage.kind(self.at(SHARDS)) is None:
            return {}
        found = {}
        for below, _, files in storage.walk(self.at(SHARDS)):
            for file in files:
                if file.endswith(".json"):
                    name = f"{below}/{file}".strip("/").removesuffix(".json")
                    found[name] = self.record(name)
        return found

    def record(self, name: str) -> Record:
        """The record of a shard.

        Raises: DataError where it is damaged.
        """
        found = self._json(f"{SHARDS}/{name}.json")
        try:
            bad = tuple((str(key), str(reason)) for key, reason in found.pop("bad"))
            record = Record(**found, bad=bad)
            if record.name != name:
                raise ValueError(f"it is of {record.name}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.at(SHARDS)}/{name}.json is damaged ({error}); remove it and run again") from error
        return record

    def has(self, name: str) -> bool:
        """Whether the shard is done."""
        return storage.kind(self.at(f"{SHARDS}/{name}.json")) == "file"

    def put_record(self, record: Record) -> None:
        self._put_json(f"{SHARDS}/{record.name}.json", dataclasses.asdict(record))

    def settings(self) -> dict[str, Any] | None:
        """What `bulk.json` says; None where there is none.

        Raises: DataError where it is damaged or of another version.
        """
        if storage.kind(self.at(BULK)) is None:
            return None
        found = self._json(BULK)
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            said = f"{found.get('format')!r}, version {found.get('version')!r}"
            raise DataError(f"{self.at(BULK)} is {said}, and this OpenCoCa reads {FORMAT!r}, version {VERSION}")
        return found

    def check_free(self) -> None:
        """Refuses a place without `bulk.json` that holds something else than shards.

        Raises: DataError.
        """
        if storage.kind(self.location) is None:
            return
        folders, files = storage.listing(self.location)
        other = sorted({*folders, *files} - {SHARDS, MANIFEST})
        if MANIFEST in files:
            try:
                self._json(MANIFEST)
            except DataError:
                other.append(MANIFEST)
        if other:
            raise DataError(f"{self} isn't empty (it holds {other[0]}); name another --out")

    def put_settings(self, settings: dict[str, Any]) -> None:
        self._put_json(BULK, {"format": FORMAT, "version": VERSION, **settings})

    def manifest(self) -> list[Record]:
        """The shards of a finished run, without the names of bad pictures.

        Raises: DataError where it isn't finished, or is damaged.
        """
        if storage.kind(self.at(MANIFEST)) is None:
            raise DataError(f"{self} is no finished bulk output (no {MANIFEST}); run `coca bulk` again until it is")
        found = self._json(MANIFEST)
        try:
            return [Record(**facts) for facts in found["shards"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.at(MANIFEST)} is damaged ({error}); run `coca bulk` again") from error

    def put_manifest(self, records: list[Record], totals: dict[str, Any]) -> None:
        shards = []
        for record in records:
            facts = dataclasses.asdict(record)
            del facts["bad"], facts["stamp"]  # times of files are this machine's business
            shards.append({**facts, "stamp": ""})
        self._put_json(MANIFEST, {"format": FORMAT, "version": VERSION, **totals, "shards": shards})

    def _put_json(self, name: str, found: dict[str, Any]) -> None:
        self.write(name, (json.dumps({**found, "digest": _digest(found)}, indent=1) + "\n").encode())

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.read(name) or b"")
            if found.pop("digest") != _digest(found):
                raise ValueError("its digest is wrong")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.at(name)} is damaged ({error}); remove it and run `coca bulk` again") from error
        return found

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # every remote file system has errors of its own
            raise DataError(f"{self.at(name)} can't be written ({error}); check the URL and its credentials") from error


def file_of(name: str) -> str:
    """Where the file of a shard is, below the output."""
    return f"{SHARDS}/{name}.parquet"


def _digest(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
