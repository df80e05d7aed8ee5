"""Tar shards with a manifest: written whole or not at all, read at random without extracting, every loss named.

A folder holds `{split}-000000.tar`, ... and `manifest.json`. A sample is the members `{key}.png` (or what format its
picture has), `{key}.txt` and `{key}.json` of one tar. The manifest lists each shard with its samples, bytes and sha256,
and is written last.
"""

import hashlib
import json
import mmap
import os
from array import array
from pathlib import Path
from typing import Self

from opencoca.data.manifest import KEY, MORE_CAPTIONS, read_manifest
from opencoca.data.sample import Sample
from opencoca.data.shard_writer import ShardWriter
from opencoca.data.storage import Files
from opencoca.data.tar import PICTURES, members
from opencoca.data.texts import Texts
from opencoca.errors import DataError

__all__ = ["Sample", "ShardReader", "ShardWriter", "read_manifest"]

REPAIR = "prepare or copy the data again"
PLACE = 5  # numbers per sample: its shard, then start and size of picture and attributes


class ShardReader:
    """The samples of a folder of shards, in the order of the manifest; safe to read from several threads and processes.

    Args: split takes only the shards of one split; verify=False skips the digests, not the sizes and counts.
    Attributes: keys and captions (the first of each), one per sample; skipped, (key, reason) of each sample that is
      unfit; ignored, how many members had an odd name or kind; manifest; splits, the names of all splits; fingerprint,
      of keys and shards' digests; shards, the runs of indices that lie in one shard.
    Raises: DataError if the manifest or a shard is missing, damaged, or has fewer or more samples than it should.
    """

    def __init__(self, folder: str | Path, split: str | None = None, verify: bool = True):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(folder)
        self.splits = tuple(dict.fromkeys(shard["split"] for shard in self.manifest["shards"]))
        shards = [shard for shard in self.manifest["shards"] if split in (None, shard["split"])]
        if not shards:
            raise DataError(f"{self.folder} has no split {split!r}; its splits are: {', '.join(self.splits) or 'none'}")
        self.keys = Texts()
        self.captions = Texts()
        self.skipped: list[tuple[str, str]] = []
        self.ignored = 0
        self.shards: list[range] = []
        self._places = array("q")
        self._paths = [self.folder / shard["file"] for shard in shards]
        self._files = Files()
        for index, facts in enumerate(shards):
            first = len(self.keys)
            self._index(index, facts, verify)
            self.shards.append(range(first, len(self.keys)))
        digest = hashlib.sha256("\n".join(shard["sha256"] for shard in shards).encode())
        digest.update(self.keys.digest().encode())
        self.fingerprint = digest.hexdigest()

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

    def _index_members(self, index: int, path: Path, data: mmap.mmap) -> int:
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for member in members(lambda offset, size: data[offset : offset + size], len(data), str(path), repair=REPAIR):
            key, _, extension = (member.name or "").partition(".")
            field = "picture" if extension in PICTURES else extension
            if not KEY.fullmatch(key) or field not in ("picture", "txt", "json"):
                self.ignored += 1
                continue
            if field in found.setdefault(key, {}):
                raise DataError(f"{path} has {member.name} twice; prepare the data again")
            found[key][field] = (member.start, member.size)
        for key, fields in found.items():
            start, size = fields.get("txt", (0, 0))
            try:
                caption, reason = data[start : start + size].decode().strip(), "its caption is empty"
            except UnicodeDecodeError:
                caption, reason = "", "its caption isn't UTF-8"
            if fields.get("picture", (0, 0))[1] == 0:
                self.skipped.append((key, "it has no picture"))
            elif not caption:
                self.skipped.append((key, reason))
            else:
                self._places.extend((index, *fields["picture"], *fields.get("json", (0, 0))))
                self.keys.append(key)
                self.captions.append(caption)
        return len(found)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        key = self.keys[i]
        shard, start, size, json_start, json_size = self._places[PLACE * i : PLACE * (i + 1)]
        path = str(self._paths[shard])
        attributes, more = {}, []
        if json_size:
            try:
                attributes = json.loads(self._files.read(path, json_start, json_size))
                more = attributes.pop(MORE_CAPTIONS, [])
            except (ValueError, AttributeError, RecursionError) as error:
                raise DataError(f"{key}.json in {path} isn't a JSON object; prepare the data again") from error
            if not isinstance(more, list) or not all(isinstance(text, str) and text.strip() for text in more):
                raise DataError(f"{key}.json in {path} has captions that aren't texts; prepare the data again")
        return Sample(key, self._files.read(path, start, size), self.captions[i], attributes, tuple(more))

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
