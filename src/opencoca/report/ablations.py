"""The report of ablations: tables of settings with their ranges over seeds, beside what a paper measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opencoca.report.charts import side_by_side
from opencoca.report.data import Chart, Link
from opencoca.report.markup import DASH, Html, join, number, tag, wide_table
from opencoca.report.page import document, opening, terms
from opencoca.report.plots import Cell, band


@dataclass(frozen=True)
class Difference:
    """A mean difference from the reference row, with its interval where there are seeds enough for one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Value:
    """A measure over seeds: mean, least and greatest; and its difference from the reference row."""

    mean: float
    low: float
    high: float
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """A setting: name, a note or "", seeds, values by measure (None: not measured), costs and the paper's, as texts."""

    name: str
    note: str
    seeds: int
    values: Sequence[Value | None]
    costs: Sequence[str]
    paper: Sequence[str]
    is_reference: bool = False


@dataclass(frozen=True)
class Measure:
    """What a column shows. unit: "%" wants values of 0 to 100. better: "more" or "less"."""

    name: str
    unit: str
    better: str = "more"


@dataclass(frozen=True)
class Table:
    """One question with its settings."""

    key: str
    title: str
    question: str
    measures: Sequence[Measure]
    costs: Sequence[str]
    paper: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class AblationPage:
    """All that the page shows."""

    title: str
    subtitle: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()
    charts_note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    method: Sequence[str] = ()
    failed: Sequence[tuple[str, str]] = ()
    credits: Sequence[Sequence[str | Link]] = ()


def render(data: AblationPage) -> str:
    """The page as HTML, one file that asks nothing of any other."""
    sections = [(table.key, table.title, _table(table)) for table in data.tables]
    if drawn := side_by_side(data.charts):
        note = tag("p", data.charts_note, class_="intro")
        sections.append(("gradients", "How the objectives' gradients agree", join([note, drawn])))
    if data.failed:
        sections.append(("failed", f"Failed ({len(data.failed)})", terms(data.failed, "terms")))
    if data.facts:
        sections.append(("facts", "The runs", terms(data.facts, "facts")))
    if data.method:
        sections.append(("method", "How to read it", join(tag("p", line) for line in data.method)))
    return document(data.title, opening(data.title, data.subtitle), sections, data.credits)


def _table(table: Table) -> Html:
    parts = [tag("p", table.question, class_="intro")]
    shown = [i for i in range(len(table.measures)) if any(row.values[i] is not None for row in table.rows)]
    parts += [_plots(table, i) for i in shown]
    parts += [tag("h3", "What it costs" + (", and the paper's figures" if table.paper else "")), _costs(table)]
    parts += [tag("p", note, class_="note", dir="auto") for note in table.notes]
    return join(parts)


def _plots(table: Table, i: int) -> Html:
    """One measure: a line per row with the mean as a mark and the range over seeds as a band, on one scale."""
    measure = table.measures[i]
    known = [row.values[i] for row in table.rows]
    bounds = [bound for value in known if value is not None for bound in (value.low, value.high)]
    low, high = _scale(bounds, measure.unit)
    rows = []
    for row, value in zip(table.rows, known, strict=True):
        if value is None:
            continue
        cell = Cell(value.mean, value.low, value.high)
        rows.append(
            tag(
                "tr",
                tag("th", tag("span", row.name, dir="auto"), scope="row"),
                tag("td", band(cell, low, high, None, row.is_reference), class_="plot"),
                tag("td", *_text(value, measure.unit), class_="value"),
                tag("td", *_against(row, value, measure.unit)),
                class_="first" if row.is_reference else None,
            )
        )
    scale = f"{number(low, measure.unit)} to {number(high, measure.unit)}"
    titles = ("setting", scale, "mean [least, greatest]", "difference from the reference [95%]")
    drawn = wide_table((tag("th", title, scope="col") for title in titles), rows, "models stack")
    return join([tag("h3", measure.name, tag("small", f"{measure.better} is better")), drawn])


def _costs(table: Table) -> Html:
    """Seeds and costs beside the paper's figures."""
    titles = ["setting", "seeds", *table.costs, *(f"paper: {name}" for name in table.paper)]
    rows = []
    for row in table.rows:
        note = tag("span", row.note, class_="note", dir="auto") if row.note else ""
        cells = [tag("th", tag("span", row.name, dir="auto"), note, scope="row"), tag("td", str(row.seeds))]
        cells += [tag("td", text or DASH) for text in [*row.costs, *row.paper]]
        cells += [tag("td", DASH)] * (len(table.paper) - len(row.paper))
        rows.append(tag("tr", *cells, class_="first" if row.is_reference else None))
    return wide_table((tag("th", title, scope="col") for title in titles), rows, "models")


def _text(value: Value, unit: str) -> list[Html | str]:
    if value.low == value.high:
        return [number(value.mean, unit)]
    bounds = f" [{_plain(value.low, unit)}, {_plain(value.high, unit)}]"
    return [number(value.mean, unit), tag("span", bounds, class_="range")]


def _against(row: Row, value: Value, unit: str) -> list[Html | str]:
    if row.is_reference:
        return [tag("span", "reference", class_="range")]
    if value.difference is None:
        return [DASH]
    decimals = 1 if unit == "%" else 2
    mean, low, high = value.difference.mean, value.difference.low, value.difference.high
    text = f"{mean:+.{decimals}f}"
    if low is None or high is None:
        return [text]
    sure = low > 0 or high < 0
    bounds = f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return [tag("span", text, class_="sure" if sure else None), tag("span", bounds, class_="range")]


def _plain(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "%" else f"{value:.2f}"


def _scale(bounds: Sequence[float], unit: str) -> tuple[float, float]:
    """Round ends around all values, within what the unit allows."""
    low, high = min(bounds), max(bounds)
    reach = max(high - low, 0.02 * abs(high), 1e-6)
    step = 10.0 ** math.floor(math.log10(reach))
    low, high = math.floor((low - 0.1 * reach) / step) * step, math.ceil((high + 0.1 * reach) / step) * step
    return (max(0.0, low) if min(bounds) >= 0 else low), (min(high, 100.0) if unit == "%" else high)
