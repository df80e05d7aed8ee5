"""The bias audit: gaps by hand, tables of groups, what is wrong in them, and OpenMoji's groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.support import drawing, png

from opencoca.cli.main import main
from opencoca.errors import DataError
from opencoca.eval import annotated, bias
from opencoca.eval.registry import Options, Place

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 pictures of four colours, labelled, half of them by one photographer; one has no site."""
    lines = ["path,label,photographer,site,notes"]
    for i in range(24):
        colour = COLOURS[i % 4]
        (tmp_path / f"{i}.png").write_bytes(png(drawing(colour, ("square", "circle", "bar")[i % 3])))
        lines.append(
            f"{i}.png,{colour},{'Ann' if i < 12 else 'Ben'},{'' if i == 0 else 'north' if i % 2 else 'south'},n{i % 1}"
        )
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_gaps_by_hand() -> None:
    values = torch.tensor([1.0] * 12 + [0.0] * 8 + [1.0] * 4 + [0.0] * 3 + [1.0, float("nan")])
    groups = ["a"] * 12 + ["b"] * 12 + ["c"] * 3 + ["", "a"]
    found = bias.gaps(values, groups, resamples=500, shuffles=300)
    assert {name: (row["n"], row["mean"]) for name, row in found["groups"].items()} == {
        "a": (12, 1.0),
        "b": (12, pytest.approx(1 / 3)),
        "c": (3, 0.0),
    }
    assert (found["worst"], found["best"], found["too_small"]) == ("b", "a", ["c"])
    assert found["gap"] == pytest.approx(2 / 3)
    low, high = found["gap_interval"]
    assert low < 2 / 3 < high
    assert found["p"] < 0.02


def test_equal_groups_have_a_large_p() -> None:
    found = bias.gaps(torch.tensor([1.0, 0.0] * 20), ["a", "a", "b", "b"] * 10, resamples=500, shuffles=300)
    assert found["gap"] == 0 and found["p"] == 1
    assert bias.gaps(torch.ones(5), ["a"] * 5)["gap"] is None


def test_a_table_s_groups_and_what_is_left_out(table: Path) -> None:
    result = bias.make("groups/bias", {"groups": Place(table)}, Options(beams=1))(tiny.predictor())
    assert result.facts["columns_left_out"] == {"notes": "it has 1 group"}
    sizes = {row["column"]: {g: one["n"] for g, one in row["groups"].items()} for row in result.facts["gaps"]}
    assert sizes == {"photographer": {"Ann": 12, "Ben": 12}, "site": {"north": 12, "south": 11}}
    by_group = [result.figures[f"acc1[photographer={name}]"] for name in ("Ann", "Ben")]
    assert result.figures["acc1"] == pytest.approx(sum(by_group) / 2)
    assert result.figures["gap_acc1[photographer]"] == pytest.approx(max(by_group) - min(by_group))
    assert "caption_names_label" in result.figures


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["label,tone", "red,dark"], "no column of pictures"),
        (["path,tone", "0.png,dark"], "no truths"),
        (["path,label", "0.png,red"], "no column of groups"),
        (["path,label,tone", "none.png,red,dark"], "no row can be used.*there is no file none.png"),
        (["path,label,tone", "../0.png,red,dark"], r"leads out of the folder"),
        (["path,label,tone", "0.png,,dark"], "its label is empty"),
        (["path,label,tone", "0.png,red,dark", "1.png,blue,dark"], "no column with two groups"),
        (["key,label,tone", "0.png,red,dark"], "has no path; add path, or --data classes"),
        (["path,label,tone"], "no row that can be read"),
    ],
)
def test_bad_tables_are_told(table: Path, lines: list[str], told: str) -> None:
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=told):
        annotated.open_groups(Place(table), {})


def test_bad_rows_are_counted_and_the_others_used(table: Path) -> None:
    table.write_text(table.read_text() + "none.png,red,Ann,north,n\n0.png,red,Ann,north,n\n")
    found = annotated.open_groups(Place(table), {})
    assert len(found.pictures) == 24
    reasons = [reason for _, reason in found.pictures.skipped]
    assert [reason.split(" ")[-1] for reason in reasons] == ["none.png", "before"]


def test_keys_join_the_pictures_of_classes(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "groups.csv"
    other.write_text("key;tone\n0.png;dark\n1.png;light\n99.png;light\n1.png;light\n")
    places = {"classes": Place(table)}
    found = annotated.open_groups(Place(other), places)
    assert found.pictures.ids == ["0.png", "1.png"] and found.columns == {"tone": ["dark", "light"]}
    assert len(found.pictures.skipped) == 2 and len(found.pictures.names) == 4
    other.write_text("key;tone\n98.png;dark\n99.png;light\n")
    with pytest.raises(DataError, match=r"no key is one of .*people\.csv, such as '0\.png'"):
        annotated.open_groups(Place(other), places)


def test_groups_too_small_for_a_gap_are_refused(table: Path) -> None:
    evaluation = bias.make("groups/bias", {"groups": Place(table)}, Options(beams=1, limit=6))
    with pytest.raises(DataError, match="two groups of 10 pictures"):
        evaluation(tiny.predictor())


def test_the_command_takes_groups(table: Path, tmp_path: Path, capsys) -> None:
    model = tiny.save_model(tmp_path / "model")
    page = tmp_path / "out.html"
    words = ["eval", str(model), "--groups", str(table), "--beams", "1", "--report", str(page), "--no-cache"]
    assert main(words) == 0
    assert "largest_gap" in capsys.readouterr().out
    assert "accuracy, first guess, by photographer" in page.read_text()
