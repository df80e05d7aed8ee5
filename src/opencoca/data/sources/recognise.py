"""What a location holds: told from names, and from what json files begin with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from opencoca.data import storage
from opencoca.data.manifest import FORMAT, MANIFEST, UNFINISHED
from opencoca.data.sources import coco, folders
from opencoca.data.sources.captions import UnfitError, parsed_json
from opencoca.data.sources.columns import is_split_folder, split_in
from opencoca.data.sources.tar_index import INDEX, MAGIC
from opencoca.data.sources.tar_scan import is_tar, refuse_compressed
from opencoca.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
KNOWN = "prepared shards, tars, CSV, TSV, JSONL, Parquet, COCO's or Karpathy's json, pictures with .txt, class folders"

Kind = Literal["prepared", "tars", "index", "table", "parquet", "coco", "sidecars", "classes"]


class Part(NamedTuple):
    """Data of one form, and of one split if their names tell one."""

    kind: Kind
    split: str | None
    root: str
    files: tuple[str, ...] = ()  # locations; of tars and pictures the names below the root


def recognise(location: str) -> list[Part]:
    """The parts that a location holds, one for each split that names tell.

    Raises: DataError if there is nothing, or nothing that is known.
    """
    refuse_compressed(location)
    found = storage.expand(location)
    if len(found) > 1:
        return _files(found, location)
    what = storage.kind(found[0])
    if what is None:
        raise DataError(f"{location} does not exist; check the path")
    return _files(found, location) if what == "file" else _folder(found[0])


def _files(files: Sequence[str], location: str) -> list[Part]:
    """The parts of files that were named, or matched by a pattern."""
    endings = {storage.suffix(file) for file in files}
    if len(endings) > 1:
        raise DataError(f"{location} means files of several kinds ({', '.join(sorted(endings))}); name one kind")
    ending = endings.pop()
    if is_tar(files[0]):
        root = _common(files)
        names = [file[len(root) :].lstrip("/\\").replace("\\", "/") for file in files]
        return [Part("tars", split, root, tuple(group)) for split, group in _by_split(names)]
    if ending == ".json":
        is_coco = [coco.is_coco(coco.load(file)) for file in files]
        kind: Kind = "coco" if all(is_coco) else "table"
        if kind == "coco":
            return [Part("coco", split_in(storage.stem(file)), storage.parent(file), (file,)) for file in files]
        return [Part(kind, split, storage.parent(group[0]), tuple(group)) for split, group in _by_split(files)]
    if ending in TABLES:
        kind = "parquet" if ending == ".parquet" else "table"
        return [Part(kind, split, storage.parent(group[0]), tuple(group)) for split, group in _by_split(files)]
    if _begins(files[0], MAGIC):
        return [Part("index", None, storage.parent(files[0]), tuple(files[:1]))]
    raise DataError(f"{location} is none of what is known ({KNOWN}); name one of these")


def _folder(folder: str) -> list[Part]:
    below, files = storage.listing(folder)
    if MANIFEST in files and _is_ours(storage.joined(folder, MANIFEST)):
        if storage.is_url(folder):
            raise DataError(f"{folder} holds prepared shards, which are read on this machine only; copy them")
        return [Part("prepared", None, folder)]
    if not storage.is_url(folder) and storage.kind(storage.joined(folder, UNFINISHED)):
        raise DataError(f"{folder} holds shards that were never finished; prepare or import the data again")
    for choose in (_tars, _tables, _coco):
        if parts := choose(folder, files, below):
            return parts
    if below and all(map(is_split_folder, below)):
        parts = [(split_in(name), part) for name in below for part in _folder(storage.joined(folder, name))]
        return [part._replace(split=split) for split, part in parts]
    if below == ["data"]:  # as datasets on the hub have it
        return _folder(storage.joined(folder, "data"))
    pictures, texts = folders.picture_files(folder)
    if not pictures:
        raise DataError(f"{folder} holds nothing that is known ({KNOWN}); name another folder or file")
    beside = any(folders.sidecar_of(picture) in texts for picture in pictures)
    return [Part("sidecars" if beside else "classes", None, folder, tuple(pictures))]


def _tars(folder: str, files: Sequence[str], _: Sequence[str]) -> list[Part]:
    tars = [name for name in files if is_tar(name)]
    if not tars and INDEX in files:
        return [Part("index", None, folder, (storage.joined(folder, INDEX),))]
    return [Part("tars", split, folder, tuple(group)) for split, group in _by_split(tars)]


def _tables(folder: str, files: Sequence[str], _: Sequence[str]) -> list[Part]:
    tables = [name for name in files if storage.suffix(name) in TABLES]
    tables = [name for name in tables if storage.stem(name).lower() == "metadata"] or tables
    endings = {storage.suffix(name) for name in tables}
    groups = _by_split(tables)
    unclear = endings != {".parquet"} and any(len(group) > 1 for _, group in groups)
    if len(endings) > 1 or unclear:
        raise DataError(f"{folder} holds several tables ({', '.join(tables[:6])}); name the one that you mean")
    kind: Kind = "parquet" if endings == {".parquet"} else "table"
    return [Part(kind, split, folder, tuple(storage.joined(folder, n) for n in group)) for split, group in groups]


def _coco(folder: str, files: Sequence[str], below: Sequence[str]) -> list[Part]:
    places = [(folder, files)]
    if "annotations" in below:
        place = storage.joined(folder, "annotations")
        places.append((place, storage.listing(place)[1]))
    for place, names in places:
        named = [name for name in names if re.fullmatch(r"(captions_|dataset_).*\.json", name)]
        if named:
            return [Part("coco", split_in(storage.stem(n)), place, (storage.joined(place, n),)) for n in named]
    return []


def _by_split(names: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """Names by the split that each tells; if not all of them tell one, they are taken together."""
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(split_in(storage.stem(name)), []).append(name)
    if None in groups and len(groups) > 1:
        return [(None, list(names))]
    return list(groups.items())


def _common(files: Sequence[str]) -> str:
    """The folder below which all files lie."""
    parts = [PurePosixPath(storage.parent(file).replace("\\", "/")).parts for file in files]
    shared = 0
    while all(len(one) > shared and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    depth = len(parts[0]) - shared
    root = storage.parent(files[0])
    for _ in range(depth):
        root = storage.parent(root)
    return root


def _is_ours(location: str) -> bool:
    try:
        content = parsed_json(storage.read_file(location))
    except UnfitError:
        return True  # which will say how it is damaged
    return isinstance(content, dict) and content.get("format") == FORMAT


def _begins(location: str, magic: bytes) -> bool:
    with storage.open_stream(location) as file:
        return file.read(len(magic)) == magic
