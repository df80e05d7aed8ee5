"""Heads for statements side by side: one about single pictures, one about two; what is typed after each training works.

Nothing is learnt here in a few steps; tests/e2e/test_statements.py looks at that.
"""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from tests import task_data

import opencoca
from opencoca.cli.main import main

base = task_data.base
pictures = task_data.pictures

SPLITS = ("train", "train", "train", "val", "test")


@pytest.fixture(scope="module")
def tables(pictures: Path) -> Path:
    """single.csv and double.csv beside the drawings, with splits; apart/double.csv is elsewhere, and tells none."""
    paths = [path.relative_to(pictures).as_posix() for path in sorted(pictures.glob("*/*.png"))]
    pairs = [(a, b, a.partition("/")[0] == b.partition("/")[0]) for a, b in itertools.pairwise(paths)]
    rows = [(path, "it is red", str(path.startswith("red")).lower()) for path in paths]
    write(pictures / "single.csv", ("picture", "statement", "label"), rows, SPLITS)
    double = [(left, right, "they are alike", str(same).lower()) for left, right, same in pairs]
    write(pictures / "double.csv", ("picture", "picture2", "statement", "label"), double, SPLITS)
    (pictures / "apart").mkdir()
    write(pictures / "apart" / "double.csv", ("picture", "picture2", "statement", "label"), double)
    return pictures


def write(path: Path, fields: tuple[str, ...], rows: list[tuple[str, ...]], splits: tuple[str, ...] = ()) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow([*fields, *(["split"] if splits else [])])
        out.writerows([*row, *([splits[i % len(splits)]] if splits else [])] for i, row in enumerate(rows))


def taught(table: Path, base: Path, run: Path, *words: str) -> None:
    short = ("--mode", "classify", "--steps", "2", "--batch", "8")
    assert main(["vqa", str(table), "--from", str(base), "--run", str(run), *short, *words]) == 0


@pytest.fixture(scope="module")
def single(tables: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("single")
    taught(tables / "single.csv", base, run, "--name", "snli_ve")
    return run


def heads_of(run: Path) -> list[tuple[str, int]]:
    return [(head.name, head.pictures) for head in opencoca.load(run, device="cpu").config.model.heads]


def command_after(run: str) -> list[str]:
    """The words of the command that the output ends with."""
    return shlex.split(run[run.index("now try\n") :].splitlines()[1])


def test_a_head_of_another_name_stays_beside_the_new_one(tables: Path, single: Path, tmp_path: Path, capsys) -> None:
    taught(tables / "double.csv", single, tmp_path / "kept", "--name", "nlvr2")
    assert heads_of(tmp_path / "kept") == [("snli_ve", 1), ("nlvr2", 2)]
    before, after = (opencoca.load(run, device="cpu").model.tasks["snli_ve"] for run in (single, tmp_path / "kept"))
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
    capsys.readouterr()
    picture = str(next((tables / "red").glob("*.png")))
    assert main(["ask", picture, "it is red", "--model", str(tmp_path / "kept"), "--jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("false", "true")
    taught(tables / "double.csv", single, tmp_path / "replaced", "--name", "snli_ve")
    assert heads_of(tmp_path / "replaced") == [("snli_ve", 2)]


def test_a_name_that_no_head_can_have_is_refused(tables: Path, base: Path, tmp_path: Path, capsys) -> None:
    words = ["vqa", str(tables / "single.csv"), "--from", str(base), "--run", str(tmp_path / "run")]
    assert main([*words, "--name", "SNLI-VE"]) == 2
    assert "the head's name 'SNLI-VE' must be of small letters" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vqa", "snli_ve"])
def test_a_name_for_no_head_is_refused(tables: Path, base: Path, tmp_path: Path, name: str, capsys) -> None:
    words = ["vqa", str(tables / "single.csv"), "--from", str(base), "--run", str(tmp_path / "run")]
    assert main([*words, "--mode", "generate", "--name", name]) == 2
    said = f"--name {name} names a classifier, and --mode generate trains none; leave out one of the two\n"
    assert capsys.readouterr().err == f"coca: error: {said}" and not (tmp_path / "run").exists()


def test_the_command_to_type_next_takes_as_many_pictures(tables: Path, single: Path, tmp_path: Path, capsys) -> None:
    taught(tables / "single.csv", single, tmp_path / "single")
    assert command_after(capsys.readouterr().out)[:2] == ["coca", "ask"]
    run = tmp_path / "with a space"
    taught(tables / "double.csv", single, run)
    coca, *words = command_after(capsys.readouterr().out)
    assert coca == "coca" and words[0] == "eval" and words[-1].endswith("double.csv#test")
    assert main([*words, "--no-cache", "--json"]) == 0
    (evaluation,) = json.loads(capsys.readouterr().out)["models"][0]["evaluations"]
    assert evaluation["figures"]["accuracy"] == task_data.rows_of(run)["classifier"]["test"]


def test_the_command_to_type_next_names_a_split_that_exists(tables, single, tmp_path, capsys) -> None:
    plain = tables / "untold.csv"
    plain.write_bytes((tables / "apart" / "double.csv").read_bytes())
    taught(plain, single, tmp_path / "untold")
    _, *words = command_after(capsys.readouterr().out)
    assert words[-1].endswith("untold.csv#train") and main([*words, "--no-cache"]) == 0


def test_pictures_that_are_elsewhere_are_named(tables: Path, single: Path, tmp_path: Path, capsys) -> None:
    run, moved = tmp_path / "run", tmp_path / "other pictures"
    shutil.copytree(tables, moved, ignore=shutil.ignore_patterns("*.csv"))
    taught(tables / "apart" / "double.csv", single, run, "--pictures", str(moved))
    _, *words = command_after(capsys.readouterr().out)
    assert words[-2:] == ["--pictures", str(moved)] and main([*words, "--no-cache", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["pictures"] == str(moved)
    (evaluation,) = report["models"][0]["evaluations"]
    rows = (tables / "apart" / "double.csv").read_text().splitlines()[1:]
    assert evaluation["facts"]["samples"] == len(rows), "every picture was found"
    assert main([*words[:-2], "--no-cache"]) == 2, "there are none beside the table"
    assert "can be asked" in capsys.readouterr().err


@pytest.mark.parametrize("data", [[], ["--data", "pairs=."]])
def test_pictures_of_no_questions_are_refused(single: Path, data: list[str], capsys) -> None:
    assert main(["eval", str(single), "--suite", "paper", *data, "--pictures", "here"]) == 2
    said = "--pictures here is for a table of questions; add --data questions=TABLE, or leave it out"
    assert said in capsys.readouterr().err
