"""Tar shards with a manifest: written whole or not at all, read at random without extracting, every loss named.

A folder holds `{split}-000000.tar`, ... and `manifest.json`. A sample is the members `{key}.png`, `{key}.txt` and
`{key}.json` of one tar. The manifest lists each shard with its samples, bytes and sha256, and is written last.
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
import re
import tarfile
import threading
from pathlib import Path
from typing import NamedTuple

from opencoca.errors import DataError

FORMAT, VERSION = "opencoca-shards", 1
MANIFEST = "manifest.json"
REPAIR = "prepare or copy the data again"
PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
KEY = re.compile(r"\w[\w+-]{0,89}")  # with its extension below the 100 bytes that a plain tar header has room for
SPLIT = re.compile(r"[a-z][a-z0-9_]{0,40}")
BLOCK = 512


class Sample(NamedTuple):
    """One picture as its encoded bytes, with its caption (or several) and whatever else is known of it."""

    key: str
    picture: bytes
    caption: str
    attributes: dict
    more_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the picture."""
        return (self.caption, *self.more_captions)


class _Place(NamedTuple):
    """Where a sample lies: (offset, size) in the file of its shard."""

    shard: int
    key: str
    picture: tuple[int, int]
    attributes: tuple[int, int] | None


def _fsync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Shard:
    """One tar on its way: under a temporary name until it is finished."""

    def __init__(self, folder: Path, split: str, index: int):
        self.split, self.samples = split, 0
        self.path = folder / f"{split}-{index:06d}.tar"
        self.temporary = folder / f".{self.path.name}.{os.getpid()}.part"
        self.file = self.temporary.open("wb")
        self.tar = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, user and group 0, mode 0644: equal input gives equal bytes
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))

    def finish(self) -> dict:
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        facts = {"file": self.path.name, "split": self.split, "samples": self.samples}
        with self.temporary.open("rb") as file:
            facts["bytes"] = os.fstat(file.fileno()).st_size
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(self.temporary, self.path)
        return facts

    def abandon(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


class ShardWriter:
    """Writes samples of any splits as tar shards; a context manager, whose normal end writes the manifest.

    If the block ends with an exception (or the process is killed) there is no manifest, so no reader takes the folder
    for good. A manifest that is already there is removed at the start, with the shards that it lists.

    Args: source is any JSON object that says what the samples were made from.
    Raises: DataError if the folder can't be written, or if a sample is unfit: `add` names it and writes nothing of it.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, source: dict | None = None):
        if samples_per_shard < 1:
            raise DataError(f"samples_per_shard is {samples_per_shard}; give 1 or more")
        self.folder, self.samples_per_shard, self.source = Path(folder), samples_per_shard, source or {}
        self.skipped: list[tuple[str, str]] = []
        self._open: dict[str, _Shard] = {}
        self._done: dict[str, list[dict]] = {}
        self._keys: set[tuple[str, str]] = set()

    def __enter__(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            old = []
            with contextlib.suppress(DataError):
                old = [self.folder / shard["file"] for shard in read_manifest(self.folder)["shards"]]
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for leftover in [*old, *self.folder.glob(".*.part")]:
                leftover.unlink(missing_ok=True)
            _fsync_folder(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for split in sorted(self._open):
                    self._finish(split)
                self._write_manifest()
        except OSError as failure:
            raise self._unwritable(failure) from failure
        finally:
            for shard in self._open.values():
                shard.abandon()

    def add(self, split: str, key: str, picture: bytes, caption: str, attributes: dict | None = None) -> None:
        """Writes one sample, the picture as PNG bytes."""
        reason = None
        if not SPLIT.fullmatch(split):
            reason = f"the split {split!r} isn't lowercase letters, digits and _"
        elif not KEY.fullmatch(key) or len(key.encode()) > 90:
            reason = "its key isn't 1 to 90 bytes of letters, digits, _, + and -"
        elif (split, key) in self._keys:
            reason = f"its key is in {split} already"
        elif not picture:
            reason = "it has no picture"
        elif not caption.strip():
            reason = "its caption is empty"
        if reason:
            raise DataError(f"can't write the sample {key!r}: {reason}")
        try:
            if split not in self._open:
                self._open[split] = _Shard(self.folder, split, len(self._done.setdefault(split, [])))
            shard = self._open[split]
            shard.add(f"{key}.png", picture)
            shard.add(f"{key}.txt", caption.strip().encode())
            shard.add(f"{key}.json", json.dumps(attributes or {}, ensure_ascii=False, sort_keys=True).encode())
            shard.samples += 1
            self._keys.add((split, key))
            if shard.samples == self.samples_per_shard:
                self._finish(split)
        except OSError as error:
            raise self._unwritable(error) from error

    def skip(self, split: str, key: str, reason: str) -> None:
        """Notes in the manifest that a sample is left out, and why."""
        self.skipped.append((f"{split}/{key}", reason))

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"can't write into {self.folder} ({error.strerror}); free some space or choose another folder")

    def _finish(self, split: str) -> None:
        self._done[split].append(self._open[split].finish())
        del self._open[split]

    def _write_manifest(self) -> None:
        shards = [shard for split in sorted(self._done) for shard in self._done[split]]
        samples = {split: sum(shard["samples"] for shard in self._done[split]) for split in sorted(self._done)}
        skipped = [{"key": key, "reason": reason} for key, reason in self.skipped]
        manifest = {"format": FORMAT, "version": VERSION, "source": self.source, "samples": samples}
        manifest |= {"skipped": skipped, "shards": shards}
        _fsync_folder(self.folder)  # the shards' names reach the disk before the manifest that vouches for them
        temporary = self.folder / f".{MANIFEST}.{os.getpid()}.part"
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / MANIFEST)
        _fsync_folder(self.folder)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a folder of shards, checked for form.

    Raises: DataError if it is missing, foreign, or of a newer version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        what = "is missing: the shards were never finished" if Path(folder).is_dir() else "is missing, as is its folder"
        raise DataError(f"{path} {what}; prepare the data again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}); prepare the data again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not a manifest of {FORMAT}; point to a folder that opencoca prepared")
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise DataError(f"{path} has version {found}, this opencoca reads {VERSION}; prepare the data again")
    shards = manifest.get("shards")
    good = isinstance(shards, list) and all(map(_is_shard, shards)) and isinstance(manifest.get("source"), dict)
    good = good and isinstance(manifest.get("skipped"), list) and isinstance(manifest.get("samples"), dict)
    if not good:
        raise DataError(f"{path} has a damaged list of shards; prepare the data again")
    return manifest


def _is_shard(facts) -> bool:
    if not isinstance(facts, dict) or not all(isinstance(facts.get(k), str) for k in ("file", "split", "sha256")):
        return False
    counts = (facts.get("samples"), facts.get("bytes"))
    # The name is rebuilt from safe parts, so a manifest can't point out of its folder.
    named = SPLIT.fullmatch(facts["split"]) and re.fullmatch(re.escape(facts["split"]) + r"-\d{6}\.tar", facts["file"])
    return bool(named) and all(isinstance(count, int) and count >= 0 for count in counts)


def _number(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]{1,12}", digits) else None


def _members(data, path: Path):
    """(name, offset, size) of each member of a tar; the name is None for links, folders and all but plain files.

    Raises: DataError at the first header that doesn't hold: a reader that goes on loses samples without a word.
    """
    offset, renamed = 0, False
    while offset + BLOCK <= len(data):
        header = bytes(data[offset : offset + BLOCK])
        if not header.strip(b"\0"):
            return
        size = _number(header[124:136])
        unsigned = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
        if size is None or _number(header[148:156]) != unsigned:
            raise DataError(f"{path} has a damaged tar header at byte {offset}; {REPAIR}")
        start, kind = offset + BLOCK, header[156:157]
        if start + size > len(data):
            raise DataError(f"{path} ends inside the member at byte {offset}; {REPAIR}")
        plain = kind in (b"0", b"\0") and not renamed
        name = header[:100].split(b"\0")[0]
        if header[257:265] == b"ustar\x0000" and header[345] != 0:
            name = header[345:500].split(b"\0")[0] + b"/" + name
        yield (name.decode("utf-8", "replace") if plain else None), start, size
        renamed = kind in (b"x", b"L", b"K")  # the next member's true name is in this one, which isn't read
        offset = start + -(-size // BLOCK) * BLOCK
    raise DataError(f"{path} ends without the tar's closing block; {REPAIR}")


class ShardReader:
    """The samples of a folder of shards, in the order of the manifest; safe to read from several threads and processes.

    Args: split takes only the shards of one split; verify=False skips the digests, not the sizes and counts.
    Attributes: keys and captions, one per sample; skipped, (key, reason) of each sample that is unfit; ignored, how
      many members had an odd name or kind; manifest.
    Raises: DataError if the manifest or a shard is missing, damaged, or has fewer or more samples than it should.
    """

    def __init__(self, folder: str | Path, split: str | None = None, verify: bool = True):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(folder)
        shards = [shard for shard in self.manifest["shards"] if split in (None, shard["split"])]
        if not shards:
            there = ", ".join(dict.fromkeys(shard["split"] for shard in self.manifest["shards"])) or "none"
            raise DataError(f"{self.folder} has no split {split!r}; its splits are: {there}")
        self.keys: list[str] = []
        self.captions: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.ignored = 0
        self._places: list[_Place] = []
        self._paths = [self.folder / shard["file"] for shard in shards]
        self._files: dict[int, io.FileIO] = {}
        self._lock = threading.Lock()
        for index, facts in enumerate(shards):
            self._index(index, facts, verify)

    def _index(self, index: int, facts: dict, verify: bool) -> None:
        path = self._paths[index]
        try:
            with path.open("rb") as file:
                size, wanted = os.fstat(file.fileno()).st_size, facts["bytes"]
                if size != wanted:
                    raise DataError(f"{path} has {size} bytes, its manifest says {wanted}; {REPAIR}")
                if verify and hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    raise DataError(f"{path} is damaged (its sha256 isn't the manifest's); {REPAIR}")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    found = self._index_members(index, path, data)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing, its manifest lists it; {REPAIR}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read ({error}); {REPAIR}") from error
        if found != facts["samples"]:
            less = facts["samples"] - found
            what = f"{less} of {facts['samples']} samples are missing" if less > 0 else f"{-less} samples too many"
            raise DataError(f"{path}: {what}; {REPAIR}")

    def _index_members(self, index: int, path: Path, data) -> int:
        members: dict[str, dict[str, tuple[int, int]]] = {}
        for name, start, size in _members(data, path):
            key, _, extension = (name or "").partition(".")
            field = "picture" if extension in PICTURES else extension
            if not KEY.fullmatch(key) or field not in ("picture", "txt", "json"):
                self.ignored += 1
                continue
            if field in members.setdefault(key, {}):
                raise DataError(f"{path} has {name} twice; prepare the data again")
            members[key][field] = (start, size)
        for key, fields in members.items():
            start, size = fields.get("txt", (0, 0))
            try:
                caption, reason = bytes(data[start : start + size]).decode().strip(), "its caption is empty"
            except UnicodeDecodeError:
                caption, reason = "", "its caption isn't UTF-8"
            if fields.get("picture", (0, 0))[1] == 0:
                self.skipped.append((key, "it has no picture"))
            elif not caption:
                self.skipped.append((key, reason))
            else:
                self._places.append(_Place(index, key, fields["picture"], fields.get("json")))
                self.keys.append(key)
                self.captions.append(caption)
        return len(members)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Sample:
        place = self._places[i]
        attributes = {}
        if place.attributes:
            try:
                attributes = json.loads(self._read(place.shard, *place.attributes))
            except ValueError as error:
                path = self._paths[place.shard]
                raise DataError(f"{place.key}.json in {path} isn't JSON; prepare the data again") from error
        return Sample(place.key, self._read(place.shard, *place.picture), self.captions[i], attributes)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self._paths[shard]
        try:
            with self._lock:
                file = self._files.get(shard) or self._files.setdefault(shard, io.FileIO(path, "rb"))
                if not hasattr(os, "pread"):
                    file.seek(offset)
                    content = file.read(size)
            if hasattr(os, "pread"):
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{path} can't be read any more ({error.strerror}); {REPAIR}") from error
        if len(content) != size:
            raise DataError(f"{path} became shorter while it was read; {REPAIR}")
        return content

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock, contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
            self._files = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def __del__(self):
        if "_files" in self.__dict__:
            self.close()

    def __getstate__(self):
        return self.__dict__ | {"_files": {}, "_lock": None}

    def __setstate__(self, state):
        self.__dict__ |= state | {"_lock": threading.Lock()}
