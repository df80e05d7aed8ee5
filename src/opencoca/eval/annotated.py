"""Pictures that are annotated with groups: a table of one's own, or OpenMoji's skin tones and genders."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opencoca.data import storage
from opencoca.data.openmoji import load_table
from opencoca.data.sample import Sample
from opencoca.data.sources.captions import UnfitError
from opencoca.data.sources.columns import CAPTIONS, KEYS, LABELS, PATHS, SPLITS, first, plain
from opencoca.data.sources.pairs import safe_path
from opencoca.data.sources.tables import rows
from opencoca.errors import DataError
from opencoca.eval.captioned import Captioned
from opencoca.eval.labelled import PLAIN, Labelled
from opencoca.eval.openmoji import TONES
from opencoca.eval.registry import Options, Place
from opencoca.eval.robustness.pictures import open_pictures
from opencoca.eval.statistics import digest

MOST_GROUPS = 50  # a column with more different values is no grouping
COMBINATIONS = "test_combinations"


@dataclass(frozen=True)
class Annotated:
    """Pictures with one class each, and for each column of groups the group of every picture, "" where it has none.

    references: a caption of each picture, where there are any. words: for a column, what a caption calls each group.
    left_out: columns that are no groups, and why. what: the pictures, in words.
    """

    pictures: Labelled
    columns: dict[str, list[str]]
    references: list[str] | None
    what: str
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def spread(self, limit: int | None) -> Annotated:
        """At most `limit` pictures, spread evenly."""
        count = len(self.pictures)
        if limit is None or limit >= count:
            return self
        kept = [i * count // limit for i in range(limit)]
        columns = {name: [groups[i] for i in kept] for name, groups in self.columns.items()}
        references = None if self.references is None else [self.references[i] for i in kept]
        return Annotated(self.pictures.spread(limit), columns, references, self.what, self.words, self.left_out)


def open_groups(place: Place, others: Mapping[str, Place]) -> Annotated:
    """The pictures of a table (CSV, TSV, JSONL) whose columns are path or key, label or caption, and groups.

    With `path` the pictures lie beside the table, and a label or a caption must be there. With `key` alone the rows
    annotate the pictures of `--data classes=`, by their names. Every other column but a split is one of groups; an
    empty cell means that the picture is in no group of it.

    Raises: DataError for a table without these columns or without a row that can be used.
    """
    listed, skipped = _rows_of(place)
    by_name = {plain(name): name for name in listed[0][1] if isinstance(name, str)}
    path, key = first(by_name, PATHS), first(by_name, KEYS)
    label, caption = first(by_name, LABELS), first(by_name, CAPTIONS)
    taken = {name for name in (path, key, label, caption, first(by_name, SPLITS)) if name}
    groups = [name for name in by_name.values() if name not in taken]
    there = ", ".join(by_name.values())[:160]
    if path is None and key is None:
        raise DataError(f"{place.path} has no column of pictures (its columns: {there}); call it path, or key")
    if not groups:
        raise DataError(f"{place.path} has no column of groups (its columns: {there}); add one, such as skin_tone")
    if path is None:
        return _joined(place, str(key), groups, listed, skipped, others)
    truth_column = label or caption
    if truth_column is None:
        raise DataError(f"{place.path} has no truths (its columns: {there}); add label, or caption")
    ids, classes, captions, stats = [], [], [], []
    values: dict[str, list[str]] = {name: [] for name in groups}
    for name, row in listed:
        try:
            picture, truth = safe_path(row.get(path)), _text(row.get(truth_column))
        except UnfitError as error:
            skipped.append((name, str(error)))
            continue
        file = place.path.parent / picture
        reason = (
            f"there is no file {picture[:80]}" if not file.is_file()
            else f"the picture {picture[:80]} came before" if picture in ids
            else "" if truth else f"its {truth_column} is empty"
        )  # fmt: skip
        if reason:
            skipped.append((name, reason))
            continue
        ids.append(picture)
        classes.append(truth)
        captions.append(_text(row.get(caption)) if caption else "")
        for group in groups:
            values[group].append(_text(row.get(group)))
        stats.append(f"{picture} {file.stat().st_size} {file.stat().st_mtime_ns}")
    if not ids:
        raise DataError(f"{place.path}: no row can be used; the first: {skipped[0][0]}: {skipped[0][1]}")
    known = sorted(set(classes))
    number = {one: i for i, one in enumerate(known)}

    def read(i: int) -> Sample:
        return Sample(ids[i], storage.read_file(str(place.path.parent / ids[i])), "", {})

    templates = (PLAIN, "the plain one") if label else (("{}",), "captions")
    stamp = digest([str(place.path.resolve()), *stats])
    truths = [number[one] for one in classes]
    pictures = Labelled(ids, truths, tuple((one,) for one in known), *templates, read, skipped, stamp)
    kept, left_out = _groupings(values, str(place.path))
    references = captions if caption and all(captions) else None
    return Annotated(pictures, kept, references, f"pictures of {place.path.name}", {}, left_out)


def _joined(
    place: Place,
    key: str,
    groups: Sequence[str],
    listed: Sequence[tuple[str, Mapping[str, Any]]],
    skipped: list[tuple[str, str]],
    others: Mapping[str, Place],
) -> Annotated:
    if "classes" not in others:
        raise DataError(f"{place.path} names pictures by {key} and has no path; add path, or --data classes=PATH")
    pictures = open_pictures(others["classes"])
    place_of = {one: i for i, one in enumerate(pictures.ids)}
    kept: list[int] = []
    values: dict[str, list[str]] = {name: [] for name in groups}
    for name, row in listed:
        at = place_of.get(_text(row.get(key)))
        if at is None or at in kept:
            shown = _text(row.get(key))[:80]
            skipped.append((name, f"there is no picture {shown!r}" if at is None else f"{shown!r} came before"))
            continue
        kept.append(at)
        for group in groups:
            values[group].append(_text(row.get(group)))
    if not kept:
        raise DataError(f"{place.path}: no {key} is one of {others['classes'].path}, such as {pictures.ids[0]!r}")
    columns, left_out = _groupings(values, str(place.path))
    some = Labelled(
        [pictures.ids[i] for i in kept],
        [pictures.truths[i] for i in kept],
        pictures.names,
        pictures.templates,
        pictures.template_source,
        lambda i: pictures.read(kept[i]),
        [*pictures.skipped, *skipped],
        digest([pictures.stamp, *kept]),
    )
    what = f"pictures of {others['classes'].path.name}, annotated by {place.path.name}"
    return Annotated(some, columns, None, what, {}, left_out)


def open_openmoji(place: Place) -> Annotated:
    """OpenMoji's drawings of people and hands: by skin tone and by gender, each drawing's concept its class.

    A concept (say, police officer) is named by all its captions, of every tone and gender alike, so that no group is
    nearer to its label by its words. Drawings with two tones are in no group of tone, couples in none of gender.
    """
    source = Captioned(Place(place.path, place.split or COMBINATIONS), Options())
    ids, concepts, captions, tones, genders, kept = [], [], [], [], [], []
    skipped = list(source.skipped)
    for i, key in enumerate(source.keys):
        try:
            sample = source.read(i)
        except DataError as error:
            skipped.append((key, str(error)))
            continue
        shown, gender = sample.attributes.get("tones", ()), sample.attributes.get("gender", "")
        tone = shown[0] if len(shown) == 1 else ""
        gender = gender if gender in ("man", "woman", "person") else ""
        if not (tone or gender):
            continue
        ids.append(key)
        kept.append(i)
        concepts.append(str(sample.attributes.get("concept", "")))
        captions.append(sample.caption)
        tones.append(tone)
        genders.append(gender)
    if not ids:
        raise DataError(f"{place.path} has no drawing with a skin tone or a gender; prepare it by `coca quickstart`")
    named: dict[str, list[str]] = {}
    for row in load_table():
        named.setdefault(row.concept, []).append(row.caption)
    known = sorted(set(concepts))
    number = {concept: i for i, concept in enumerate(known)}
    pictures = Labelled(
        ids,
        [number[concept] for concept in concepts],
        tuple(tuple(named[concept]) for concept in known),
        ("{}",),
        "all captions of the concept",
        lambda i: source.read(kept[i]),
        skipped,
        digest([source.stamp, *kept]),
    )
    words = {
        "skin tone": {tone: f"{tone} skin tone" for tone in TONES},
        "gender": {"man": "man", "woman": "woman"},  # of a person captions often say neither
    }
    columns = {"skin tone": tones, "gender": genders}
    what = f"OpenMoji's drawings (cartoons, no photographs) of the list {source.split}"
    return Annotated(pictures, columns, captions, what, words)


def _rows_of(place: Place) -> tuple[list[tuple[str, Mapping[str, Any]]], list[tuple[str, str]]]:
    """The rows of a table, and those that can't be read. Raises: DataError if it breaks off or has none."""
    if not place.path.is_file():
        raise DataError(f"{place.path} is no file; give a table with path or key, label or caption, and groups")
    listed: list[tuple[str, Mapping[str, Any]]] = []
    skipped: list[tuple[str, str]] = []
    try:
        for name, row in rows(str(place.path)):
            if isinstance(row, UnfitError):
                skipped.append((name, str(row)))
            else:
                listed.append((name, row))
    except csv.Error as error:
        raise DataError(f"{error}; write the table again") from error
    if not listed:
        why = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise DataError(
            f"{place.path} has no row that can be read{why}; give path or key, label or caption, and groups"
        )
    return listed, skipped


def _groupings(values: dict[str, list[str]], where: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The columns that part the pictures into two groups or more, and why others don't."""
    kept, left_out = {}, {}
    for name, groups in values.items():
        different = len({one for one in groups if one})
        if different > MOST_GROUPS:
            left_out[name] = f"it has {different} different values, more than {MOST_GROUPS}"
        elif different < 2:
            left_out[name] = f"it has {different} group{'' if different == 1 else 's'}"
        else:
            kept[name] = groups
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise DataError(f"{where} has no column with two groups or more ({reasons}); add one")
    return kept, left_out


def _text(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) else ""
