"""The evaluations by name: which data each needs, which suites it belongs to, and what makes it.

A new evaluation is a row here and a factory `make(name, data, options) -> Evaluation`, where `data` maps the names of
`--data NAME=PATH` to places, of which those in `needs` are there. The object has a `name`, a `key` by which its result
is cached (see `opencoca.eval.results.Evaluation`), and is called with a `Predictor`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from opencoca.errors import ConfigError, DataError
from opencoca.eval.cache import Cache
from opencoca.eval.results import Evaluation

SUITES = ("smoke", "paper", "robustness")


class Place(NamedTuple):
    """Where data are, and the split that is wanted, or None for the usual one: NAME=PATH or NAME=PATH#SPLIT."""

    path: Path
    split: str | None = None


Data = Mapping[str, Place]


@dataclass(frozen=True)
class Options:
    """What all evaluations of a run share.

    beams: of captions. limit: at most so many samples of each evaluation, spread over the data; None takes all.
    pictures: the folder that paths in a table of questions start from; None is the table's own.
    """

    beams: int = 8
    limit: int | None = None
    seed: int = 0
    pictures: str | None = None
    cache: Cache = field(default_factory=Cache)


class Entry(NamedTuple):
    """One evaluation. factory: "module:function", imported when it is needed. what: the data, in words."""

    suites: tuple[str, ...]
    needs: tuple[str, ...]
    factory: str
    what: str


_ZEROSHOT = "opencoca.eval.classification:make"
_VARIANT = "opencoca.eval.classification:make_variant"
_RETRIEVAL = "opencoca.eval.captioned:make_retrieval"
_CAPTIONS = "opencoca.eval.captioned:make_captions"
_SHARDS = "opencoca.eval.prepared:make"
_HARD = "opencoca.eval.robustness"
_CLASSES = "a folder per class, a CLIP_benchmark folder of tars, or a CSV with path and label"
_ANY = f"{_CLASSES}, or shards, whose captions are then the classes"
_WNIDS = "a folder per class named by its WordNet id (n01440764)"
_PAIRS = "pictures with captions in any form that `coca data check` knows"
_EMOJI = "shards of OpenMoji, as `coca quickstart` makes them"
_CLIPS = "a CSV with label and path"
_KARPATHY = "the folder of pictures with dataset_NAME.json (Karpathy's) beside them"

EVALUATIONS: dict[str, Entry] = {
    "openmoji/retrieval": Entry(("smoke",), ("openmoji",), _SHARDS, _EMOJI),
    "openmoji/skin_tone": Entry(("smoke",), ("openmoji",), _SHARDS, _EMOJI),
    "openmoji/gender": Entry(("smoke",), ("openmoji",), _SHARDS, _EMOJI),
    "openmoji/captions": Entry(("smoke",), ("openmoji",), _SHARDS, _EMOJI),
    "openmoji/binding": Entry(("robustness",), ("openmoji",), "opencoca.eval.binding:make", _EMOJI),
    "classes/zeroshot": Entry(("smoke", "paper"), ("classes",), _ZEROSHOT, _CLASSES),
    "pairs/retrieval": Entry(("smoke", "paper"), ("pairs",), _RETRIEVAL, _PAIRS),
    "pairs/captions": Entry(("smoke", "paper"), ("pairs",), _CAPTIONS, _PAIRS),
    "imagenet/zeroshot": Entry(("paper", "robustness"), ("imagenet",), _VARIANT, _WNIDS),
    "imagenet-a/zeroshot": Entry(("paper", "robustness"), ("imagenet-a",), _VARIANT, _WNIDS),
    "imagenet-r/zeroshot": Entry(("paper", "robustness"), ("imagenet-r",), _VARIANT, _WNIDS),
    "imagenet-v2/zeroshot": Entry(
        ("paper", "robustness"), ("imagenet-v2",), _VARIANT, "folders 0 to 999, or WordNet ids"
    ),
    "imagenet-sketch/zeroshot": Entry(("paper", "robustness"), ("imagenet-sketch",), _VARIANT, _WNIDS),
    "objectnet/zeroshot": Entry(
        ("paper", "robustness"), ("objectnet",), _VARIANT, "a folder per class, with classnames.json"
    ),
    "coco/retrieval": Entry(("paper",), ("coco",), _RETRIEVAL, _KARPATHY),
    "flickr30k/retrieval": Entry(("paper",), ("flickr30k",), _RETRIEVAL, _KARPATHY),
    "coco/captions": Entry(("paper",), ("coco",), _CAPTIONS, _KARPATHY),
    "nocaps/captions": Entry(("paper",), ("nocaps",), _CAPTIONS, "NoCaps' json, with its pictures beside it"),
    "labels/recognition": Entry(
        ("paper",),
        ("labels",),
        "opencoca.eval.recognition:make",
        "a folder per label, and a model that was taught them",
    ),
    "questions/vqa": Entry(
        ("paper",),
        ("questions",),
        "opencoca.eval.questions:make",
        "a table of questions, and a model with a head for them",
    ),
    "classes/corruptions": Entry(("robustness",), ("classes",), f"{_HARD}.corrupted:make", _ANY),
    "classes/resolution": Entry(("robustness",), ("classes",), f"{_HARD}.resolution:make", _ANY),
    "datasets/resolution": Entry(
        ("robustness",),
        ("datasets",),
        f"{_HARD}.resolution:make_aggregated",
        "a folder with data sets in folders of their names: imagenet, dtd, food101, ...",
    ),
    "classes/attacks": Entry(("robustness",), ("classes",), f"{_HARD}.attacked:make", _ANY),
    "classes/typographic": Entry(("robustness",), ("classes",), f"{_HARD}.typographic:make", _ANY),
    "classes/style": Entry(
        ("robustness",),
        ("classes", "style"),
        f"{_HARD}.style:make",
        "two sets with the same class names, in two styles",
    ),
    "classes/overlap": Entry(
        ("robustness",),
        ("classes", "training"),
        f"{_HARD}.overlap:make",
        "the test pictures, and those of training",
    ),
    "classes/calibration": Entry(
        ("robustness",),
        ("classes", "val"),
        "opencoca.eval.calibration:make",
        "the test pictures, and others to fit a temperature on",
    ),
    "groups/bias": Entry(
        ("robustness",),
        ("groups",),
        "opencoca.eval.bias:make",
        "a table with path, label or caption, and columns of groups",
    ),
    "openmoji/bias": Entry(("robustness",), ("openmoji",), "opencoca.eval.bias:make_openmoji", _EMOJI),
    "clips/retrieval": Entry(("paper",), ("clips",), "opencoca.eval.video:make", _CLIPS),
    "clips/recognition": Entry(
        ("paper",), ("clips",), "opencoca.eval.video:make", f"{_CLIPS}, and a model that was taught the labels"
    ),
    "clips/captions": Entry(("paper",), ("clips",), "opencoca.eval.video:make", _CLIPS),
}

# The means that the paper reports, over evaluations which must all be there: name -> evaluations.
MEANS: dict[str, tuple[str, ...]] = {
    "imagenet variants, mean of six": (
        "imagenet/zeroshot",
        "imagenet-a/zeroshot",
        "imagenet-r/zeroshot",
        "imagenet-v2/zeroshot",
        "imagenet-sketch/zeroshot",
        "objectnet/zeroshot",
    )
}


def parse_data(words: Sequence[str]) -> dict[str, Place]:
    """The places that --data names, NAME=PATH or NAME=PATH#SPLIT. Raises: DataError for words of another form."""
    known = sorted({need for entry in EVALUATIONS.values() for need in entry.needs})
    data: dict[str, Place] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            raise DataError(f"--data {word!r} isn't NAME=PATH; the names are {', '.join(known)}")
        place, _, split = path.partition("#")
        if name in data:
            raise DataError(f"--data {name} is given twice; name each once")
        if not Path(place).exists():
            raise DataError(f"--data {word}: {place} doesn't exist; check the path")
        data[name] = Place(Path(place), split or None)
    return data


def chosen(suite: str | None, only: Sequence[str] = ()) -> dict[str, Entry]:
    """The evaluations of a suite, or those that are named. Raises: ConfigError for names that aren't there."""
    if only:
        unknown = [name for name in only if name not in EVALUATIONS]
        if unknown:
            raise ConfigError(f"there is no evaluation {unknown[0]!r}; there are {', '.join(EVALUATIONS)}")
        return {name: EVALUATIONS[name] for name in only}
    if suite not in SUITES:
        raise ConfigError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    return {name: entry for name, entry in EVALUATIONS.items() if suite in entry.suites}


def make(name: str, data: Data, options: Options) -> Evaluation:
    """The evaluation of that name on these data. Raises: DataError where they can't be used."""
    module, _, function = EVALUATIONS[name].factory.partition(":")
    return getattr(importlib.import_module(module), function)(name, data, options)


def missing(entry: Entry, data: Data) -> str:
    """What to give so that an evaluation can run, or "" if nothing is missing."""
    lacking = [need for need in entry.needs if need not in data]
    return (
        ""
        if not lacking
        else f"not measured: give {' '.join(f'--data {need}=PATH' for need in lacking)} ({entry.what})"
    )
