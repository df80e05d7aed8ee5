"""Labels and questions, end to end: commands that train briefly on drawn pictures, and beat what needs no picture."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
import torch
from tests import task_data
from tests.support import COLOURS, SHAPES, drawing, png
from tests.task_data import rows_of

import opencoca
from opencoca.cli.main import main

pytestmark = pytest.mark.timeout(300)

base = task_data.base
pictures = task_data.pictures


@pytest.fixture(scope="module")
def recognised(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recognise")
    words = ["recognise", str(pictures), "--from", str(base), "--run", str(run), "--val", "0.25", "--steps", "40"]
    assert main([*words, "--rate", "5e-3", "--batch", "16"]) == 0
    return run


@pytest.fixture(scope="module")
def questions(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions about each drawing; a fifth of the drawings for val, and one row that can't be used."""
    folder = tmp_path_factory.mktemp("questions")
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "question", "answer", "split"))
        for i, path in enumerate(sorted(pictures.rglob("*.png"))):
            split = "val" if i % 5 == 2 else "train"
            colour = path.parent.name
            writer.writerow((path, "colour?", colour, split))
            writer.writerow((path, "red?", "yes" if colour == "red" else "no", split))
        writer.writerow((path, "", "red", "train"))
    return folder


@pytest.fixture(scope="module")
def asked(base: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vqa")
    words = ["vqa", str(questions), "--from", str(base), "--run", str(run), "--steps", "50", "--rate", "4e-3"]
    changes = ["optim.part_rates=[]", "data.clump_size=2"]
    assert main([*words, "--batch", "32", "--set", *changes]) == 3  # one row was skipped
    return run


def test_labels_are_learnt_and_all_ways_are_in_one_table(recognised: Path) -> None:
    rows = rows_of(recognised)
    assert list(rows) == [
        "linear probe, image embedding",
        "linear probe, mean of the encoder's tokens",
        "nearest neighbours, image embedding",
        "frozen encoder, new pooler",
        "everything tuned",
    ]
    assert rows["everything tuned"]["val"] > 0.8, "chance is 1/6"
    assert all(row["test"] is None for row in rows.values()), "there is no test split"


def test_classify_takes_the_labels_that_the_model_was_taught(recognised: Path, pictures: Path, capsys) -> None:
    paths = [str(pictures / colour / "square.png") for colour in COLOURS]
    assert main(["classify", *paths, "--model", str(recognised), "--csv"]) == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert sum(row["label"] == Path(row["path"]).parent.name for row in found) >= 5
    model = opencoca.load(recognised, device="cpu")
    assert [head.name for head in model.config.model.heads] == ["recognition"]
    assert model.config.model.heads[0].labels == tuple(sorted(COLOURS))


def test_the_same_command_again_trains_nothing(recognised: Path, base: Path, pictures: Path) -> None:
    before = (recognised / "tuned" / "metrics.jsonl").read_text()
    words = ["recognise", str(pictures), "--from", str(base), "--run", str(recognised), "--val", "0.25"]
    assert main([*words, "--steps", "40", "--rate", "5e-3", "--batch", "16"]) == 0
    assert (recognised / "tuned" / "metrics.jsonl").read_text() == before


def test_another_base_in_the_same_folder_is_refused(recognised: Path, pictures: Path, capsys) -> None:
    words = ["recognise", str(pictures), "--from", str(recognised), "--run", str(recognised), "--val", "0.25"]
    assert main([*words, "--steps", "40", "--rate", "5e-3", "--batch", "16"]) == 2
    assert "was begun with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shapes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the drawings, with their shapes as labels."""
    table = tmp_path_factory.mktemp("shapes") / "shapes.csv"
    rows = [f"{path},{path.stem.partition('-')[0]}\n" for path in sorted(pictures.rglob("*.png"))]
    table.write_text("path,label\n" + "".join(rows), encoding="utf-8")
    return table


def labelling(data: Path, base: Path, run: Path, name: str) -> list[str]:
    short = ("--only", "frozen", "--val", "0.25", "--steps", "2", "--batch", "8")
    return ["recognise", str(data), "--from", str(base), "--run", str(run), *short, "--name", name]


def test_labels_of_another_name_stay_beside_the_new_ones(recognised, shapes, pictures, tmp_path, capsys) -> None:
    run = tmp_path / "with a space"
    assert main(labelling(shapes, recognised, run, "shapes")) == 0
    before, after = (opencoca.load(folder, device="cpu") for folder in (recognised, run))
    assert [head.name for head in after.config.model.heads] == ["recognition", "shapes"]
    coca, command, _, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    picture = str(pictures / "red" / "square.png")
    assert (coca, main([command, picture, *words, "--jsonl"])) == ("coca", 0)
    assert json.loads(capsys.readouterr().out)["label"] in {shape.replace(" ", "-") for shape in SHAPES}
    assert torch.equal(before.recognise([picture]), after.recognise([picture], head="recognition"))


def test_labels_of_the_same_name_give_way(recognised: Path, shapes: Path, tmp_path: Path) -> None:
    assert main(labelling(shapes, recognised, tmp_path / "run", "recognition")) == 0
    (head,) = opencoca.load(tmp_path / "run", device="cpu").config.model.heads
    assert head.name == "recognition" and set(head.labels).isdisjoint(COLOURS)


def test_a_name_that_no_head_can_have_is_refused_before_anything_is_measured(base, pictures, tmp_path, capsys) -> None:
    assert main(labelling(pictures, base, tmp_path / "run", "my labels")) == 2
    err = capsys.readouterr().err
    assert "the head's name 'my labels' must be of small letters" in err and "linear probe" not in err


def test_answers_are_learnt_in_three_ways(asked: Path) -> None:
    rows = rows_of(asked)
    assert list(rows) == ["question only", "classifier", "in its own words", "likeliest choice"]
    alone = rows["question only"]["val"]
    assert alone < 0.65
    for way in ("classifier", "in its own words", "likeliest choice"):
        assert rows[way]["val"] > alone + 0.15, (way, rows)


def test_ask_uses_the_head(asked: Path, pictures: Path, capsys) -> None:
    wanted = ("red", "blue", "black")
    paths = [str(pictures / colour / "square.png") for colour in wanted]
    assert main(["ask", *paths, "colour?", "--model", str(asked), "--jsonl"]) == 0
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    head = opencoca.load(asked, device="cpu").config.model.heads[0]
    assert set(answers) <= set(head.labels) and sum(map(str.__eq__, answers, wanted)) >= 2
    assert main(["ask", paths[0], "colour?", "--model", str(asked), "--beams", "1"]) == 0


def test_rows_that_cannot_be_used_are_named(base: Path, questions: Path, tmp_path: Path, capsys) -> None:
    words = ["vqa", str(questions), "--from", str(base), "--run", str(tmp_path), "--steps", "2", "--mode", "classify"]
    assert main([*words, "--answers", "3"]) == 3
    err = capsys.readouterr().err
    assert "skipped questions.csv line 146: its question is empty" in err
    assert "is not among the 3 of the vocabulary" in err and "answers: 3 in the head's vocabulary" in err
    facts = json.loads((tmp_path / "results.json").read_text())
    outside = facts["measured"]["val"]["classifier"]["facts"]["outside_vocabulary"]
    assert facts["outside_vocabulary"] > 20 and outside["count"] > 5 and "its answer is" in outside["first"][0]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "holds nothing that is known"),
        (lambda folder: folder / "only", "have the label 'only'"),
    ],
)
def test_labels_that_are_none_are_refused(base: Path, tmp_path: Path, make, told: str, capsys) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    place = make(folder)
    if place is not None:
        place.mkdir()
        for colour in ("red", "blue"):
            for shape in SHAPES:
                (place / f"{colour}-{shape}.png").write_bytes(png(drawing(colour, shape)))
    assert main(["recognise", str(folder), "--from", str(base), "--run", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err


def test_captions_are_no_labels(base: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(png(drawing("red", "bar")))
    (tmp_path / "captions.csv").write_text("picture,caption\na.png,a red bar\n")
    assert main(["recognise", str(tmp_path / "captions.csv"), "--from", str(base), "--run", str(tmp_path / "run")]) == 2
    assert "has no labels: a.png: it has no label; give a folder for each label" in capsys.readouterr().err
