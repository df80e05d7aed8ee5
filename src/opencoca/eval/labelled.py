"""Labelled pictures on disk: folders per class as ImageNet has them, CLIP_benchmark's folders of tars, a CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opencoca.data import storage
from opencoca.data.sample import Sample
from opencoca.data.sources.captions import UnfitError
from opencoca.data.sources.columns import LABELS, PATHS, first, plain
from opencoca.data.sources.folders import SUFFIXES
from opencoca.data.sources.labels import readable
from opencoca.data.sources.pairs import safe_path
from opencoca.data.sources.tables import rows
from opencoca.data.sources.tar_scan import reading
from opencoca.data.tar import PICTURES, members
from opencoca.errors import DataError
from opencoca.eval.results import read_json
from opencoca.eval.statistics import digest

NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
MAPPINGS = ("classnames.json", "LOC_synset_mapping.txt")
PLAIN = ("a photo of a {}.",)
SPLITS = ("test", "val", "validation")
Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Labelled:
    """Pictures with one class each.

    ids: names of the samples. truths: their classes, by index. names: each class's names in words, one or more.
    template_source: where the templates come from. skipped: (row, reason) of what can't be used. stamp: tells contents
    apart on this machine, by sizes and dates.
    """

    ids: list[str]
    truths: list[int]
    names: Names
    templates: tuple[str, ...]
    template_source: str
    read: Callable[[int], Sample]
    skipped: list[tuple[str, str]]
    stamp: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Tells the split apart: which pictures, their classes, and the classes' names."""
        return digest([json.dumps(self.names), *(f"{i} {t}" for i, t in zip(self.ids, self.truths, strict=True))])

    def spread(self, limit: int | None) -> Labelled:
        """At most `limit` samples, spread evenly over the data, with all classes."""
        if limit is None or limit >= len(self):
            return self
        kept = [i * len(self) // limit for i in range(limit)]
        return Labelled(
            [self.ids[i] for i in kept],
            [self.truths[i] for i in kept],
            self.names,
            self.templates,
            self.template_source,
            lambda i: self.read(kept[i]),
            self.skipped,
            digest([self.stamp, *kept]),
        )


def open_labelled(path: Path, like: Path | None = None) -> Labelled:
    """The labelled pictures at a path, with the class names and templates that lie in it or above it.

    `classnames.txt` has a name per line, in the order of the classes: folders in the order of their names (of their
    numbers, where all are numbers), or the numbers in a tar's .cls. `classnames.json` maps folders to a name or
    several, `LOC_synset_mapping.txt` is ImageNet's own, where commas part a class's names; both may know more classes
    than there are, and only those that are there count as labels. Without any, folders' names are the labels.
    `zeroshot_classification_templates.txt` has a template per line, with {c} or {} for the name.

    Args: like is a folder of ImageNet, whose names and templates serve where the path has none.
    Raises: DataError if there is nothing, or the number of names isn't that of the classes.
    """
    if path.is_file():
        return _table(path)
    if not path.is_dir():
        raise DataError(f"{path} doesn't exist; check the path")
    place = next((path / split for split in SPLITS if (path / split).is_dir()), path)
    tars = sorted(place.glob("*.tar"))
    templates = _templates(path)
    if templates[0] == PLAIN and like is not None:
        templates = _templates(like)
    if tars:
        return _tars(path, tars, templates)
    return _folders(path, place, templates, like)


def _mapping(path: Path) -> dict[str, tuple[str, ...]] | None:
    """The names of classes by folder, from the files in a folder or above it that tell them; None without any."""
    for folder in (path, path.parent):
        for name in MAPPINGS:
            file = folder / name
            if file.is_file():
                return _json_mapping(file) if file.suffix == ".json" else _synsets(file)
    return None


def _json_mapping(file: Path) -> dict[str, tuple[str, ...]]:
    content = read_json(file)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{file} doesn't map folders to names; write it as {{folder: name or [names]}}")
    names = {key: (value,) if isinstance(value, str) else value for key, value in content.items()}
    for key, value in names.items():
        if not isinstance(value, list | tuple) or not value or not all(isinstance(n, str) and n.strip() for n in value):
            raise DataError(f"{file}: {key!r} has the names {value!r}; give it a name, or a list of names")
    return {key: tuple(value) for key, value in names.items()}


def _synsets(file: Path) -> dict[str, tuple[str, ...]]:
    lines = [line.split(None, 1) for line in _lines(file)]
    return {line[0]: tuple(name.strip() for name in line[1].split(",")) for line in lines if len(line) == 2}


def _names_in_order(path: Path) -> tuple[Path, list[str]] | None:
    for folder in (path, path.parent):
        if (folder / NAMES).is_file():
            return folder / NAMES, _lines(folder / NAMES)
    return None


def _templates(path: Path) -> tuple[tuple[str, ...], str]:
    for folder in (path, path.parent):
        file = folder / TEMPLATES
        if file.is_file():
            templates = tuple(line.replace("{c}", "{}") for line in _lines(file))
            bad = [line for line in templates if "{}" not in line]
            if bad or not templates:
                raise DataError(f"{file}: {bad[:1] or 'no line'} has no {{c}} for the class; give one on each line")
            return templates, TEMPLATES
    return PLAIN, "the plain one"


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} can't be read ({error}); write it as UTF-8 text") from error


def _names_of(like: Path) -> dict[str, tuple[str, ...]] | None:
    """The names of a folder's classes by folder, from a mapping or from names in the folders' order."""
    listed, folders = _names_in_order(like), _class_folders(like)
    if _mapping(like) is None and listed is not None and len(listed[1]) == len(folders):
        return {folder: (name,) for folder, name in zip(folders, listed[1], strict=True)}
    return _mapping(like)


def _class_folders(place: Path) -> list[str]:
    folders = sorted(one.name for one in place.iterdir() if one.is_dir() and not one.name.startswith("."))
    return sorted(folders, key=int) if all(name.isdigit() for name in folders) else folders


def _folders(path: Path, place: Path, templates: tuple[tuple[str, ...], str], like: Path | None) -> Labelled:
    folders = _class_folders(place)
    if not folders:
        raise DataError(f"{place} has no folders of classes and no tars; name a folder that has")
    skipped: list[tuple[str, str]] = []
    mapping, listed = _mapping(path), _names_in_order(path)
    if mapping is None and listed is None and like is not None:
        if all(name.isdigit() for name in folders):  # as ImageNetV2 has them
            listed = _names_in_order(like)
        else:
            mapping = _names_of(like)
    if listed is not None:
        file, lines = listed
        numbers = [int(name) for name in folders] if all(name.isdigit() for name in folders) else []
        if numbers and max(numbers) < len(lines):  # some classes may have no folder
            names = [(line,) for line in lines]
            class_of = dict(zip(folders, numbers, strict=True))
        elif len(lines) != len(folders):
            raise DataError(
                f"{file} names {len(lines)} classes, {place} has {len(folders)} folders; give the names of these "
                f"classes, or {MAPPINGS[0]} that maps folders to names"
            )
        else:
            names, class_of = [(line,) for line in lines], {name: i for i, name in enumerate(folders)}
    elif mapping is not None:
        there = [name for name in folders if name in mapping]
        skipped += [(name, "no name is known for this folder") for name in folders if name not in mapping]
        names, class_of = [tuple(mapping[name]) for name in there], {name: i for i, name in enumerate(there)}
    else:
        names, class_of = [(readable(name),) for name in folders], {name: i for i, name in enumerate(folders)}
    ids, truths, stats = [], [], []
    for folder in folders:
        if folder not in class_of:
            continue
        files = sorted(p for p in (place / folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            skipped.append((folder, "this class has no pictures"))
        for file in files:
            ids.append(file.relative_to(place).as_posix())
            truths.append(class_of[folder])
            facts = file.stat()
            stats.append(f"{ids[-1]} {facts.st_size} {facts.st_mtime_ns}")
    if not ids:
        reason = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{place} has no pictures of known classes{reason}; check its names")

    def read(i: int) -> Sample:
        return Sample(ids[i], storage.read_file(str(place / ids[i])), "", {})

    return Labelled(ids, truths, tuple(names), *templates, read, skipped, digest([str(place.resolve()), *stats]))


def _tars(path: Path, tars: Sequence[Path], templates: tuple[tuple[str, ...], str]) -> Labelled:
    """CLIP_benchmark's: KEY.jpg beside KEY.cls, which holds the number of the class."""
    listed = _names_in_order(path)
    if listed is None:
        raise DataError(f"{path} has tars but no {NAMES}; write the classes' names there, one a line")
    file, lines = listed
    ids, truths, places, skipped, stats = [], [], [], [], []
    for tar in tars:
        found: dict[str, dict[str, tuple[int, int]]] = {}
        stats.append(f"{tar.name} {tar.stat().st_size} {tar.stat().st_mtime_ns}")
        with reading(str(tar)) as (read_range, length):
            for member in members(read_range, length, str(tar)):
                if member.name is None:
                    continue
                key, _, ending = member.name.partition(".")
                kind = "picture" if ending.lower() in PICTURES else ending.lower()
                found.setdefault(key, {})[kind] = (member.start, member.size)
            for key, fields in found.items():
                row = f"{tar.stem}/{key}"
                if "picture" not in fields or "cls" not in fields:
                    skipped.append((row, "it has no picture" if "cls" in fields else "it has no .cls with its class"))
                    continue
                text = read_range(fields["cls"][0], min(fields["cls"][1], 32)).strip()
                if not re.fullmatch(rb"\d{1,9}", text) or int(text) >= len(lines):
                    shown = text[:20].decode("utf-8", "replace")
                    skipped.append((row, f"its class is none of 0 to {len(lines) - 1} ({shown!r}; {file.name})"))
                    continue
                ids.append(row)
                truths.append(int(text))
                places.append((str(tar), *fields["picture"]))
    if not ids:
        reason = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{path}: its tars hold no labelled picture{reason}; check them")
    files = storage.Files()

    def read(i: int) -> Sample:
        return Sample(ids[i], files.read(*places[i]), "", {})

    stamp = digest([str(path.resolve()), *stats])
    return Labelled(ids, truths, tuple((line,) for line in lines), *templates, read, skipped, stamp)


def _table(path: Path) -> Labelled:
    """A CSV, TSV, JSONL or JSON table with a path and a label in each row; the labels that occur are the classes."""
    ids, labels, skipped, stats, seen = [], [], [], [], set()
    for name, row in rows(str(path)):
        try:
            picture, label = _labelled_row(row)
        except UnfitError as error:
            skipped.append((name, str(error)))
            continue
        if picture in seen:
            skipped.append((name, f"the picture {picture[:80]} came before"))
            continue
        file = path.parent / picture
        if not file.is_file():
            skipped.append((name, f"there is no file {picture[:80]}"))
            continue
        seen.add(picture)
        ids.append(picture)
        labels.append(label)
        stats.append(f"{picture} {label} {file.stat().st_size} {file.stat().st_mtime_ns}")
    if not ids:
        reason = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{path} has no labelled picture{reason}; give columns path and label")
    classes = sorted(set(labels))
    number = {label: i for i, label in enumerate(classes)}
    truths = [number[label] for label in labels]

    def read(i: int) -> Sample:
        return Sample(ids[i], storage.read_file(str(path.parent / ids[i])), "", {})

    stamp = digest([str(path.resolve()), *stats])
    return Labelled(ids, truths, tuple((name,) for name in classes), *_templates(path.parent), read, skipped, stamp)


def _labelled_row(row: Any) -> tuple[str, str]:
    if isinstance(row, UnfitError):
        raise row
    by_name = {plain(name): name for name in row if isinstance(name, str)}
    path, label = first(by_name, PATHS), first(by_name, LABELS)
    if path is None or label is None:
        raise UnfitError(f"it has no path and label, but {', '.join(by_name)[:80]}")
    value = row[label]
    if not isinstance(value, str | int) or not str(value).strip():
        raise UnfitError("it has no label")
    return safe_path(row[path]), str(value).strip()
