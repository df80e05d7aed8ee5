"""Statements about OpenMoji's drawings, built from their annotations: what NLVR2 and SNLI-VE ask, at a small size.

`pairs`: a statement about the skin tones in two pictures, true or false. `triples`: a hypothesis about one picture,
which entails it, contradicts it, or leaves it open (neutral): a drawing that shows neither man nor woman says nothing
of "the person is a woman", and one in the emoji's default yellow nothing of a skin tone. Every statement is as often
right as wrong, in the same words, so that reading it without the pictures is worth nothing but chance.

Pictures by OpenMoji (https://openmoji.org), licence CC BY-SA 4.0; they keep the splits of `openmoji.tsv`.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from opencoca.data.draws import hash64
from opencoca.data.openmoji import CREDIT, TONES
from opencoca.data.sample import Sample
from opencoca.data.shards import ShardReader
from opencoca.errors import DataError, unwritable

Kind = Literal["pairs", "triples"]
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test_pictures", "test_combinations")}
SIZES = {"train": 6000, "val": 600, "test": 1200}
SEED = 20
TONE_NAMES = tuple(TONES.values())
PAIRS = (
    "both pictures show {} skin",
    "only one picture shows {} skin",
    "the left picture shows {} skin",
    "the two pictures show the same skin tone",
)
FIELDS = {
    "pairs": ("picture", "picture2", "statement", "label", "split", "kind"),
    "triples": ("picture", "hypothesis", "label", "split", "kind"),
}


class Person(NamedTuple):
    """What is annotated of one drawing."""

    id: str
    tone: str
    gender: str


def build(folder: Path, shards: Path, kind: Kind) -> dict[str, int]:
    """Writes the pictures and questions.csv into `folder`, whole or not at all, and counts the rows of each split.

    shards: OpenMoji as `coca quickstart` prepares it.

    Raises: DataError where the shards aren't OpenMoji's, or the folder can't be written.
    """
    rows: list[Sequence[str]] = []
    used: dict[str, bytes] = {}
    for split, parts in SPLITS.items():
        samples = [sample for part in parts for sample in _samples(shards, part)]
        people = [person for sample in samples if (person := _person(sample)) is not None]
        made = list((_pairs if kind == "pairs" else _triples)(people, split))
        pictures = {sample.key: sample.picture for sample in samples}
        names = {name for row in made for name in row[: 2 if kind == "pairs" else 1]}
        used |= {name: pictures[name] for name in names}
        rows += [(*(_path(one) if one in names else one for one in row), split, row_kind) for *row, row_kind in made]
    partial = folder.with_name(f".partial-{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "pictures").mkdir(parents=True)
        for name, content in sorted(used.items()):
            (partial / _path(name)).write_bytes(content)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([FIELDS[kind], *rows])
        (partial / "questions.csv").write_text(text.getvalue(), encoding="utf-8")
        (partial / "CREDIT.txt").write_text(f"{CREDIT}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise DataError(unwritable(folder, error)) from error
    return {split: sum(row[-2] == split for row in rows) for split in SPLITS}


def _samples(shards: Path, split: str) -> Iterator[Sample]:
    with ShardReader(shards, split) as reader:
        for i in range(len(reader)):
            yield reader[i]


def _person(sample: Sample) -> Person | None:
    """The drawing's annotations, or None where it shows no person, or people of several tones or genders."""
    try:
        gender, tones = sample.attributes["gender"], sample.attributes["tones"]
    except KeyError as error:
        raise DataError(f"{sample.key} has no {error.args[0]}; give the shards of OpenMoji") from error
    if gender not in ("man", "woman", "person") or len(tones) > 1 or " people" in f" {sample.caption}":
        return None
    return Person(sample.key, tones[0] if tones else "", gender)


def _path(id: str) -> str:
    return f"pictures/{id}.png"


def _pairs(people: Sequence[Person], split: str) -> Iterator[tuple[str, ...]]:
    """(left, right, statement, label, kind); of each template as many are true as false, whatever the tone."""
    toned = [person for person in people if person.tone]
    statements = [(template, tone) for template in PAIRS for tone in (TONE_NAMES if "{}" in template else ("",))]
    for number in range(SIZES[split]):
        draw = np.random.default_rng((SEED, hash64(f"pairs {split}") % 2**32, number))
        same_tone = PAIRS.index("the two pictures show the same skin tone")
        if number % len(PAIRS) == same_tone:
            template, tone = statements[-1]
        else:
            template, tone = statements[len(TONE_NAMES) * (number % len(PAIRS)) + int(draw.integers(len(TONE_NAMES)))]
        wanted = number // len(PAIRS) % 2 == 0
        left, right = _two(toned, PAIRS.index(template), tone, wanted, draw)
        yield left.id, right.id, template.format(tone), str(wanted).lower(), template.format("...")


def _two(
    people: Sequence[Person], template: int, tone: str, wanted: bool, draw: np.random.Generator
) -> tuple[Person, Person]:
    """Two people of whom the statement is as wanted; neither picture alone tells where the statement is about both."""
    own = tone or TONE_NAMES[int(draw.integers(len(TONE_NAMES)))]
    others = [name for name in TONE_NAMES if name != own]
    other = others[int(draw.integers(len(others)))]
    another = others[int(draw.integers(len(others)))]
    one_of_them = [(own, other), (other, own)][int(draw.integers(2))]
    if template == 0:  # both
        tones = (own, own) if wanted else one_of_them
    elif template == 1:  # only one
        tones = one_of_them if wanted else [(own, own), (other, another)][int(draw.integers(2))]
    elif template == 2:  # the left one
        right = [own, other][int(draw.integers(2))]
        tones = (own, right) if wanted else (other, right)
    else:  # the same
        tones = (own, own) if wanted else (own, other)
    left, right = (_one(people, lambda p, tone=tone: p.tone == tone, draw) for tone in tones)
    return left, right


def _triples(people: Sequence[Person], split: str) -> Iterator[tuple[str, ...]]:
    """(picture, hypothesis, label, kind); each hypothesis has each label equally often."""
    for number in range(SIZES[split]):
        draw = np.random.default_rng((SEED, hash64(f"triples {split}") % 2**32, number))
        label = ("entailment", "neutral", "contradiction")[number // 2 % 3]
        if number % 2:
            said = ("man", "woman")[int(draw.integers(2))]
            opposite = "woman" if said == "man" else "man"
            shown = {"entailment": said, "neutral": "person", "contradiction": opposite}[label]
            text, kind = f"the person is a {said}", "gender"
            person = _one(people, lambda p, shown=shown: p.gender == shown, draw)
        else:
            tone = TONE_NAMES[int(draw.integers(len(TONE_NAMES)))]
            others = [name for name in TONE_NAMES if name != tone]
            shown = {"entailment": tone, "neutral": "", "contradiction": others[int(draw.integers(len(others)))]}[label]
            text, kind = f"the person has {tone} skin", "skin tone"
            person = _one(people, lambda p, shown=shown: p.tone == shown, draw)
        yield person.id, text, label, kind


def _one(people: Sequence[Person], fits: Callable[[Person], bool], draw: np.random.Generator) -> Person:
    fitting = [person for person in people if fits(person)]
    if not fitting:
        raise DataError("a split of the shards shows no person of a tone and gender; prepare OpenMoji again")
    return fitting[int(draw.integers(len(fitting)))]
