"""`coca classify`: labels and sentences from anywhere, probes of sorted folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import commands
from tests.commands import ALL, ran, read_csv

from opencoca.infer.zeroshot import TEMPLATES

model, predictor, folder = commands.model, commands.predictor, commands.folder


def test_labels_come_from_a_file_and_templates_from_a_set(folder, predictor, capsys):
    Path("labels.txt").write_text("\ufeffred\n\n  a boat, seen \n", encoding="utf-8")
    words = ["--labels-file", "labels.txt", "--templates", "photo", "--unknown", "--json"]
    records = json.loads(ran(capsys, "classify", "pics", *words)[0])
    expected = predictor.classify(ALL, ["red", "a boat, seen"], templates="photo", unknown=True)
    for record, row in zip(records, expected.tolist(), strict=True):
        found = record["probabilities"]
        assert [found["red"], found["a boat, seen"], found["unknown"]] == pytest.approx(row)


def test_multi_label_names_the_labels_that_fit(folder, predictor, capsys):
    words = ["classify", "pics", "--labels", "red,blue,green", "--multi-label"]
    records = json.loads(ran(capsys, *words, "--json")[0])
    rows = read_csv(ran(capsys, *words, "--csv")[0])
    assert [row["labels"] for row in rows] == [", ".join(record["labels"]) for record in records]
    expected = predictor.classify(ALL, ["red", "blue", "green"], multi_label=True)
    for record, row in zip(records, expected, strict=True):
        assert set(record["labels"]) == {
            label for label, p in zip(("red", "blue", "green"), row, strict=True) if p >= 0.5
        }


def test_top_limits_what_is_shown(folder, capsys):
    words = ["classify", "pics/2.png", "--labels", "a,b,c,d", "--top", "2"]
    (row,) = read_csv(ran(capsys, *words, "--csv")[0])
    (record,) = json.loads(ran(capsys, *words, "--json")[0])
    assert list(row) == ["path", "label", "probability", "label_2", "probability_2"]
    assert list(record["probabilities"]) == [row["label"], row["label_2"]]


@pytest.fixture
def examples(folder: Path) -> Path:
    """Light and dark pictures, sorted."""
    for label, light in (("dark", 20), ("light", 235)):
        for number in range(3):
            save_flat(Path("sorted", label, f"{number}.png"), light + number * 5)
    return Path("sorted")


def save_flat(path: Path, light: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (light, light, light)).save(path)


def test_a_probe_learns_folders_is_kept_and_used_again(examples, capsys):
    save_flat(Path("new/a.png"), 10)
    save_flat(Path("new/b.png"), 240)
    Path("sorted/dark/bad.png").write_bytes(b"")
    words = ["classify", "new", "--examples", "sorted", "--save-probe", "mine.probe", "--json"]
    out, err = ran(capsys, *words, code=3)
    assert [record["label"] for record in json.loads(out)] == ["dark", "light"]
    assert err.splitlines()[0] == "skipped sorted/dark/bad.png: it is empty (0 bytes); copy or download it again"
    assert json.loads(ran(capsys, "classify", "new", "--probe", "mine.probe", "--json")[0]) == json.loads(out)


def test_a_probe_can_be_fitted_alone(examples, capsys):
    assert ran(capsys, "classify", "--examples", "sorted", "--save-probe", "mine.probe") == ("", "")
    assert Path("mine.probe").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new"], "no labels given"),
        (["--labels", "a,b"], "no paths given"),
        (["pics", "--labels", "a,b", "--examples", "sorted"], "--labels and --examples were given"),
        (["pics", "--examples", "nosuch"], "--examples nosuch can't be read"),
        (["pics", "--examples", "sorted/dark"], "fewer than two labels"),
        (["pics", "--examples", "sorted", "--unknown"], "go with --labels"),
        (["pics", "--probe", "nosuch.probe"], "nosuch.probe"),
        (["pics", "--probe", "p", "--template", "a {}"], "leave out --template"),
        (["pics", "--labels", "a,b", "--save-probe", "p"], "without --examples"),
        (["pics", "--labels", "a,b", "--top", "0"], "--top 0"),
        (["pics", "--labels", "a,b", "--template", "{}", "--templates", "photo"], "--template and --templates"),
        (["pics", "--labels", "a,b", "--templates", "phto"], "phto"),
        (["pics", "--labels-file", "nosuch.txt"], "--labels-file nosuch.txt can't be read"),
        (["pics", "--labels-file", "pics/2.png"], "it isn't UTF-8 text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_labels_that_make_no_sense_are_refused(examples, capsys, words, said):
    Path("new").mkdir()
    save_flat(Path("new/a.png"), 10)
    out, err = ran(capsys, "classify", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_the_help_names_every_set_of_templates():
    from opencoca.cli import classify

    source = Path(classify.__file__).read_text()
    line = next(line for line in source.splitlines() if "set of sentences that comes with" in line)
    assert all(name in line for name in TEMPLATES)
