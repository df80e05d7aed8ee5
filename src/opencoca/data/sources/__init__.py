"""Pictures with captions in every form that people have them: `open_source` tells which, and reads it by index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from opencoca.data import storage
from opencoca.data.manifest import read_manifest
from opencoca.data.shards import ShardReader
from opencoca.data.sources import tar_index
from opencoca.data.sources.coco import open_coco
from opencoca.data.sources.columns import split_name
from opencoca.data.sources.folders import open_classes, open_sidecars
from opencoca.data.sources.joined import JoinedSource
from opencoca.data.sources.parquet import open_parquet
from opencoca.data.sources.protocol import Source
from opencoca.data.sources.recognise import Part, recognise
from opencoca.data.sources.tables import open_tables
from opencoca.data.sources.tars import TarSource
from opencoca.errors import DataError

__all__ = ["Source", "captions_of", "open_source", "splits_of"]

VERIFIED = 4 << 30  # bytes of prepared shards whose digests are checked when they are opened
OnDamage = Literal["stop", "count"]


def open_source(
    location: str | os.PathLike[str],
    split: str | None = None,
    *,
    pictures: str | None = None,
    on_damage: OnDamage = "stop",
    http: bool = False,
    verify: bool | None = None,
) -> Any:
    """The pictures with captions at a location, as a `Source`.

    A location is a folder, a file, a pattern ({000..012}.tar, *.parquet) or an fsspec URL; it may hold prepared shards,
    tars of webdataset or img2dataset, a CSV, TSV, JSONL or Parquet table, COCO's or Karpathy's json, pictures with .txt
    beside them, or folders whose names are labels.

    Args: split takes one of those that columns, file names or folders tell (validation, valid and dev are val); data
      that tell none are all "train". pictures is the folder that the paths of a table or json start from.
      on_damage="count" notes a damaged tar or table in `skipped` and goes on. http allows http(s) URLs. verify says
      whether digests of prepared shards are checked; by default up to 4 GiB of them.
    Raises: DataError, with the repair, if there is nothing to read there.
    """
    place = storage.checked(location, http)
    if pictures is not None:
        pictures = storage.checked(pictures, http)
    if split is not None and not (Path(place) / "manifest.json").is_file():
        split = split_name(split)
    parts = recognise(place)
    named = [part.split for part in parts if part.split is not None]
    if named and split is not None:
        chosen = [part for part in parts if part.split == split]
        if not chosen and not any(part.kind == "coco" for part in parts):
            there = ", ".join(dict.fromkeys(named))
            raise DataError(f"{place} has no split {split!r}; its splits are: {there}")
        parts = chosen or parts
    sources = [_open(part, split, pictures, on_damage, verify) for part in parts]
    if len(sources) == 1:
        return sources[0]
    return JoinedSource(sources, [part.split or str(number) for number, part in enumerate(parts)])


def _open(part: Part, split: str | None, pictures: str | None, on_damage: OnDamage, verify: bool | None) -> Any:
    files, inner = part.files, None if part.split is not None else split
    if part.kind == "prepared":
        if verify is None:
            facts = [shard for shard in read_manifest(part.root)["shards"] if split in (None, shard["split"])]
            verify = sum(shard["bytes"] for shard in facts) <= VERIFIED
        return ShardReader(part.root, split, verify)
    if part.kind == "coco":
        source = open_coco(files[0], split if part.split != split else None, pictures)
    elif part.kind == "parquet":
        source = open_parquet(files, inner, pictures)
    elif part.kind == "table":
        source = open_tables(files, inner, pictures, on_damage)
    elif part.kind == "sidecars":
        source = open_sidecars(part.root, list(files))
    elif part.kind == "classes":
        source = open_classes(part.root, list(files))
    else:
        source = _open_tars(part, on_damage)
    if inner not in (None, "train") and not source.splits:
        raise DataError(f"{part.root} tells no splits, so all of it is 'train'; make {inner!r} by `coca data import`")
    return source


def _open_tars(part: Part, on_damage: OnDamage) -> TarSource:
    if part.kind == "index":
        return TarSource(tar_index.load(part.files[0]), on_damage)
    known = storage.joined(part.root, tar_index.INDEX)
    if storage.kind(known) == "file":
        return TarSource(tar_index.load(known), on_damage, part.files)
    return TarSource(tar_index.build(part.root, part.files, on_damage))


def splits_of(source: Any) -> tuple[str, ...]:
    """The splits that a source's data tell, opened with split=None; () if they tell none."""
    return tuple(getattr(source, "splits", ()))


def captions_of(source: Source) -> Iterator[str]:
    """The first caption of each sample, without reading pictures where that can be; unfit ones are left out."""
    captions = getattr(source, "captions", None)
    for i in range(len(source)):
        try:
            yield source[i].caption if captions is None else captions[i]
        except DataError:  # it is counted when the sample is drawn
            continue
