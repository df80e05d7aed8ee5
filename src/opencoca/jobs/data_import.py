"""From data in any form to prepared shards: checked, split by picture, the same every time."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from opencoca.data.manifest import KEY, MANIFEST, SPLIT
from opencoca.data.pixels import open_picture
from opencoca.data.sample import Sample
from opencoca.data.shard_writer import extension_of
from opencoca.data.shards import ShardWriter
from opencoca.data.sources import open_source, splits_of
from opencoca.data.sources.pairs import picture_digest
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError

Skip = Callable[[str, str], object]


def import_data(
    locations: Sequence[str],
    out: Path,
    *,
    val_share: float = 0.05,
    samples_per_shard: int = 1000,
    pictures: str | None = None,
    overwrite: bool = False,
    decode: bool = False,
    http: bool = False,
    on_sample: Callable[[int, int], object] = lambda done, total: None,
    on_skip: Skip = lambda key, reason: None,
) -> dict[str, Any]:
    """Writes the samples of `locations` as shards into `out`, and gives what was written and what was left out.

    Splits that the data tell are kept. Other data are split by a hash of the picture's bytes, so that a picture with
    all its captions lies on one side, whatever else is imported with it; about `val_share` of them become val. decode
    opens each picture as training would, and leaves out what doesn't open; else only its first bytes are looked at.

    Raises: DataError if there is nothing to read, if `out` isn't empty (without overwrite), or if it can't be written.
    """
    if not 0 <= val_share < 1:
        raise DataError(f"the share for validation is {val_share}; give one from 0 to below 1")
    _check_out(out, locations, overwrite)
    parts = [part for place in locations for part in _parts(place, pictures, http)]
    total, done = sum(len(source) for _, source in parts), 0
    written: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    owners: dict[str, str] = {}
    leaked = 0
    with ShardWriter(
        out, samples_per_shard, source={"name": "import", "locations": list(map(str, locations))}
    ) as writer:

        def skip(split: str | None, key: str, reason: str) -> None:
            skipped[split or "train"] += 1
            writer.skip(split or "train", key, reason)
            on_skip(key, reason)

        for given, source in parts:
            for key, reason in source.skipped:
                skip(given, key, reason)
            for i in range(len(source)):
                done += 1
                try:
                    sample = source[i]
                    if extension_of(sample.picture) is None:
                        raise DataError(f"the picture of {sample.key} is of no known format; convert or replace it")
                    if decode:
                        open_picture(sample.picture, name=f"the picture of {sample.key}")
                except DataError as error:
                    skip(given, source.keys[i], str(error))
                    continue
                digest = hashlib.sha256(sample.picture).digest()
                split = given or ("val" if int.from_bytes(digest[:8], "little") < val_share * 2**64 else "train")
                leaked += given is not None and owners.setdefault(picture_digest(sample.picture), split) != split
                _add(writer, split, sample)
                written[split] += 1
                on_sample(done, total)
        if not written:
            raise DataError(
                f"none of {sum(skipped.values())} samples of {locations[0]} could be read; nothing is written"
            )
    return {
        "folder": str(out),
        "samples": dict(sorted(written.items())),
        "shards": len(list(out.glob("*.tar"))),
        "bytes": sum(path.stat().st_size for path in out.glob("*.tar")),
        "skipped": sum(skipped.values()),
        "pictures_in_several_splits": leaked,
    }


def _check_out(out: Path, locations: Sequence[str], overwrite: bool) -> None:
    inside = [place for place in locations if Path(place).exists() and out.resolve() in _with_parents(Path(place))]
    if inside:
        raise DataError(f"{out} holds what is to be imported ({inside[0]}); name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file; name a folder")
    there = [path.name for path in out.iterdir()]
    if there and not overwrite:
        raise DataError(f"{out} isn't empty; name another folder, or replace its shards with --overwrite")
    if there and MANIFEST not in there and any(not name.startswith(".") for name in there):
        raise DataError(f"{out} holds other files than prepared shards ({sorted(there)[0]}); name another folder")


def _with_parents(path: Path) -> list[Path]:
    return [path.resolve(), *path.resolve().parents]


def _parts(location: str, pictures: str | None, http: bool) -> Iterator[tuple[str | None, Source]]:
    """(split or None, source) of a location."""
    found = open_source(location, pictures=pictures, on_damage="count", http=http)
    splits = list(splits_of(found))
    if "train" in splits and "restval" in splits:
        splits.remove("restval")  # train takes it along
    if not splits:
        yield None, found
    for split in splits:
        name = split if SPLIT.fullmatch(split) else re.sub(r"[^a-z0-9_]+", "_", f"split_{split.lower()}")[:40]
        yield name, open_source(location, split, pictures=pictures, on_damage="count", http=http)


def _add(writer: ShardWriter, split: str, sample: Sample) -> None:
    facts = {"picture": picture_digest(sample.picture), **sample.attributes, "key": sample.key}
    writer.add(split, shard_key(writer, split, sample.key), sample.picture, sample.caption, facts, sample.more_captions)


def shard_key(writer: ShardWriter, split: str, key: str) -> str:
    """A key that a shard takes, near to the one that the data have."""
    plain = re.sub(r"[^\w+-]+", "-", str(PurePosixPath(key).with_suffix("")) if "." in key else key).strip("-") or "x"
    plain = plain.encode()[-70:].decode(errors="ignore").lstrip("-") or "x"
    candidate, number = plain, 1
    while not KEY.fullmatch(candidate) or writer.has(split, candidate):
        number += 1
        candidate = f"{plain if KEY.fullmatch(plain) else 'x'}-{number}"
    return candidate
