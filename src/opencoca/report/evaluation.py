"""The report of evaluations: models side by side with their intervals, differences with p values, what is missing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opencoca.report.data import Chart
from opencoca.report.markup import DASH, Html, count, join, number, tag, wide_table
from opencoca.report.page import Section, document, opening, terms
from opencoca.report.plots import Bands, Cell, Grid, band, drawn, value_text

SURE = 0.05  # a p below it is printed strong


@dataclass(frozen=True)
class Difference:
    """By how much the first model is above another, with interval and p value; note says what is odd about it."""

    value: float
    low: float
    high: float
    p: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One figure of an evaluation: a cell per model, and for each but the first the difference from the first."""

    name: str
    unit: str
    cells: Sequence[Cell]
    differences: Sequence[Difference | None] = ()
    chance: float | None = None
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """One evaluation: its rows, a line on what was measured, (name, value) facts below, and what is drawn of it."""

    name: str
    line: str
    rows: Sequence[Row]
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    bands: Sequence[Bands] = ()
    grids: Sequence[Grid] = ()


@dataclass(frozen=True)
class EvaluationPage:
    """All that the page shows. missing and left_out: (what, why); method: sentences on how to read it."""

    title: str
    subtitle: Sequence[str]
    models: Sequence[str]
    tables: Sequence[Table]
    missing: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    about: Sequence[tuple[str, str]] = ()
    method: Sequence[str] = ()


def render(data: EvaluationPage) -> str:
    """The page as HTML, one file that asks nothing of any other."""
    sections = [_glance(data), _differences(data), _plots(data), _all(data), *_lists(data)]
    return document(data.title, opening(data.title, data.subtitle), sections)


def _glance(data: EvaluationPage) -> Section:
    headlines = [(table, row) for table in data.tables for row in table.rows if row.headline]
    if not headlines:
        return None
    intro = "The upright mark is the value, the band its 95% bootstrap interval, the dashed line chance."
    bodies = []
    for table, row in headlines:
        top = _top(row)
        measured = [(model, cell) for model, cell in zip(data.models, row.cells, strict=True) if cell.value is not None]
        for i, (model, cell) in enumerate(measured):
            ours = model == data.models[0]
            name = [tag("span", table.name, dir="auto"), tag("span", row.name, class_="note")] if i == 0 else [""]
            style = " ".join(filter(None, ("first" if ours else "", "more" if i + 1 < len(measured) else "")))
            plot = band(cell, 0.0, top, row.chance, ours)
            bodies.append(
                tag(
                    "tr",
                    tag("th", *name, scope="row"),
                    tag("td", model, class_="who", dir="auto"),
                    tag("td", plot, class_="plot"),
                    tag("td", *value_text(cell, row.unit), class_="value"),
                    class_=style or None,
                )
            )
    scale = tag("th", "from 0 to 100%, or to the end of the measure's own scale", scope="col")
    head = [tag("th", "evaluation", scope="col"), tag("th", "model", scope="col", class_="who"), scale, tag("th")]
    table = wide_table(head, bodies, "models stack")
    return "glance", "At a glance", join([tag("p", intro, class_="intro"), table])


def _differences(data: EvaluationPage) -> Section:
    found = [
        (table, row, data.models[i + 1], difference)
        for table in data.tables
        for row in table.rows
        if row.headline
        for i, difference in enumerate(row.differences)
        if difference is not None
    ]
    if not found:
        return None
    intro = (
        f"How far {data.models[0]} is above (right) or below (left) each other model on the same samples, with the "
        "paired bootstrap's interval. p is of a two-sided sign-flip test, made larger for the number of headlines by "
        "Holm's rule."
    )
    rows = []
    for table, row, other, difference in found:
        reach = max(abs(difference.low), abs(difference.high), 1e-9)
        top = _round_up(reach, row.unit)
        cell = Cell(difference.value, difference.low, difference.high)
        unit = " points" if row.unit == "%" else f" {row.unit}".rstrip()
        note = tag("span", difference.note, class_="note") if difference.note else ""
        rows.append(
            tag(
                "tr",
                tag("th", tag("span", table.name, dir="auto"), tag("span", row.name, class_="note"), note, scope="row"),
                tag("td", f"against {other}", class_="who", dir="auto"),
                tag("td", band(cell, -top, top, None, True, zero=True), class_="plot"),
                tag(
                    "td",
                    f"{_signed(difference.value, row.unit)}{unit} ",
                    tag(
                        "span",
                        f"[{_signed(difference.low, row.unit)}, {_signed(difference.high, row.unit)}]",
                        class_="range",
                    ),
                    class_="value",
                ),
                tag("td", _p_text(difference.p), class_="sure" if difference.p < SURE else "p"),
            )
        )
    titles = ("evaluation", "", "0 in the middle, each on its own scale", "", "by Holm's rule")
    table = wide_table((tag("th", title) for title in titles), rows, "models stack")
    return "differences", "Differences", join([tag("p", intro, class_="intro"), table])


def _plots(data: EvaluationPage) -> Section:
    parts = []
    for table in data.tables:
        shown = drawn(table.charts, table.bands, table.grids)
        if shown:
            parts += [tag("h3", table.name, dir="auto"), tag("p", table.line, class_="note", dir="auto"), shown]
    return ("plots", "Curves and groups", tag("div", *parts, class_="plots")) if parts else None


def _all(data: EvaluationPage) -> Section:
    if not data.tables:
        return None
    parts = []
    for table in data.tables:
        head = [
            tag("th", "measure", scope="col"),
            *(tag("th", model, scope="col", dir="auto") for model in data.models),
        ]
        others = data.models[1:] if any(row.differences for row in table.rows) else ()
        head += [tag("th", f"difference from {other}", scope="col", dir="auto") for other in others]
        head += [tag("th", "chance", scope="col")] if any(row.chance is not None for row in table.rows) else []
        rows = []
        for row in table.rows:
            cells = [tag("td", *value_text(cell, row.unit), class_="value") for cell in row.cells]
            for i in range(len(others)):
                difference = row.differences[i] if i < len(row.differences) else None
                cells.append(tag("td", *_told(difference, row.unit, row.headline)))
            cells += [tag("td", number(row.chance, row.unit))] if len(head) > 1 + len(cells) else []
            name = [tag("b", row.name) if row.headline else row.name]
            if all(cell.low is None for cell in row.cells) and any(cell.value is not None for cell in row.cells):
                name.append(tag("span", "of the whole list, no interval", class_="note"))
            rows.append(tag("tr", tag("th", *name, scope="row"), *cells))
        parts += [
            tag("h3", table.name, dir="auto"),
            tag("p", table.line, class_="note", dir="auto") if table.line else "",
            wide_table(head, rows, "models"),
            terms(table.facts, "terms") if table.facts else "",
        ]
    if any(row.differences for table in data.tables for row in table.rows):
        intro = (
            "p is of a two-sided sign-flip test. That of a headline (in bold) is made larger for the number of "
            "headlines by Holm's rule, and says so; others are of each figure alone."
        )
        parts.insert(0, tag("p", intro, class_="intro"))
    return "figures", "Every figure", join(parts)


def _lists(data: EvaluationPage) -> list[Section]:
    missing = terms(data.missing, "terms") if data.missing else None
    left = terms(data.left_out, "terms") if data.left_out else None
    note = tag("p", "Counted here and in the JSON, and in no figure.", class_="intro")
    method = join(tag("p", line) for line in data.method) if data.method else None
    return [
        ("missing", f"Not measured ({len(data.missing)})", missing) if missing else None,
        ("left-out", f"Left out ({count(len(data.left_out), 'kind')})", join([note, left])) if left else None,
        ("about", "What was measured", terms(data.about, "facts")) if data.about else None,
        ("method", "How to read it", method) if method else None,
    ]


def _top(row: Row) -> float:
    """The end of a figure's scale: 100%, or a round number beyond the largest value."""
    if row.unit == "%":
        return 100.0
    known = [one for cell in row.cells for one in (cell.value, cell.high) if one is not None and math.isfinite(one)]
    return _round_up(max([*known, 1e-9]), row.unit)


def _round_up(value: float, unit: str) -> float:
    """A round number, 1, 2 or 5 times a power of ten, at or above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    top = next(m * power for m in (1, 2, 5, 10) if m * power >= value * 0.999)
    return min(top, 100.0) if unit == "%" else top


def _told(difference: Difference | None, unit: str, headline: bool) -> list[Html | str]:
    if difference is None:
        return [DASH]
    rule = " (Holm)" if headline else ""
    p = tag("span", f" {_p_text(difference.p)}{rule}", class_="sure" if difference.p < SURE else "p")
    return [_signed(difference.value, unit), p]


def _p_text(p: float) -> str:
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def _signed(value: float, unit: str) -> str:
    return f"{value:+.1f}" if unit == "%" else f"{value:+.3g}"
