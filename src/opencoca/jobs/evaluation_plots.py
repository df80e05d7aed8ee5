"""What evaluations want drawn (`facts["charts"]`, "bands", "grids"), of one model or several, as a report's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opencoca.report.data import Chart, Curve
from opencoca.report.plots import Bands, Cell, Grid

MOST_CURVES = 4  # that stay easy to tell apart

Measured = Sequence[tuple[str, Mapping[str, Any]]]  # each model's name, and the facts of its result


def charts(measured: Measured) -> list[Chart]:
    """Charts of one title share their axes where all models' curves are few enough, else each model has its own."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for model, facts in measured:
        for one in facts.get("charts", ()):
            found.setdefault(one["title"], []).append((model, one))
    made = []
    for title, parts in found.items():
        if len(parts) == 1:
            made.append(_chart(title, parts[0][1], _curves(parts[0][1]["curves"])))
        elif sum(len(one["curves"]) for _, one in parts) <= MOST_CURVES and _same_axis(parts):
            curves = []
            for model, one in parts:
                alone = len(one["curves"]) == 1
                curves += _curves({model if alone else f"{name}, {model}": p for name, p in one["curves"].items()})
            made.append(_chart(title, parts[0][1], curves))
        else:
            made += [_chart(f"{title}: {model}", one, _curves(one["curves"])) for model, one in parts]
    return made


def bands(measured: Measured) -> list[Bands]:
    """Each model's values by group."""
    return [
        Bands(
            one["title"] if len(measured) == 1 else f"{one['title']}: {model}",
            one["note"],
            one["unit"],
            [(row["name"], row["n"], Cell(row["value"], row["low"], row["high"])) for row in one["rows"]],
        )
        for model, facts in measured
        for one in facts.get("bands", ())
    ]


def grids(measured: Measured) -> list[Grid]:
    """Each model's heat maps."""
    return [
        Grid(
            one["title"] if len(measured) == 1 else f"{one['title']}: {model}",
            one["columns"],
            [(row["name"], row["values"]) for row in one["rows"]],
        )
        for model, facts in measured
        for one in facts.get("grids", ())
    ]


def _same_axis(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    return all(one.get("x_names") == parts[0][1].get("x_names") for _, one in parts)


def _chart(title: str, content: Mapping[str, Any], curves: list[Curve]) -> Chart:
    x_range, y_range = content.get("x_range"), content.get("y_range")
    return Chart(
        title,
        content["unit"],
        curves,
        content["x_label"],
        x_names=tuple(content.get("x_names", ())),
        references=_curves(content.get("references", {})),
        x_range=(x_range[0], x_range[1]) if x_range else None,
        y_range=(y_range[0], y_range[1]) if y_range else None,
    )


def _curves(content: Mapping[str, Any]) -> list[Curve]:
    return [Curve(name, [(float(x), float(y)) for x, y in points]) for name, points in content.items()]
