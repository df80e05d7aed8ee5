"""A data set's folder: fetched, made, and known to be whole the next time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.data.get.packages import Say, fetch, unpacked
from opencoca.data.get.sets import DataSet, Files, Made, named
from opencoca.data.manifest import MANIFEST, UNFINISHED, read_manifest
from opencoca.errors import DataError, unwritable
from opencoca.files import file_digest, write_atomically

RECORD, FORMAT = "coca-data.json", "opencoca-data"
REPAIR = "remove it, or name another folder with --out"


class Got(NamedTuple):
    """A data set in its folder; `made` is None where it was there already, whole."""

    dataset: DataSet
    folder: Path
    counts: Mapping[str, int]
    made: Made | None


def get(name: str, folder: Path, packages: Path, say: Say | None = None) -> Got:
    """Brings a data set into `folder`, with the data sets that it is made from beside it; packages go to `packages`.

    What is whole is left as it is; a run that was interrupted goes on with what was finished. A folder with anything
    else in it is not touched.

    Raises: DataError for an unknown name, a folder that holds other files or damaged ones, and as `fetch`.
    """
    dataset = named(name)
    record = _record(folder, dataset)
    if record is not None:
        return Got(dataset, folder, record["counts"], None)
    sets = {other: get(other, folder.parent / other, packages, say).folder for other in dataset.needs}
    files = fetch(packages, dataset.packages, say)
    packed = {package: facts for package, facts in dataset.packages.items() if package in dataset.wanted}
    folders = unpacked(packages, packed, dataset.wanted)
    if say:
        say(f"preparing {folder}")
    made = _made(dataset, folder, Files(files, folders, sets))
    return Got(dataset, folder, made.counts, made)


def _made(dataset: DataSet, folder: Path, files: Files) -> Made:
    """Makes the folder under another name first, but for our own shards that are there, which look after themselves."""
    beside = folder.with_name(f".partial-{folder.name}")
    place = folder if _holds_shards(folder) else beside
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        made = dataset.make(place, files)
        record = {
            "format": FORMAT,
            "name": dataset.name,
            "licence": dataset.licence,
            "credit": dataset.credit,
            "packages": {package: dict(facts) for package, facts in dataset.packages.items()},
            "counts": dict(made.counts),
            "skipped": [list(one) for one in made.skipped],
            "digest": digest(place),
        }
        write_atomically(place / RECORD, json.dumps(record, indent=2) + "\n")
        if place is beside:
            shutil.rmtree(folder, ignore_errors=True)  # ours, or empty: `_record` has looked
            beside.rename(folder)
    except OSError as error:
        raise DataError(unwritable(folder, error)) from error
    return made


def digest(folder: Path) -> str:
    """sha256 over the names and digests of a folder's files, but for the record and what is hidden."""
    total = hashlib.sha256()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        if name != RECORD and not name.startswith("."):
            total.update(f"{file_digest(folder / name)}  {name}\n".encode())
    return total.hexdigest()


def _record(folder: Path, dataset: DataSet) -> dict[str, Any] | None:
    """What the folder holds, or None where it is to be made.

    Raises: DataError where it holds what we didn't put there, another data set, or a damaged one.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / RECORD).read_bytes())
        known = record["format"] == FORMAT and {"name", "counts", "packages", "skipped", "digest"} <= set(record)
    except (OSError, ValueError, LookupError, TypeError):
        record, known = {}, False
    if not known:
        if _holds_shards(folder) and _source(folder) == dataset.name:
            return None
        raise DataError(f"{folder} holds files that `coca data get {dataset.name}` didn't write; {REPAIR}")
    if record["name"] != dataset.name:
        raise DataError(f"{folder} holds the data set {record['name']!r}, not {dataset.name}; {REPAIR}")
    wanted = {package: facts["sha256"] for package, facts in dataset.packages.items()}
    if {package: facts.get("sha256") for package, facts in record["packages"].items()} != wanted:
        raise DataError(f"{folder} was made from other packages than this version names; {REPAIR}")
    if record["digest"] != digest(folder):
        raise DataError(f"{folder} isn't as it was written: a file is missing, more or changed; {REPAIR}")
    return None if record["skipped"] else record  # what had to be left out is tried again


def _holds_shards(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / UNFINISHED).is_file()


def _source(folder: Path) -> str:
    """The name of what another command wrote shards of; "" where it can't be known."""
    try:
        return str(read_manifest(folder)["source"].get("name", ""))
    except DataError:
        return ""
