"""Calibration error, Brier score and likelihood on cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.support import drawing, png

from opencoca.errors import ConfigError, DataError
from opencoca.eval import calibration
from opencoca.eval.registry import Options, Place


def test_ece_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.85, 0.75, 0.25])
    right = torch.tensor([1.0, 0.0, 1.0, 0.0])
    # Two bins of equal width: (0.25) with 0 right, and three of mean 0.85 with 2 of 3 right.
    assert calibration.ece(confidence, right, bins=2) == pytest.approx(0.25 * 0.25 + 0.75 * abs(2 / 3 - 0.85))
    # Two of equal mass: (0.25, 0.75) with 1 of 2 right, (0.85, 0.95) with 1 of 2.
    assert calibration.ece(confidence, right, "mass", bins=2) == pytest.approx(0.5 * 0.0 + 0.5 * 0.4)


def test_a_confidence_on_a_border_belongs_to_the_lower_bin() -> None:
    rows = calibration.reliability(torch.tensor([0.5, 0.51, 1.0, 0.0]), torch.ones(4), bins=2)
    assert [row.count for row in rows] == [2, 2]


def test_an_honest_model_has_the_error_of_its_floor() -> None:
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(400, generator=generator)
    right = (torch.rand(400, generator=generator) < confidence).double()
    assert calibration.ece(confidence, right) == pytest.approx(calibration.ece_floor(confidence), rel=0.5)
    assert 0.02 < calibration.ece_floor(confidence) < 0.1
    assert calibration.ece_floor(torch.ones(10)) == 0


def test_brier_and_likelihood_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], dtype=torch.double)
    truths = torch.tensor([0, 0])
    assert calibration.brier(probabilities, truths).tolist() == pytest.approx([0.09 + 0.04 + 0.01, 2.0])
    assert calibration.nll(probabilities.log(), truths)[0].item() == pytest.approx(-math.log(0.7))


@pytest.mark.parametrize(
    ("confidence", "bins", "kind", "error"),
    [([], 15, "width", DataError), ([0.5], 0, "width", ConfigError), ([0.5], 2, "height", ConfigError)],
)
def test_what_makes_no_sense_is_refused(confidence, bins, kind, error) -> None:
    with pytest.raises(error):
        calibration.reliability(torch.tensor(confidence), torch.tensor(confidence), kind, bins)


def test_the_temperature_is_fitted_on_val_and_doesn_t_change_the_accuracy(tmp_path: Path) -> None:
    for split, shape in (("own", "square"), ("held", "circle")):
        for colour in ("red", "green", "blue", "black"):
            (tmp_path / split / colour).mkdir(parents=True)
            (tmp_path / split / colour / f"{shape}.png").write_bytes(png(drawing(colour, shape)))
    data = {"classes": Place(tmp_path / "own"), "val": Place(tmp_path / "held")}
    result = calibration.make("classes/calibration", data, Options())(tiny.predictor())
    assert result.facts["fitted_on"].startswith("4 pictures of 4 classes")
    assert result.figures["factor"] > 0 and not result.higher_is_better
    assert [key for key in result.figures if key.startswith("acc1")] == ["acc1"]
    counts = [row["count"] for row in result.facts["reliability_width"]]
    assert sum(counts) == 4
    with pytest.raises(DataError, match="the same 4 pictures"):
        calibration.make("classes/calibration", {"classes": data["val"], "val": data["val"]}, Options())
