"""Questions about pictures, with their answers: tables, and the files of VQA v2, SNLI-VE and NLVR2 as they come.

A statement that is to be judged is a question too, and its label the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from opencoca.data import storage
from opencoca.data.prompts import asked
from opencoca.data.sample import Sample
from opencoca.data.sources import columns, tables
from opencoca.data.sources.captions import UnfitError, cleaned, parsed_json, texts_of
from opencoca.data.sources.pairs import nothing_left, safe_path
from opencoca.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
NAMES = ("questions", "vqa", "annotations")  # of a table in a folder with several
SECONDS = ("picture2", "image2", "path2", "second", "right")
QUESTIONS = ("question", "questions", "statement", "sentence", "hypothesis", "sentence2")
ANSWERS = ("answers", "answer", "label", "gold_label")
CHOICES = ("choices", "multiple_choices", "options")
KINDS = ("question_type", "answer_type", "kind")
KEYS = ("question_id", "key", "id", "uid")
SNLI_PICTURE, NLVR2_KEY = "Flickr30K_ID", "identifier"
UNDECIDED = "-"  # SNLI's label where annotators didn't agree


class Question(NamedTuple):
    """A question: pictures by path, text, the answer of each annotator; choices and kind where they are told."""

    key: str
    pictures: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    kind: str = ""

    @property
    def prompt(self) -> str:
        """The question as a model reads it, before the answer."""
        return asked(self.text)


class QuestionSource:
    """Questions as a loader's source: each caption is the question with one annotator's answer.

    skipped: (row, reason) of each row that can't be used. splits: all that the data tell.
    """

    def __init__(
        self,
        root: str,
        questions: Sequence[Question],
        skipped: Sequence[tuple[str, str]] = (),
        splits: Iterable[str] = (),
    ) -> None:
        self.root, self.questions = root, list(questions)
        self.skipped, self.splits = list(skipped), tuple(splits)
        self.keys = [question.key for question in self.questions]
        self.shards = [range(len(self.questions))]
        self.pictures = len(self.questions[0].pictures) if self.questions else 1
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(json.dumps(question).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int, /) -> Sample:
        question = self.questions[i]
        first, *others = (storage.read_file(storage.joined(self.root, path)) for path in question.pictures)
        texts = [f"{question.prompt} {answer}" for answer in question.answers]
        picture = question.pictures[0]
        attributes = {
            "question": question.text,
            "answers": list(question.answers),
            "picture": picture,
            "concept": picture,  # what `data.clump_size` goes by
        }
        return Sample(question.key, first, texts[0], attributes, tuple(texts[1:]), tuple(others))

    def chosen(self, rows: Iterable[int]) -> QuestionSource:
        """Some of the questions."""
        return QuestionSource(self.root, [self.questions[row] for row in rows], self.skipped, self.splits)

    def spread(self, limit: int | None) -> QuestionSource:
        """At most `limit` questions, spread evenly over the data."""
        if limit is None or limit >= len(self):
            return self
        return self.chosen(i * len(self) // limit for i in range(limit))


def open_questions(location: str, split: str | None = None, pictures: str | None = None) -> QuestionSource:
    """The questions of a table (CSV, TSV, JSONL), of VQA v2's json, or of a folder that holds one of these.

    A table has columns for the picture (`picture`, `image`, `path`, ...; `picture2` where there are two), the question
    (`question`, `statement`, `hypothesis`, ...) and the answer (`answer`, `label`, or `answers` with a JSON list of
    several annotators'), and may have `split` and `choices`. SNLI-VE's and NLVR2's JSONL files are read as they come.

    Args: pictures is the folder that their paths start from, by default that of the table.
    Raises: DataError, with the repair, if there is nothing to read there, or no such split.
    """
    split = None if split is None else columns.split_name(split)
    place = storage.checked(location)
    files = _files(place, split)
    if storage.suffix(files[0]) == ".json":
        return _open_vqa(files[0], pictures)
    found, skipped, splits = [], [], dict[str, None]()
    for file in files:
        of_file = columns.split_in(storage.stem(file)) if len(_tables(place)) > 1 else None
        for name, told, question in _questions(file):
            told = told or of_file or ""
            if told:
                splits[told] = None
            if split is not None and told and told != split:
                continue
            if isinstance(question, Question):
                found.append(question)
            else:
                skipped.append((name, question))
    if split is not None and splits and split not in splits:
        raise DataError(f"{place} has no split {split!r}; its splits are: {', '.join(splits)}")
    if split not in (None, "train") and not splits:
        raise DataError(f"{place} tells no splits, so all of it is 'train'; give a table a column `split`")
    return _checked(place, pictures or storage.parent(files[0]), found, skipped, splits)


def _checked(
    name: str, root: str, found: list[Question], skipped: list[tuple[str, str]], splits: Iterable[str]
) -> QuestionSource:
    """The source, without questions whose key or number of pictures is odd among them."""
    if not found:
        raise nothing_left(name, skipped) if skipped else DataError(f"{name} has no questions; name other data")
    wanted, known, kept = len(found[0].pictures), set[str](), []
    for question in found:
        if len(question.pictures) != wanted:
            skipped.append((question.key, f"it has {len(question.pictures)} pictures, the others {wanted}"))
        elif question.key in known:
            skipped.append((question.key, "another question has the same key"))
        else:
            known.add(question.key)
            kept.append(question)
    return QuestionSource(root, kept, skipped, splits)


def _files(place: str, split: str | None) -> list[str]:
    """The files to read: the one that is named, or those of a folder whose names tell the split."""
    if storage.kind(place) == "file":
        return [place]
    if storage.kind(place) is None:
        raise DataError(f"{place} does not exist; check the path")
    official = [name for name in storage.listing(place)[1] if name.endswith(".json") and "questions" in name]
    if official:
        names = official
    else:
        names = _tables(place)
        if len(names) > 1:
            names = [name for name in names if columns.split_in(storage.stem(name))] or [
                name for name in names if storage.stem(name) in NAMES
            ]
    if not names:
        raise DataError(f"{place} has no table of questions; put a questions.csv there, with picture, question, answer")
    telling = [name for name in names if split is not None and columns.split_in(storage.stem(name)) == split]
    if split is not None and not telling and all(columns.split_in(storage.stem(name)) for name in names):
        raise DataError(f"{place} has no split {split!r}; its files are: {', '.join(names)}")
    return [storage.joined(place, name) for name in telling or names]


def _tables(place: str) -> list[str]:
    if storage.kind(place) == "file":
        return [place]
    return sorted(name for name in storage.listing(place)[1] if storage.suffix(name) in TABLES)


def _questions(file: str) -> Iterator[tuple[str, str, Question | str]]:
    """The rows of a table: its name, its split if told, and the question or what is wrong with it."""
    found: _Columns | None = None
    for name, row in tables.rows(file):
        short = f"{PurePosixPath(file).name}{name.removeprefix(file)}"
        if isinstance(row, UnfitError):
            yield short, "", str(row)
            continue
        if found is None or found.question not in row:
            found = _columns(row, file)
        told = columns.split_name(row[found.split]) if found.split and row.get(found.split) else ""
        try:
            yield short, told, _question(short, row, found)
        except UnfitError as error:
            yield short, told, str(error)


class _Columns(NamedTuple):
    pictures: tuple[str, ...]
    question: str
    answer: str
    split: str | None
    choices: str | None
    kind: str | None
    key: str | None


def _columns(row: Mapping[str, Any], file: str) -> _Columns:
    """Which column is what. Raises: DataError if one that is needed is missing."""
    by_name = {columns.plain(name): name for name in row if isinstance(name, str)}
    picture = next((name for name in (SNLI_PICTURE, NLVR2_KEY) if name in row), None)
    picture = columns.first(by_name, columns.PATHS) or picture
    second = columns.first(by_name, SECONDS)
    needed = {
        "pictures": (picture, columns.PATHS),
        "questions": (columns.first(by_name, QUESTIONS), QUESTIONS),
        "answers": (columns.first(by_name, ANSWERS), ANSWERS),
    }
    for what, (name, known) in needed.items():
        if name is None:
            there = ", ".join(str(column)[:40] for column in list(row)[:20])
            raise DataError(f"{file} has no column of {what} (its columns: {there}); call it {', '.join(known[:4])}")
    (picture, _), (question, _), (answer, _) = needed.values()
    assert picture is not None and question is not None and answer is not None
    return _Columns(
        (picture, second) if second else (picture,),
        question,
        answer,
        columns.first(by_name, columns.SPLITS),
        columns.first(by_name, CHOICES),
        columns.first(by_name, KINDS),
        columns.first(by_name, KEYS),
    )


def _question(name: str, row: Mapping[str, Any], found: _Columns) -> Question:
    """The question in a row. Raises: UnfitError that says what is wrong with it."""
    paths = [row.get(column) for column in found.pictures]
    if found.pictures == (SNLI_PICTURE,):
        paths = [f"{paths[0]}.jpg" if "." not in str(paths[0]) else paths[0]]
    elif found.pictures == (NLVR2_KEY,):
        pair = str(paths[0]).rpartition("-")[0]
        paths = [f"{pair}-img{number}.png" for number in (0, 1)]
    try:
        text = cleaned(row.get(found.question))
    except UnfitError as error:
        raise UnfitError(str(error).replace("caption", "question")) from None
    answers = _answers(row.get(found.answer))
    if not answers:
        raise UnfitError("it has no answer")
    choices = _answers(row.get(found.choices)) if found.choices else ()
    kind = str(row.get(found.kind) or "") if found.kind else ""
    key = str(row.get(found.key) or name) if found.key else name
    return Question(key, tuple(safe_path(path) for path in paths), text, answers, choices, kind)


def _answers(value: Any) -> tuple[str, ...]:
    """The answers in a cell: one, a list, a list as JSON, or VQA's list of objects."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = texts_of(value)
    values = value if isinstance(value, list | tuple) else [value]
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in values]
    plain = [str(one).strip() for one in texts if isinstance(one, str | int | float)]
    return tuple(one for one in plain if one and one != UNDECIDED)


def _open_vqa(file: str, pictures: str | None) -> QuestionSource:
    """VQA v2's questions, with the annotations beside them, and pictures called as COCO calls them."""
    content = _official(file, "questions")
    subset = str(content.get("data_subtype") or "")
    root = storage.parent(file)
    beside = [name for name in storage.listing(root)[1] if name.endswith(".json") and "annotations" in name]
    beside = [name for name in beside if subset in name]
    if len(beside) != 1:
        raise DataError(f"{file} needs one annotations file of {subset!r} beside it, and {len(beside)} are there")
    truths = {
        one.get("question_id"): one for one in _official(storage.joined(root, beside[0]), "annotations")["annotations"]
    }
    folder = pictures or (storage.joined(root, subset) if storage.kind(storage.joined(root, subset)) else root)
    found, skipped = [], []
    for number, one in enumerate(content["questions"]):
        name = f"{PurePosixPath(file).name} entry {number}"
        try:
            key, image = one["question_id"], int(one["image_id"])
            answers = _answers(truths.get(key, {}).get("answers"))
            if not answers:
                raise UnfitError("it has no answer in the annotations")
            path = f"COCO_{subset}_{image:012d}.jpg"
            kind = str(truths[key].get("answer_type") or "")
            choices = _answers(one.get("multiple_choices"))
            found.append(Question(str(key), (path,), cleaned(one["question"]), answers, choices, kind))
        except UnfitError as error:
            skipped.append((name, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            skipped.append((name, f"it isn't a question of VQA ({type(error).__name__} {error})"))
    return _checked(file, folder, found, skipped, [columns.split_in(subset) or "train"])


def _official(file: str, field: str) -> dict[str, Any]:
    try:
        content = parsed_json(storage.read_file(file))
    except UnfitError as error:
        raise DataError(f"{file} can't be used: {error}; fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise DataError(f"{file} has no list {field!r}, so it isn't VQA's; give a table, or VQA's own files")
    return content
