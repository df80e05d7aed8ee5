"""Verdicts on statements, end to end: about one picture as in SNLI-VE, and about two as in NLVR2, after brief training.

The tables are written so that the words alone are worth chance wherever pictures decide.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests import task_data
from tests.support import train_tiny, write_shards

import opencoca
from opencoca.cli.main import main
from opencoca.data.questions import Question, open_questions
from opencoca.eval.questions import answer_all

pytestmark = pytest.mark.timeout(600)
SEED = 0
SHOWN = ("red", "blue", "black")
OPEN = ("it is old", "it is heavy", "it is mine")  # of which no picture tells anything
MARGIN = 0.15  # that pictures must be worth

pictures = task_data.pictures


@pytest.fixture(scope="module")
def tables(pictures: Path) -> Path:
    """Two tables beside the drawings; every fourth drawing of a colour is in val, the others in train."""
    train, val = {}, {}
    for colour in SHOWN:
        paths = [path.relative_to(pictures).as_posix() for path in sorted((pictures / colour).glob("*.png"))]
        val[colour] = paths[1::4]
        train[colour] = [path for path in paths if path not in val[colour]]
    for name, fields, rows in (
        ("verdicts.csv", ("picture", "hypothesis", "label", "split", "kind"), hypotheses),
        ("pairs.csv", ("picture", "picture2", "statement", "label", "split", "kind"), statements),
    ):
        with (pictures / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([fields, *rows("train", train), *rows("val", val)])
    return pictures


def hypotheses(split: str, drawings: dict[str, list[str]]) -> Iterator[Sequence[str]]:
    """Three about each drawing, one of each label; each colour is named rightly as often as wrongly."""
    for number, (colour, paths) in enumerate(drawings.items()):
        for i, path in enumerate(paths):
            yield path, f"it is {colour}", "entailment", split, "colour"
            yield path, f"it is {SHOWN[(number + 1 + i % 2) % 3]}", "contradiction", split, "colour"
            yield path, OPEN[(number + i) % 3], "neutral", split, "open"


def statements(split: str, drawings: dict[str, list[str]]) -> Iterator[Sequence[str]]:
    """Each as often true as false; where it names a side, the picture on the other side tells nothing.

    Every pair is also there the other way round, those of val in a split of their own.
    """
    for number, colour in enumerate(SHOWN):
        for i in range(len(drawings[colour])):
            one, two = (drawn(drawings, colour, i + k) for k in range(2))
            three, four = (drawn(drawings, SHOWN[(number + 1 + (i + k) % 2) % 3], i + 1 + k) for k in range(2))
            sided = [(one, three), (four, two), (two, one), (three, four)]
            for side, chosen in (("left", sided), ("right", sided), ("both", [*sided[:3], (one, two)])):
                for left, right in chosen:
                    yield *judged(left, right, side, colour), split, side
                    yield *judged(right, left, side, colour), "swapped" if split == "val" else split, side


def drawn(drawings: dict[str, list[str]], colour: str, i: int) -> tuple[str, str]:
    return colour, drawings[colour][i % len(drawings[colour])]


def judged(left: tuple[str, str], right: tuple[str, str], side: str, colour: str) -> Sequence[str]:
    """A statement about two drawings, each given by its colour and path, with its label."""
    is_so = {"left": left[0] == colour, "right": right[0] == colour, "both": left[0] == right[0] == colour}
    text = f"both are {colour}" if side == "both" else f"{side} is {colour}"
    return left[1], right[1], text, str(is_so[side]).lower()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has read captions of drawings for a moment."""
    folder = tmp_path_factory.mktemp("pretrained")
    optim, run = {"steps": 60, "peak_lr": 4e-3}, {"seed": SEED, "checkpoint_every_steps": 60}
    shards = write_shards(folder / "shards")
    train_tiny(task_data.roomy(shards, optim=optim, data={"batch_size": 24}, run=run), folder / "run")
    return folder / "run"


def taught(table: Path, base: Path, run: Path, *words: str) -> Path:
    """The run of `coca vqa` that has taught `base` what is in the table."""
    words = ("vqa", str(table), "--from", str(base), "--run", str(run), "--mode", "classify", *words)
    assert main([*words, "--batch", "32", "--rate", "5e-4", "--set", "optim.part_rates=[]"]) == 0
    return run


@pytest.fixture(scope="module")
def verdicts(tables: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tables / "verdicts.csv", pretrained, tmp_path_factory.mktemp("verdicts"), "--steps", "150")


@pytest.fixture(scope="module")
def pairs(tables: Path, verdicts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the model that knows verdicts on one picture, as the documentation has it."""
    words = ("--steps", "220", "--test", "swapped")
    return taught(tables / "pairs.csv", verdicts, tmp_path_factory.mktemp("pairs"), *words)


def measured(run: Path, split: str) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the question alone and of the classifier."""
    ways = task_data.results_of(run)["measured"][split]
    return ways["question only"]["figures"], ways["classifier"]["figures"]


def evaluated(run: Path, data: str, file: Path) -> float:
    """The accuracy that `coca eval` finds."""
    words = ["eval", str(run), "--only", "questions/vqa", "--data", f"questions={data}", "--no-cache"]
    assert main([*words, "--json", str(file)]) == 0
    (evaluation,) = json.loads(file.read_text())["models"][0]["evaluations"]
    return evaluation["figures"]["accuracy"]


@pytest.mark.parametrize("split", ["train", "val", "swapped"])
def test_neither_words_nor_the_other_picture_give_a_statement_away(tables: Path, split: str) -> None:
    labels: dict[object, Counter[str]] = defaultdict(Counter)
    for question in open_questions(str(tables / "pairs.csv"), split).questions:
        colours = [Path(path).parent.name for path in question.pictures]
        labels[question.text][question.answers[0]] += 1
        if question.kind != "both":
            named = question.text.rpartition(" ")[2]
            labels[question.text, colours[question.kind == "left"] == named][question.answers[0]] += 1
    assert len(labels) == 9 + 12
    assert all(counts["true"] == counts["false"] for counts in labels.values()), labels


def test_verdicts_on_a_picture_beat_the_hypothesis_alone(verdicts: Path) -> None:
    alone, classifier = measured(verdicts, "val")
    assert list(task_data.rows_of(verdicts)) == ["question only", "classifier"]
    assert alone["accuracy"] == pytest.approx(2 / 3) and alone["accuracy/colour"] == 0.5, alone
    assert classifier["accuracy"] > alone["accuracy"] + MARGIN, "chance is 1/3, and 2/3 with the hypothesis"
    assert classifier["accuracy/colour"] > 0.5 + MARGIN, "chance is 1/2 with the hypothesis"
    assert classifier["accuracy/open"] > 0.9, "the hypothesis is enough"


def test_ask_and_eval_give_verdicts(verdicts: Path, tables: Path, tmp_path: Path, capsys) -> None:
    paths = [str(tables / colour / "circle-on-the-left.png") for colour in SHOWN]  # of val
    wanted = {"it is blue": ["contradiction", "entailment", "contradiction"], "it is old": ["neutral"] * 3}
    for hypothesis, labels in wanted.items():
        assert main(["ask", *paths, hypothesis, "--model", str(verdicts), "--jsonl"]) == 0
        answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
        assert sum(map(str.__eq__, answers, labels)) >= 2, (hypothesis, answers)
    found = evaluated(verdicts, f"{tables / 'verdicts.csv'}#val", tmp_path / "out.json")
    assert found == pytest.approx(measured(verdicts, "val")[1]["accuracy"])


def test_statements_about_two_pictures_beat_the_words_alone(pairs: Path) -> None:
    alone, classifier = measured(pairs, "val")
    assert alone["accuracy"] == 0.5
    for name, value in classifier.items():
        assert value > alone[name] + MARGIN, f"{name}: chance is 1/2, of {classifier}"
    (head,) = opencoca.load(pairs, device="cpu").config.model.heads
    assert head.pictures == 2 and head.labels == ("false", "true")


def test_pictures_that_are_swapped_change_the_answers(pairs: Path, tables: Path, tmp_path: Path) -> None:
    """Half of the left and right ones have two pictures of one kind, which a model blind to order gets right, too."""
    classifier = measured(pairs, "swapped")[1]
    blind = 0.5 * 1.0 + 0.5 * 0.5
    for split in ("val", "swapped"):
        found = measured(pairs, split)[1]
        for side in ("accuracy/left", "accuracy/right"):
            assert found[side] > blind + 0.1, f"{split}, {side}: without the order it is {blind} at most, of {found}"
    table, predictor = str(tables / "pairs.csv"), opencoca.load(pairs, device="cpu")
    said: list[list[tuple[Question, str]]] = []
    for split in ("val", "swapped"):
        source = open_questions(table, split)
        answers, skipped = answer_all(predictor, source)
        assert not skipped
        said.append([(question, answers[question.key]) for question in source.questions])
    turned = [(was, now) for (q, was), (r, now) in zip(*said, strict=True) if q.answers != r.answers]
    assert len(turned) == len(said[0]) // 3, "half of those that name a side"
    flipped = sum(was != now for was, now in turned) / len(turned)
    assert flipped > 0.5 + MARGIN, f"{flipped:.2f}: without the order it is 0, and 1/2 by chance"
    assert evaluated(pairs, f"{table}#swapped", tmp_path / "out.json") == pytest.approx(classifier["accuracy"])
