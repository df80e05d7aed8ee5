"""The page from its parts: what it learnt, how well and compared to what first, the evidence below."""

import base64
import hashlib
import itertools
from collections.abc import Sequence

from opencoca.report import captions, charts, tables
from opencoca.report.data import Example, Link, ReportData, Results
from opencoca.report.markup import Html, count, join, tag
from opencoca.report.style import CSS

GLANCE = 6  # examples at the top of the page

Section = tuple[str, str, Html] | None  # the anchor, the heading and what is below it


def render(data: ReportData) -> str:
    """The whole page as HTML: one file that asks nothing of any other."""
    built = (_results(data), _grid(data), _confusions(data), _charts(data), _facts(data), _next_steps(data))
    return document(data.title, _top(data), built, data.credits)


def document(
    title: str, top: Sequence[Html], built: Sequence[Section], credits: Sequence[Sequence[str | Link]] = ()
) -> str:
    """A page of sections, those that are there, below its top, with links to them."""
    sections = [section for section in built if section]
    contents = [tag("a", heading, href=f"#{key}") for key, heading, _ in sections]
    style = Html(CSS)
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode("ascii")
    # The page's own style sheet is named by its digest, so text that slipped through as markup could not even style.
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", style),
    ]
    body = [
        tag("header", *top, tag("nav", *contents, aria_label="Contents") if len(contents) > 1 else ""),
        tag("main", *(tag("section", tag("h2", heading), content, id=key) for key, heading, content in sections)),
        tag("footer", *(tag("p", *map(_credit, paragraph)) for paragraph in credits)) if credits else "",
    ]
    html = tag("html", tag("head", *(join((line, "\n")) for line in head)), tag("body", *body), lang="en")
    return f"<!doctype html>\n{html}\n"


def opening(title: str, subtitle: Sequence[str]) -> list[Html]:
    """How every page begins."""
    return [tag("h1", title, dir="auto"), *(tag("p", line, dir="auto", class_="lead") for line in subtitle)]


def _top(data: ReportData) -> list[Html]:
    parts = opening(data.title, data.subtitle)
    tiles = [
        tables.headline(figure, f"{section.name}, {count(section.pictures, 'picture')}")
        for section in data.results
        for figure in section.figures
        if figure.headline
    ]
    if tiles:
        parts += [tables.legend(data.results), tag("ul", *tiles, class_="tiles")]
    if data.grid:
        parts.append(captions.strip(data.grid[:GLANCE]))
    return parts


def _results(data: ReportData) -> Section:
    shown = [section for section in data.results if section.figures]
    if not shown:
        return None
    intro = (
        "Every number is for pictures that training never saw. The bar is this model, the thin grey bar its best "
        "control, the upright tick chance."
    )
    parts = [tag("p", intro, class_="intro"), *map(tables.results, shown)]
    if data.controls:
        parts += [tag("h3", "What the controls are"), terms(data.controls, "terms")]
    return "results", "How well, compared to what", join(parts)


def _grid(data: ReportData) -> Section:
    if not data.grid:
        return None
    legend = [
        tag("mark", "Wavy words"),
        " are not in the true caption at that place, ",
        tag("u", "dotted words"),
        " are missing from the generated one.",
    ]
    note = [tag("span", data.grid_note, dir="auto")] if data.grid_note else []
    missed = not all(example.exact for example in data.grid)
    parts = [tag("p", *note, _tally(data.grid), " ", *(legend if missed else ()), class_="intro")]
    lists = {section.name: section for section in data.results}
    for name, group in itertools.groupby(data.grid, key=lambda example: example.held_out):
        examples = list(group)
        if name:
            section = lists.get(name, Results(name, "", len(examples), ()))
            shown = f"{len(examples)} of {count(section.pictures, 'picture')}"
            parts.append(tag("h3", tag("span", name, dir="auto"), " ", tag("small", shown)))
            parts.append(tag("p", tag("span", section.description, dir="auto"), _tally(examples), class_="intro"))
        parts.append(tag("div", *map(captions.card, examples), class_="grid"))
    return "examples", "Pictures it never saw", join(parts)


def _tally(examples: Sequence[Example]) -> str:
    """How many of the examples are right."""
    exact = sum(example.exact for example in examples)
    asked = [example for example in examples if example.retrieved]
    first = sum(example.retrieved[0].is_truth for example in asked)
    found = f" True caption found first: {first:,} of {len(asked):,}." if asked else ""
    return f" Exact captions: {exact:,} of {len(examples):,}.{found}"


def _confusions(data: ReportData) -> Section:
    shown = [confusion for confusion in data.confusions if confusion.labels]
    if not shown:
        return None
    intro = "Each row shows where the pictures of one true label went, in percent; outlined cells are right."
    parts = tag("div", *map(tables.confusion, shown), class_="confusions")
    return "zero-shot", "Zero-shot classification", join([tag("p", intro, class_="intro"), parts])


def _charts(data: ReportData) -> Section:
    shown = charts.side_by_side(data.charts)
    if shown is None:
        return None
    intro = "The number is where a line ends."
    if any(map(charts.is_smoothed, data.charts)):
        intro = "Faint lines are measured values, strong lines the same smoothed; the number is where a line ends."
    return "training", "How it learnt", join([tag("p", intro, class_="intro"), shown])


def _facts(data: ReportData) -> Section:
    return ("run", "The run", terms(data.facts, "facts")) if data.facts else None


def _next_steps(data: ReportData) -> Section:
    if not data.next_steps:
        return None
    items = [
        tag("li", tag("span", sentence, dir="auto"), tag("pre", tag("code", command)))
        for sentence, command in data.next_steps
    ]
    return "next", "What to type next", tag("ol", *items, class_="next")


def terms(pairs: Sequence[tuple[str, str]], style: str) -> Html:
    """Names with what they mean, as the style "terms" or "facts"."""
    if style == "facts":
        return tag(
            "dl", *(tag("div", tag("dt", name), tag("dd", value, dir="auto")) for name, value in pairs), class_=style
        )
    return tag("dl", *(join((tag("dt", name), tag("dd", value, dir="auto"))) for name, value in pairs), class_=style)


def _credit(part: str | Link) -> str:
    return tag("a", part.text, href=part.url, rel="noopener noreferrer") if isinstance(part, Link) else part
