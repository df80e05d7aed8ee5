"""Charts and bars as inline SVG: shapes and classes only, the colours are in the style sheet."""

import itertools
import math
from collections.abc import Iterable, Sequence

from opencoca.report.data import Chart, Figure
from opencoca.report.markup import Html, join, number, tag

WIDTH, HEIGHT = 360, 208
LEFT, RIGHT, TOP, BOTTOM = 42, 50, 10, 36
MANY = 60  # from this many points on, a noisy line gets a smooth one over it
NOISY = 4  # a line is noisy that goes up and down this many times its whole height
FEW = 25  # up to this many, each point is a dot
FROM_ZERO = 0.8  # the axis begins at 0 where the lowest value is at most this share of the highest
SPARE = 600  # a drawn line needs no more points than this
STYLES = 4

Points = list[tuple[float, float]]


def finite(points: Sequence[tuple[float, float]]) -> Points:
    """The points that can be drawn, as floats."""
    return [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float], unit: str = "") -> list[str]:
    """Labels of equally spaced ticks, with as many decimals as tell them apart."""
    top, step = max(map(abs, values)), min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    sign = "%" if unit == "%" else ""
    if 0 < top < 0.01:
        return ["0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") for value in values]
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if top >= 10 * size:
            return ["0" if value == 0 else f"{value / size:.12g}{suffix}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}{sign}" for value in values]


def smooth(points: Points) -> Points:
    """The mean of each point's neighbours, over about a thirtieth of a line that is long and noisy, else the line."""
    ys = [y for _, y in points]
    travel = sum(abs(b - a) for a, b in itertools.pairwise(ys))
    if len(points) < MANY or travel <= NOISY * (max(ys) - min(ys)):
        return points
    half = max(2, len(points) // 60)
    result = []
    for i, (x, _) in enumerate(points):
        near = points[max(0, i - half) : i + half + 1]
        result.append((x, sum(y for _, y in near) / len(near)))
    return result


def thin(points: Points) -> Points:
    """At most about `SPARE` points that look the same: the lowest and highest of each stretch, and the last."""
    if len(points) <= SPARE:
        return points
    size = math.ceil(len(points) / (SPARE // 2))
    kept: Points = []
    for i in range(0, len(points), size):
        stretch = points[i : i + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights moved apart until neighbours are `gap` from each other, within low and high if they fit."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = low
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed


def side_by_side(charts: Iterable[Chart]) -> Html | None:
    """Those charts that have something to show, side by side, or None if no chart has."""
    shown = [drawn for drawn in map(chart, charts) if drawn]
    return tag("div", *shown, class_="charts") if shown else None


def chart(data: Chart) -> Html | None:
    """A chart with its title and legend, or None if no curve has a point."""
    curves = [(curve.name, points) for curve in data.curves if (points := finite(curve.points))]
    if not curves:
        return None
    lines = [(name, points, smooth(points)) for name, points in curves]
    ends = [number(line[-1][1], "%" if data.unit == "%" else "") for _, _, line in lines]
    said = "; ".join(f"{name} ends at {end}" for (name, _, _), end in zip(lines, ends, strict=True))
    keys = [
        tag("span", swatch(i), tag("bdi", name), class_="key")
        for i, (name, _, _) in enumerate(lines)
        if len(lines) > 1 or data.references or _levels(data)
    ]
    compared = [one.name for one in data.references]
    compared += [f"{name} {number(value, data.unit)}" for name, value in _levels(data)]
    keys += [tag("span", _swatch("reference"), tag("bdi", name), class_="key") for name in compared]
    unit = tag("span", data.unit, class_="unit") if data.unit not in ("", "%") else ""
    return tag(
        "figure",
        tag(
            "figcaption", tag("b", data.title, dir="auto"), " ", unit, tag("span", *keys, class_="keys") if keys else ""
        ),
        tag(
            "svg",
            *_axes_and_lines(lines, ends, data),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=f"{data.title}: {said}",
            class_="chart",
        ),
        class_="chart-box",
    )


def is_smoothed(data: Chart) -> bool:
    """Whether the chart has a faint line of measured values below a smooth one."""
    return any(points and smooth(points) is not points for points in (finite(curve.points) for curve in data.curves))


def _levels(data: Chart) -> list[tuple[str, float]]:
    return [(name, value) for name, value in data.levels if math.isfinite(value)]


def swatch(index: int) -> Html:
    """A short piece of a curve's line for the legend."""
    return _swatch(f"line l{index % STYLES}")


def _swatch(style: str) -> Html:
    return tag(
        "svg",
        tag("line", x1=0, y1=5, x2=22, y2=5, class_=style),
        viewBox="0 0 22 10",
        aria_hidden="true",
        class_="swatch",
    )


def _axes_and_lines(lines, ends: list[str], data: Chart) -> list[Html]:
    references = [points for curve in data.references if (points := finite(curve.points))]
    xs = [x for points in (*(points for _, points, _ in lines), *references) for x, _ in points]
    ys = [y for points in (*(points for _, points, _ in lines), *references) for _, y in points]
    ys += [value for _, value in _levels(data)]
    low, high = data.y_range or (min(ys), max(ys))
    if data.y_range is None and (0 <= low <= FROM_ZERO * high or low == high >= 0):
        low = 0.0
    if low == high:
        low, high = (0.0, 1.0) if high == 0 else (2 * high, 0.0)
    y_ticks = ticks(low, high, 4)
    low, high = y_ticks[0], y_ticks[-1]
    left, right = data.x_range or (min(xs), max(xs))
    if left == right:
        left, right = left - 1, right + 1
    x_ticks = [x for x in ticks(left, right, 4) if left <= x <= right]
    if data.x_names:
        x_ticks = [float(x) for x in range(len(data.x_names)) if left <= x <= right]
    x_labels = [data.x_names[int(x)] for x in x_ticks] if data.x_names else tick_labels(x_ticks) if x_ticks else []

    def at_x(x: float) -> float:
        return round(LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Points, style: str) -> Html:
        places = " ".join(f"{at_x(x):g},{at_y(y):g}" for x, y in thin(points))
        return tag("polyline", points=places, class_=style)

    drawn = []
    for value, label in zip(y_ticks, tick_labels(y_ticks, data.unit), strict=True):
        y = at_y(value)
        style = "axis" if value == low else "gridline"
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_=style))
        drawn.append(tag("text", label, x=LEFT - 6, y=y + 3.5, text_anchor="end"))
    for value, label in zip(x_ticks, x_labels, strict=True):
        drawn.append(tag("text", label, x=at_x(value), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    drawn.append(tag("text", data.x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle"))
    drawn += [path(points, "reference") for points in references]
    drawn += [path([(left, value), (right, value)], "reference") for _, value in _levels(data)]
    drawn += [path(raw, f"raw l{i % STYLES}") for i, (_, raw, line) in enumerate(lines) if raw is not line]
    heights = [at_y(line[-1][1]) for _, _, line in lines]
    labels = spread(heights, 12, TOP, HEIGHT - BOTTOM)
    for i, (_, _, line) in enumerate(lines):
        drawn.append(path(line, f"line l{i % STYLES}"))
        dots = line if len(line) <= FEW else line[-1:]
        drawn += [tag("circle", cx=at_x(x), cy=at_y(y), r=2.2, class_=f"dot l{i % STYLES}") for x, y in dots]
        x = at_x(line[-1][0]) + 7
        drawn.append(tag("text", ends[i], x=x, y=round(labels[i] + 3.8, 1), class_=f"end l{i % STYLES}"))
    return drawn


def bar(figure: Figure) -> Html | str:
    """A percentage as a bar, its best control as a thin bar below, chance as a tick; nothing for other units."""
    if figure.unit != "%" or not math.isfinite(figure.value):
        return ""
    best = best_control(figure.controls)
    parts = [
        tag("rect", x=0, y=0, width=100, height=9, class_="track"),
        tag("rect", x=0, y=0, width=_percent(figure.value), height=6, class_="value"),
    ]
    if best is not None:
        parts.append(tag("rect", x=0, y=7, width=_percent(best[1]), height=2, class_="control"))
    if figure.chance is not None and math.isfinite(figure.chance):
        x = _percent(figure.chance)
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=9, class_="chance"))
    return tag("svg", join(parts), viewBox="0 0 100 9", preserveAspectRatio="none", aria_hidden="true", class_="bar")


def best_control(controls: Sequence[tuple[str, float | None]]) -> tuple[str, float] | None:
    """The control with the highest value, or None if none has a value."""
    known = [(name, value) for name, value in controls if value is not None and math.isfinite(value)]
    return max(known, key=lambda control: control[1], default=None)


def _percent(value: float) -> float:
    return round(min(max(value, 0.0), 100.0), 2)
