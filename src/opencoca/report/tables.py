"""The tables of a report: figures beside their controls, and confusion matrices as heat maps."""

from collections.abc import Sequence

from opencoca.report.charts import bar, best_control
from opencoca.report.data import Confusion, Figure, Results
from opencoca.report.markup import DASH, Html, count, number, tag, wide_table

LEVELS = 10  # shades of a heat map, as the style sheet has them
UPRIGHT = 5  # up to this many labels stand upright above their column


def headline(figure: Figure, where: str) -> Html:
    """One figure as a tile: the number, what it is, and what it must beat."""
    best = best_control(figure.controls)
    versus = [] if best is None else [f"{best[0]} {number(best[1], figure.unit)}"]
    if figure.chance is not None:
        versus.append(f"chance {number(figure.chance, figure.unit)}")
    return tag(
        "li",
        tag("p", number(figure.value, figure.unit), class_="big"),
        bar(figure),
        tag("p", tag("b", figure.name), class_="what"),
        tag("p", figure.note, class_="where", dir="auto") if figure.note else "",
        tag("p", where, class_="where", dir="auto"),
        tag("p", "against ", *_separated(versus), class_="versus") if versus else "",
    )


def legend(sections: Sequence[Results]) -> Html | str:
    """What the parts of the tiles' bars are, of those that occur."""
    drawn = [figure for section in sections for figure in section.figures if figure.headline and bar(figure)]
    parts = []
    if drawn:
        parts.append((tag("rect", x=0, y=2, width=22, height=6, class_="value"), "this model"))
    if any(best_control(figure.controls) for figure in drawn):
        parts.append((tag("rect", x=0, y=4, width=22, height=2, class_="control"), "its best control"))
    if any(figure.chance is not None for figure in drawn):
        parts.append((tag("line", x1=11, x2=11, y1=0, y2=10, class_="chance"), "chance"))
    keys = [
        tag("span", tag("svg", shape, viewBox="0 0 22 10", aria_hidden="true", class_="bar swatch"), name, class_="key")
        for shape, name in parts
    ]
    return tag("p", *keys, class_="keys") if keys else ""


def _separated(texts: Sequence[str]) -> list[str]:
    """Texts with dots between, each of which keeps its number on its last word's line."""
    spans = [tag("bdi", text.rpartition(" ")[0] + "\N{NO-BREAK SPACE}" + text.rpartition(" ")[2]) for text in texts]
    return [part for i, span in enumerate(spans) for part in ((" · ", span) if i else (span,))]


def results(section: Results) -> Html:
    """The table of one held-out list. Every cell names its column, for narrow screens where the header is gone."""
    names = list(dict.fromkeys(name for figure in section.figures for name, _ in figure.controls))
    bars = any(figure.unit == "%" for figure in section.figures)
    head = [tag("th", "measure", scope="col"), tag("td") if bars else "", tag("th", "this model", scope="col")]
    head += [tag("th", name, scope="col", dir="auto") for name in [*names, "chance"]]
    rows = []
    for figure in section.figures:
        controls = dict(figure.controls)
        note = tag("span", figure.note, class_="note", dir="auto") if figure.note else ""
        cells = [tag("th", tag("span", figure.name, dir="auto"), note, scope="row")]
        cells += [tag("td", bar(figure), class_="bar-cell")] if bars else []
        cells += [tag("td", number(figure.value, figure.unit), class_="ours", data_label="this model")]
        for name, value in [*((name, controls.get(name)) for name in names), ("chance", figure.chance)]:
            text = number(value, figure.unit)
            cells.append(tag("td", text, data_label=name, class_="none" if text == DASH else None))
        rows.append(tag("tr", *cells))
    return tag(
        "section",
        tag("h3", tag("span", section.name, dir="auto"), " ", tag("small", count(section.pictures, "picture"))),
        tag("p", section.description, dir="auto") if section.description else "",
        wide_table(head, rows, "results"),
    )


def confusion(data: Confusion) -> Html:
    """A heat map of row percentages, with the counts as tooltips and each row's total at its end."""
    slanted = len(data.labels) > UPRIGHT
    columns = [tag("th", tag("span", label, dir="auto"), scope="col") for label in data.labels]
    head = [tag("td", "true ↓ predicted →", class_="corner"), *columns, tag("th", "n", scope="col")]
    rows = []
    for i, (label, counts) in enumerate(zip(data.labels, data.counts, strict=True)):
        total = sum(counts)
        cells = [_cell(n, total, label, data.labels[j], i == j) for j, n in enumerate(counts)]
        name = tag("th", tag("span", label, dir="auto"), scope="row")
        rows.append(tag("tr", name, *cells, tag("td", f"{total:,}", class_="total")))
    facts = [("accuracy", data.accuracy), *data.controls, ("chance", data.chance)]
    return tag(
        "article",
        tag("h3", data.title, dir="auto"),
        tag("p", data.note, dir="auto") if data.note else "",
        tag("p", *_separated([f"{name} {number(value, '%')}" for name, value in facts]), class_="versus"),
        wide_table(head, rows, "heat slanted" if slanted else "heat"),
        class_="confusion large" if slanted else "confusion",
    )


def _cell(n: int, total: int, true: str, predicted: str, right: bool) -> Html:
    share = n / total if total else 0.0
    level = -(-LEVELS * n // total) if total else 0  # rounded up, so that one stray picture shows
    text = DASH if not total else ("·" if n == 0 else "<1" if share < 0.005 else f"{100 * share:.0f}")
    title = f"true {true}, predicted {predicted}: {n:,} of {total:,}"
    return tag("td", text, title=title, class_=f"h{level} right" if right else f"h{level}")
