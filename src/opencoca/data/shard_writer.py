"""Writing shards: each file whole or not at all, the manifest last."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from opencoca.data.manifest import (
    FORMAT,
    KEY,
    MANIFEST,
    MORE_CAPTIONS,
    SPLIT,
    UNFINISHED,
    VERSION,
    read_manifest,
)
from opencoca.errors import DataError, unwritable
from opencoca.files import fsync, write_atomically

MAGIC = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


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

    If the block ends with an exception (or the process is killed) there is no manifest but a file `.unfinished`, so no
    reader takes the folder for good. A manifest that is already there is removed at the start, with its shards.

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
            (self.folder / UNFINISHED).touch()
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for leftover in [*old, *self.folder.glob(".*.part"), *self.folder.glob(".partial-*")]:
                leftover.unlink(missing_ok=True)
            fsync(self.folder)
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

    def add(
        self,
        split: str,
        key: str,
        picture: bytes,
        caption: str,
        attributes: dict | None = None,
        more_captions: Sequence[str] = (),
    ) -> None:
        """Writes one sample, the picture as it is: its extension says the format that its content has."""
        reason = None
        if not SPLIT.fullmatch(split):
            reason = f"the split {split!r} isn't lowercase letters, digits and _"
        elif not KEY.fullmatch(key) or len(key.encode()) > 90:
            reason = "its key isn't 1 to 90 bytes of letters, digits, _, + and -"
        elif (split, key) in self._keys:
            reason = f"its key is in {split} already"
        elif not picture:
            reason = "it has no picture"
        elif not all(text.strip() for text in (caption, *more_captions)):
            reason = "its caption is empty"
        if reason:
            raise DataError(f"can't write the sample {key!r}: {reason}")
        facts = dict(attributes or {})
        if more_captions:
            facts[MORE_CAPTIONS] = [text.strip() for text in more_captions]
        try:
            if split not in self._open:
                self._open[split] = _Shard(self.folder, split, len(self._done.setdefault(split, [])))
            shard = self._open[split]
            shard.add(f"{key}.{extension_of(picture) or 'png'}", picture)
            shard.add(f"{key}.txt", caption.strip().encode())
            shard.add(f"{key}.json", json.dumps(facts, ensure_ascii=False, sort_keys=True).encode())
            shard.samples += 1
            self._keys.add((split, key))
            if shard.samples == self.samples_per_shard:
                self._finish(split)
        except OSError as error:
            raise self._unwritable(error) from error

    def has(self, split: str, key: str) -> bool:
        """True if a sample of this key was added."""
        return (split, key) in self._keys

    def skip(self, split: str, key: str, reason: str) -> None:
        """Notes in the manifest that a sample is left out, and why."""
        self.skipped.append((f"{split}/{key}", reason))

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(unwritable(self.folder, error))

    def _finish(self, split: str) -> None:
        self._done[split].append(self._open[split].finish())
        del self._open[split]

    def _write_manifest(self) -> None:
        shards = [shard for split in sorted(self._done) for shard in self._done[split]]
        samples = {split: sum(shard["samples"] for shard in self._done[split]) for split in sorted(self._done)}
        skipped = [{"key": key, "reason": reason} for key, reason in self.skipped]
        manifest = {"format": FORMAT, "version": VERSION, "source": self.source, "samples": samples}
        manifest |= {"skipped": skipped, "shards": shards}
        fsync(self.folder)  # the shards' names reach the disk before the manifest that vouches for them
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        fsync(self.folder)


def extension_of(picture: bytes) -> str | None:
    """What files of this picture's format are called, or None for a format that we don't know."""
    for magic, extension in MAGIC.items():
        if picture.startswith(magic):
            return extension
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    if picture[4:8] == b"ftyp":
        return "avif" if picture[8:12] in (b"avif", b"avis") else "heic"
    return None
