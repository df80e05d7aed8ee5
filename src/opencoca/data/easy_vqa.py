"""Easy-VQA: 48,248 questions about 5,000 pictures of one coloured shape each, as pictures and tables of questions.

By Victor Zhou (https://github.com/vzhou842/easy-VQA), licence MIT, in the wheel `easy-vqa` of PyPI. Three quarters of
the answers are yes or no, and a question alone gives away a good part of the others: its figures belong beside those
of `eval.questions.majority`, which sees no picture.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.errors import DataError, unwritable

CREDIT = "Easy-VQA by Victor Zhou (https://github.com/vzhou842/easy-VQA), licence MIT"
REQUIREMENT = "easy-vqa==1.0"
WHEEL = "easy_vqa-1.0-py3-none-any.whl"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
PACKAGE = {"easy-vqa": {"source": "pip", "version": "1.0", "file": WHEEL, "sha256": SHA256, "licence": "MIT"}}
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
VAL_SHARE = 0.1  # of the official training pictures
HELD_OUT_PAIRS = 4  # of the 24 of shape and colour, each of another colour
FIELDS = ("picture", "question", "answer", "split", "kind")
TABLE, PAIRS_TABLE = "questions.csv", "pairs.csv"
YES_NO = ("yes", "no")


class Prepared(NamedTuple):
    """What `prepare` wrote: questions by split in both tables, and the (shape, colour) pairs that one holds out."""

    questions: dict[str, int]
    pairs: dict[str, int]
    held_out: list[tuple[str, str]]


def prepare(folder: Path, wheel: Path) -> Prepared:
    """Writes the pictures and two tables into `folder`, whole or not at all; what was there is replaced.

    `questions.csv` has the official test questions, and a tenth of the official training pictures as val. In
    `pairs.csv` some (shape, colour) pairs are in no training or val picture, though each shape and each colour is: the
    official test pictures that show them are its split `test_pairs`, the others its `test`. Pictures whose questions
    don't tell both are left out of it.

    Raises: DataError where the wheel isn't the one that this was written for, or the folder can't be written.
    """
    content = wheel.read_bytes() if wheel.is_file() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(f"{wheel} has sha256 {digest}, {SHA256} is wanted; fetch it by pip download {REQUIREMENT}")
    partial = folder.with_name(f".partial-{folder.name}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        read = {name: json.loads(archive.read(f"easy_vqa/data/{name}/questions.json")) for name in ("train", "test")}
        shown = {(name, picture): told for name, asked in read.items() for picture, told in _shown(asked).items()}
        held_out = held_out_pairs({pair for pair in shown.values() if all(pair)})
        try:
            shutil.rmtree(partial, ignore_errors=True)
            for name in read:
                (partial / "pictures" / name).mkdir(parents=True)
            for name, picture in shown:
                target = partial / path_of(name, picture)
                target.write_bytes(archive.read(f"easy_vqa/data/{name}/images/{picture}.png"))
            questions = _write(partial / TABLE, read, shown)
            pairs = _write(partial / PAIRS_TABLE, read, shown, held_out)
            (partial / "CREDIT.txt").write_text(f"{CREDIT}\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            raise DataError(unwritable(folder, error)) from error
    return Prepared(questions, pairs, held_out)


def path_of(split: str, picture: int) -> str:
    """Where a picture of the official split lies in the folder."""
    return f"pictures/{split}/{picture}.png"


def split_of(official: str, picture: int) -> str:
    """train, val or test; val is a tenth of the official training pictures, by their number alone."""
    if official == "test":
        return "test"
    return "val" if _share(f"val {picture}") < VAL_SHARE else "train"


def held_out_pairs(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Some (shape, colour) pairs, no two of one colour, in an order without meaning."""
    chosen: list[tuple[str, str]] = []
    for shape, colour in sorted(pairs, key=lambda pair: _share(f"pair {pair[0]} {pair[1]}")):
        if len(chosen) < HELD_OUT_PAIRS and colour not in {other for _, other in chosen}:
            chosen.append((shape, colour))
    return sorted(chosen)


def kind_of(answer: str) -> str:
    """What a question asks for, by its answer."""
    return "yes/no" if answer in YES_NO else "shape" if answer in SHAPES else "colour"


def _shown(asked: Sequence[Any]) -> dict[int, tuple[str, str]]:
    """The (shape, colour) of each picture, from what its questions ask for, name or confirm; "" where none does."""
    shapes: dict[int, str] = {}
    colours: dict[int, str] = {}
    for question, answer, picture in asked:
        words = set(question.rstrip("?").split())
        named = {*SHAPES, *COLOURS} & words
        if answer in YES_NO:
            confirmed = (answer == "yes") != bool(words & {"no", "not"})
            named = named if confirmed else set()
        for word in named | {answer} - {*YES_NO}:
            (shapes if word in SHAPES else colours)[picture] = word
    pictures = sorted({picture for *_, picture in asked})
    return {picture: (shapes.get(picture, ""), colours.get(picture, "")) for picture in pictures}


def _write(
    path: Path,
    read: Mapping[str, Sequence[Any]],
    shown: Mapping[tuple[str, int], tuple[str, str]],
    held_out: Sequence[tuple[str, str]] = (),
) -> dict[str, int]:
    """Writes a table; with pairs to hold out, without the pictures that show one or may do so, but for test."""
    counts: dict[str, int] = {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for official, asked in read.items():
        for question, answer, picture in asked:
            split, pair = split_of(official, picture), shown[official, picture]
            if held_out and not all(pair):
                continue
            if pair in held_out:
                if split != "test":
                    continue
                split = "test_pairs"
            counts[split] = counts.get(split, 0) + 1
            writer.writerow((path_of(official, picture), question, answer, split, kind_of(answer)))
    path.write_text(text.getvalue(), encoding="utf-8")
    return counts


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"easy-vqa {name}".encode()).digest()[:8], "little") / 2**64
