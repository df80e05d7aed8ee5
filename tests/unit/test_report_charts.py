"""Bars, curves and axes of the report: in their frame, thinned without losing a peak, and round at the ticks."""

import math
import re

import pytest
from tests import report_pages
from tests.report_pages import Page

from opencoca import report
from opencoca.report import charts

data = report_pages.data


def test_a_bar_is_as_long_as_its_value_with_chance_ticked(data: report.ReportData) -> None:
    bar = charts.bar(data.results[0].figures[0])
    assert re.findall(r'width="([^"]*)" height="\d" class="(\w+)"', bar) == [
        ("100", "track"), ("47.3", "value"), ("12.04", "control")
    ]  # fmt: skip
    assert 'x1="0.25" x2="0.25"' in bar
    assert charts.bar(data.results[0].figures[1]) == "", "CIDEr-D has no full length"
    assert (
        'width="100"' in charts.bar(report.Figure("over", 140.0)) and charts.bar(report.Figure("none", math.nan)) == ""
    )


def test_a_noisy_curve_is_drawn_raw_and_smooth_and_a_smooth_one_once() -> None:
    noisy = report.Curve("noisy", [(i, 5 + (-1) ** i) for i in range(400)])
    ramp = report.Curve("ramp", [(i, i / 400) for i in range(400)])
    page = Page(charts.chart(report.Chart("t", "nats", [noisy, ramp])) or "")
    assert [name for name in page.classes() if name in ("raw", "line")].count("raw") == 1
    assert len(page.attributes("points")) == 3
    assert page.attributes("aria-label") == ["t: noisy ends at 4.86; ramp ends at 1.00"]
    smooth = charts.smooth([(x, y) for x, y in noisy.points])
    assert all(abs(y - 5) < 0.2 for _, y in smooth) and charts.smooth([(0.0, 1.0), (1.0, 9.0)]) == [(0, 1), (1, 9)]


def test_a_chart_leaves_out_what_is_not_finite_and_stays_in_its_frame() -> None:
    points = [(0, math.nan), (1, 2.0), (2, math.inf), (3, -4.0), (4, 8.0)]
    svg = charts.chart(report.Chart("t", "", [report.Curve("a", points)])) or ""
    page = Page(svg)
    places = [tuple(map(float, place.split(","))) for place in page.attributes("points")[0].split()]
    assert len(places) == 3
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)
    assert places[1][1] > places[0][1] > places[2][1], "small values are low on the page"
    assert "nan" not in svg and "inf" not in svg


def test_a_level_goes_from_side_to_side_and_is_named() -> None:
    curve = report.Curve("a", [(10, 40.0), (20, 60.0)])
    levels = [("chance", 20.0), ("unknown", math.nan)]
    page = Page(charts.chart(report.Chart("t", "%", [curve], levels=levels)) or "")
    assert "chance 20.0%" in page.text and "unknown" not in page.text
    level, drawn = ([place.split(",") for place in points.split()] for points in page.attributes("points"))
    assert [x for x, _ in level] == [x for x, _ in drawn] and len({y for _, y in level}) == 1
    assert float(level[0][1]) > float(drawn[0][1]), "chance is below the curve"


@pytest.mark.parametrize(("lowest", "label"), [(250.0, "0"), (300.0, "300")])
def test_an_axis_begins_at_0_unless_that_would_hide_the_curve(lowest: float, label: str) -> None:
    svg = charts.chart(report.Chart("t", "samples/s", [report.Curve("a", [(0, lowest), (9, 330.0)])])) or ""
    assert re.findall(r'text-anchor="end">([^<]*)<', svg)[0] == label


@pytest.mark.parametrize("points", [[(5, 3.0)], [(0, 0.0), (9, 0.0)], [(0, -2.0), (1, -2.0)], [(0, 7.0), (1, 7.0)]])
def test_a_flat_or_single_point_can_be_drawn(points: list) -> None:
    svg = charts.chart(report.Chart("t", "%", [report.Curve("a", points)])) or ""
    assert len(re.findall("<circle", svg)) == len(points)
    assert "nan" not in svg


def test_a_long_curve_is_thinned_without_losing_its_peaks_and_end() -> None:
    points = [(float(i), float(i % 7)) for i in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    kept = charts.thin(points)
    assert len(kept) <= charts.SPARE + 2
    assert (31_234.0, 99.0) in kept and kept[-1] == points[-1] and kept == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 9.7, ["0", "5", "10"]),
        (0, 1, ["0.0", "0.5", "1.0"]),
        (0, 1e-3, ["0", "5e-4", "1e-3"]),
        (0, 20_000, ["0", "10k", "20k"]),
        (-3, 4, ["-5", "0", "5"]),
        (0.11, 0.14, ["0.10", "0.12", "0.14"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, labels: list[str]) -> None:
    values = charts.ticks(low, high, 2)
    assert values[0] <= low and values[-1] >= high
    assert charts.tick_labels(values) == labels


def test_labels_at_the_ends_of_lines_do_not_overlap() -> None:
    placed = charts.spread([50.0, 50.0, 51.0, 170.0], 12, 10, 172)
    assert all(b - a >= 12 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert min(placed) >= 10 and max(placed) <= 172
