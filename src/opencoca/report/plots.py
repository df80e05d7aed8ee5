"""What an evaluation draws beside its figures: charts, values with their intervals by group, tables as heat maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opencoca.report.charts import side_by_side
from opencoca.report.data import Chart
from opencoca.report.markup import DASH, Html, join, number, tag, wide_table
from opencoca.report.tables import LEVELS


@dataclass(frozen=True)
class Cell:
    """One model's value of a figure, in its unit, with the bounds of its interval where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bands:
    """Groups of one kind: (name, number of samples, value with its interval), in `unit`; note says how to read them."""

    title: str
    note: str
    unit: str
    rows: Sequence[tuple[str, int, Cell]]


@dataclass(frozen=True)
class Grid:
    """A table of fractions from 0 to 1, shown as percentages on a heat map; None where there is no value."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


def drawn(charts: Sequence[Chart], bands: Sequence[Bands], grids: Sequence[Grid]) -> Html | None:
    """All of an evaluation's plots, or None if there are none."""
    parts = [side_by_side(charts), *map(_bands, bands), *map(_grid, grids)]
    return join(filter(None, parts)) or None


def _bands(data: Bands) -> Html:
    ends = [
        one for _, _, cell in data.rows for one in (cell.value, cell.high) if one is not None and math.isfinite(one)
    ]
    top = 100.0 if data.unit == "%" else max([*ends, 1e-9]) * 1.05
    if data.unit == "%" and ends and max(ends) < 50:
        top = 5.0 * math.ceil(max(*ends, 5.0) / 5)
    rows = []
    for name, count, cell in data.rows:
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row", dir="auto"),
                tag("td", f"{count:,}", class_="who"),
                tag("td", band(cell, 0.0, top, None, True), class_="plot"),
                tag("td", *value_text(cell, data.unit), class_="value"),
                class_="first",
            )
        )
    scale = f"from 0 to {number(top, data.unit).replace('.0%', '%')}"
    head = [tag("th", ""), tag("th", "samples", class_="who"), tag("th", scale), tag("th", "")]
    return join(
        [
            tag("h4", data.title, dir="auto"),
            tag("p", data.note, class_="note", dir="auto"),
            wide_table(head, rows, "models"),
        ]
    )


def _grid(data: Grid) -> Html:
    head = [tag("td", "", class_="corner"), *(tag("th", name, scope="col") for name in data.columns)]
    rows = [
        tag("tr", tag("th", name, scope="row", dir="auto"), *(_square(value) for value in values))
        for name, values in data.rows
    ]
    return join([tag("h4", f"{data.title}, %", dir="auto"), wide_table(head, rows, "heat")])


def _square(value: float | None) -> Html:
    if value is None or not math.isfinite(value):
        return tag("td", DASH, class_="h0")
    level = min(LEVELS, math.ceil(LEVELS * max(value, 0.0)))
    return tag("td", f"{100 * value:.1f}", class_=f"h{level}")


def value_text(cell: Cell, unit: str) -> list[Html | str]:
    """A value and its interval as text: 63.3% [62.9, 63.7]."""
    if cell.value is None or cell.low is None or cell.high is None:
        return [number(cell.value, unit)]
    low, high = (f"{bound:.1f}" if unit == "%" else f"{bound:.3g}" for bound in (cell.low, cell.high))
    return [number(cell.value, unit), tag("span", f" [{low}, {high}]", class_="range")]


def band(cell: Cell, low: float, high: float, chance: float | None, ours: bool, zero: bool = False) -> Html:
    """A value as a mark on a line from low to high, with its interval as a band."""
    if cell.value is None or not math.isfinite(cell.value):
        return tag("span", DASH)

    def at(value: float) -> float:
        return round(200 * (min(max(value, low), high) - low) / (high - low), 2)

    parts = [tag("rect", x=0, y=6, width=200, height=2, class_="track")]
    if zero:
        parts.append(tag("line", x1=at(0), x2=at(0), y1=0, y2=14, class_="zero"))
    if chance is not None:
        parts.append(tag("line", x1=at(chance), x2=at(chance), y1=0, y2=14, class_="chance"))
    if cell.low is not None and cell.high is not None:
        left = at(cell.low)
        parts.append(tag("rect", x=left, y=3, width=round(max(at(cell.high) - left, 0.5), 2), height=8, class_="reach"))
    parts.append(tag("rect", x=round(at(cell.value) - 0.9, 2), y=1, width=1.8, height=12, class_="at"))
    style = "span ours" if ours else "span"
    return tag("svg", *parts, viewBox="0 0 200 14", preserveAspectRatio="none", aria_hidden="true", class_=style)
