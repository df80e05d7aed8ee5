"""Charts, bands and heat maps of evaluations, for one model and for several."""

from opencoca.jobs.evaluation_names import shown_name
from opencoca.jobs.evaluation_plots import bands, charts, grids
from opencoca.report.plots import drawn

CHART = {
    "title": "accuracy by resolution",
    "unit": "%",
    "x_label": "pixels",
    "x_names": ["16", "32 (full)"],
    "curves": {"accuracy": [[0, 10.0], [1, 40.0]]},
    "references": {"chance": [[0, 5.0], [1, 5.0]]},
}
BAND = {"name": "a<b", "n": 12, "value": 40.0, "low": 30.0, "high": 50.0}
ROWS = [{"name": "fog", "values": [0.126]}, {"name": "snow", "values": [None]}]
FACTS = {
    "charts": [CHART],
    "bands": [{"title": "by tone", "note": "gap 3", "unit": "%", "rows": [BAND]}],
    "grids": [{"title": "table", "columns": ["1"], "rows": ROWS}],
}


def test_two_models_share_a_chart_and_have_their_own_tables() -> None:
    measured = [("mine", FACTS), ("theirs", FACTS)]
    (chart,) = charts(measured)
    assert [curve.name for curve in chart.curves] == ["mine", "theirs"]
    assert [curve.name for curve in chart.references] == ["chance"]
    assert [one.title for one in bands(measured)] == ["by tone: mine", "by tone: theirs"]
    assert [one.title for one in grids(measured)] == ["table: mine", "table: theirs"]
    many = {"charts": [{**CHART, "curves": {name: [[0, 1.0]] for name in "abc"}}]}
    assert [one.title for one in charts([("mine", many), ("theirs", many)])] == [
        "accuracy by resolution: mine",
        "accuracy by resolution: theirs",
    ]


def test_what_is_drawn_shows_names_values_and_references() -> None:
    measured = [("mine", FACTS)]
    page = drawn(charts(measured), bands(measured), grids(measured))
    assert page is not None and drawn([], [], []) is None
    for text in (
        ">32 (full)<",
        'class="reference"',
        "chance",
        "a&lt;b",
        "40.0%",
        "[30.0, 50.0]",
        "12.6",
        'class="h2"',
        "–",
    ):
        assert text in page, text


def test_figures_have_names_in_words() -> None:
    assert shown_name("acc1[skin tone=dark]") == "skin tone dark: accuracy, first guess"
    assert shown_name("gap_cider_d[gender]") == "gap by gender: CIDEr-D"
    assert shown_name("acc1_16px") == "accuracy at 16 pixels"
    assert shown_name("glass_blur") == "glass blur"
