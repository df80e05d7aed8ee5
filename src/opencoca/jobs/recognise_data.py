"""Labelled pictures in every form that captioned ones have, and MNIST's: what each picture's label is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.data.idx import is_idx, open_idx
from opencoca.data.sources import open_source, splits_of
from opencoca.data.sources.labels import PROMPT
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError
from opencoca.jobs.finetune_data import Chosen, split_by_picture

FEWEST = 2  # pictures of a label, so that one may be held out
MOST_VAL = 2000  # pictures that settings are chosen by


class Labelled(NamedTuple):
    """Pictures as a source, the label of each, and (key, reason) of those that can't be used."""

    source: Source
    labels: list[str]
    skipped: list[tuple[str, str]]

    def spread(self, most: int) -> Labelled:
        """At most so many of them, evenly spaced; 0 takes all."""
        if not most or most >= len(self.labels):
            return self
        rows = [i * len(self.labels) // most for i in range(most)]
        return Labelled(Chosen(self.source, rows), [self.labels[row] for row in rows], self.skipped)


class Pictures(NamedTuple):
    """What to train on, to choose by and to test on (None where the data have no split for it), and all labels."""

    train: Labelled
    val: Labelled
    test: Labelled | None
    labels: tuple[str, ...]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """All that can't be used, each once."""
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        return list(dict.fromkeys(skip for part in parts for skip in part.skipped))


def open_labels(data: str, field: str | None = None, share: float = 0.1, most: int = 0) -> Pictures:
    """The labelled pictures at a location: its own train, val and test where it tells them, else a share is held out.

    A label is the name of a picture's folder, a table's column of labels, or the attribute `field` of prepared samples.
    Held-out pictures with a label that training doesn't have can't be learnt, and are named.

    Args: most is the number of pictures to train on, evenly spaced; 0 takes all.
    Raises: DataError if there are no labels, or only one.
    """
    told = ("train", "val", "test") if is_idx(Path(data)) else splits_of(open_source(data))
    if "train" in told:
        train = _labelled(_open(data, "train"), field, data)
        val = _labelled(_open(data, "val"), field, data) if "val" in told else None
        test = _labelled(_open(data, "test"), field, data) if "test" in told else None
    else:
        train, val, test = _labelled(_open(data, None), field, data), None, None
    _require_two(train, data)
    if val is None:
        train, val = _held_out(train, share)
        _require_two(train, data)
    train, val = train.spread(most), val.spread(MOST_VAL)
    labels = tuple(sorted(set(train.labels)))
    return Pictures(train, _known(val, labels), None if test is None else _known(test, labels), labels)


def _open(data: str, split: str | None) -> Any:
    if is_idx(Path(data)):
        return open_idx(Path(data), split or "train")
    return open_source(data, split)


def _labelled(source: Any, field: str | None, name: str) -> Labelled:
    """The pictures of a source that have a label. Raises: DataError where none has."""
    skipped = list(source.skipped)
    of_columns = field is None and "label" in getattr(source, "columns", {})
    before = PROMPT.partition("{}")[0]
    names = getattr(source, "names", None) if hasattr(source, "label_numbers") else None
    rows, labels = [], []
    for i in range(len(source)):
        try:
            if names is not None:
                label = names[source.label_numbers[i]]
            elif of_columns:
                label = source.captions[i].removeprefix(before)
            else:
                label = source[i].attributes.get(field or "label")
        except DataError as error:
            skipped.append((source.keys[i], str(error)))
            continue
        if isinstance(label, str | int) and str(label).strip():
            rows.append(i)
            labels.append(str(label).strip())
        else:
            skipped.append((source.keys[i], f"it has no {field or 'label'}"))
    if not rows:
        raise DataError(
            f"{name} has no labels: {skipped[0][0]}: {skipped[0][1]}; give a folder for each label, a table with a "
            "column `label`, or the name of an attribute with --label"
        )
    return Labelled(Chosen(source, rows), labels, skipped)


def _require_two(pictures: Labelled, name: str) -> None:
    found = Counter(pictures.labels)
    if len(found) < 2:
        raise DataError(
            f"all {len(pictures.labels)} pictures of {name} to train on have the label {next(iter(found))!r}; give "
            "pictures of two labels or more"
        )


def _held_out(pictures: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """Both sides of a split by picture: copies of one picture are on one side."""
    label_of = dict(zip(pictures.source.keys, pictures.labels, strict=True))
    split = split_by_picture(pictures.source, share)
    train, val = (Labelled(s, [label_of[key] for key in s.keys], []) for s in (split.train, split.val))
    return train._replace(skipped=list(dict.fromkeys([*pictures.skipped, *split.skipped]))), val


def _known(pictures: Labelled, labels: Sequence[str]) -> Labelled:
    """The pictures whose label is among these; the others are named."""
    known = set(labels)
    rows = [i for i, label in enumerate(pictures.labels) if label in known]
    skipped = [
        (key, f"no picture to train on has its label {label!r}")
        for key, label in zip(pictures.source.keys, pictures.labels, strict=True)
        if label not in known
    ]
    if not rows:
        raise DataError(f"no held-out picture has a label of training; the first: {skipped[0][0]}: {skipped[0][1]}")
    if not skipped:
        return pictures
    return Labelled(
        Chosen(pictures.source, rows), [pictures.labels[row] for row in rows], [*pictures.skipped, *skipped]
    )
