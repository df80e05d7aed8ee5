"""The report: whole pages are parsed and looked through, so that nothing hangs on how they are written."""

import base64
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests import report_pages
from tests.report_pages import Page, png

from opencoca import report
from opencoca.report import markup
from opencoca.report.style import CSS

EVIL = '<script>alert(1)</script>" onclick="x" \'&'
SECTIONS = {"results", "examples", "zero-shot", "training", "run", "next"}
data = report_pages.data


def test_a_page_is_well_formed_and_shows_what_it_was_given(data: report.ReportData) -> None:
    page = Page(report.render(data))
    assert page.html.startswith("<!doctype html>\n<html")
    for value in (
        "A small CoCa", "trained in four minutes", "4.9 million", "Losses", "test_pictures", "400 pictures",
        "drawn at random", "image-to-text R@1", "47.3%", "12.0%", "0.25%", "3.12", "0.08", "ranked first",
        "copies the caption", "Every tenth picture.", "Dark horse, running", "tin whistle", "0.71", "0.65", "95.0%",
        "two tones", "Describe a picture.", "coca caption 'my photo.png'", "Pictures by OpenMoji.",
        "Exact captions: 1 of 2. True caption found first: 1 of 2.",
    ):  # fmt: skip
        assert value in page.text, value
    assert set(page.attributes("id")) == SECTIONS
    assert [link for link in page.attributes("href") if link[0] == "#"] == [f"#{key}" for key in page.attributes("id")]


def test_headlines_stand_above_the_first_section_and_others_do_not(data: report.ReportData) -> None:
    top = report.render(data).split("<main>")[0]
    assert "47.3%" in top and "pixel neighbour" in top and "0.25%" in top
    assert "CIDEr-D" not in top


def test_the_parts_of_a_bar_are_named_before_the_first_bar(data: report.ReportData) -> None:
    top = report.render(data).split("<header>")[1]
    assert top.index("its best control") < top.index("47.3%")
    bare = dataclasses.replace(data.results[0].figures[0], controls=(), chance=None)
    page = report.render(dataclasses.replace(data, results=[report.Results("a", "b", 3, [bare])]))
    top = page.split("<header>")[1].split("<main>")[0]
    assert "this model" in top and "its best control" not in top and "chance" not in top


def test_examples_stand_under_the_list_that_they_are_of(data: report.ReportData) -> None:
    section = Page(report.render(data).split('<section id="examples">')[1].split("</section>")[0]).text
    assert section.index("old harp") < section.index("test_pictures 1 of 400 pictures") < section.index("Dark horse")
    assert "drawn at random Exact captions: 0 of 1. True caption found first: 0 of 1." in section


def test_faint_lines_are_explained_only_where_there_are_any(data: report.ReportData) -> None:
    assert "Faint lines" not in report.render(data) and "where a line ends" in report.render(data)
    noisy = report.Chart("t", "", [report.Curve("noisy", [(i, 5 + (-1) ** i) for i in range(400)])])
    assert "Faint lines" in report.render(dataclasses.replace(data, charts=[noisy]))


def strings(value) -> Iterator[str]:
    """Every text of a report, in the order of its fields."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from strings(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from strings(one)


def with_text(value: Any, index: list[int], text: str) -> Any:
    """The same report with its nth text replaced; index is a list of one number, counted down."""
    if isinstance(value, str):
        index[0] -= 1
        return text if index[0] == -1 else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: with_text(getattr(value, f.name), index, text) for f in dataclasses.fields(value)}
        return type(value)(**changed)
    if isinstance(value, list | tuple):
        return type(value)(with_text(one, index, text) for one in value)
    return value


def test_no_text_becomes_markup(data: report.ReportData) -> None:
    texts = list(strings(data))
    before = [tag for tag, _ in Page(report.render(data)).tags]
    unshown = 0
    for i, text in enumerate(texts):
        if text.startswith("https://"):
            changed = with_text(data, [i], "https://openmoji.org/" + EVIL)
        else:
            changed = with_text(data, [i], EVIL)
        page = Page(report.render(changed))
        assert "script" not in {tag for tag, _ in page.tags}, text
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes), text
        shown = page.text + " ".join(value for _, attributes in page.tags for value in attributes.values() if value)
        unshown += EVIL not in shown and "alert(1)" not in shown
        if text == data.title:
            assert [tag for tag, _ in page.tags] == before
    assert len(texts) > 35
    assert unshown == 0


def test_nothing_is_fetched_and_no_link_leaves_but_the_credits(data: report.ReportData) -> None:
    page = Page(report.render(data))
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert {link for link in page.attributes("href") if link[0] != "#"} == {"https://openmoji.org"}
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert not {"srcset", "xlink:href", "action", "style"} & {name for _, found in page.tags for name in found}
    assert "url(" not in CSS and "@import" not in CSS
    assert base64.b64decode(page.attributes("src")[0].partition(",")[2]) == png()


def test_the_policy_allows_this_style_sheet_and_inline_pictures_only(data: report.ReportData) -> None:
    page = Page(report.render(data))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)
    assert style and policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")
    assert "unsafe" not in policy
    assert "Content-Security-Policy" in page.html[: page.html.index("<style>")]


def test_an_empty_report_has_a_title_and_no_stubs() -> None:
    page = Page(report.render(report.ReportData("Only a title")))
    assert page.text.split() == ["Only", "a", "title"] * 2, "once in the head, once in the body"
    assert not page.attributes("id") and not {"nav", "section", "footer", "ul", "h2"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("results", "results"),
        ("grid", "examples"),
        ("confusions", "zero-shot"),
        ("charts", "training"),
        ("facts", "run"),
        ("next_steps", "next"),
    ],
)
def test_an_empty_list_drops_its_section(data: report.ReportData, field: str, section: str) -> None:
    page = Page(report.render(dataclasses.replace(data, **{field: []})))
    assert set(page.attributes("id")) == SECTIONS - {section}
    assert f"#{section}" not in page.attributes("href")


def test_sections_whose_parts_are_all_empty_are_dropped_too(data: report.ReportData) -> None:
    hollow = dataclasses.replace(
        data,
        results=[report.Results("a", "b", 3, [])],
        charts=[report.Chart("c", "", [report.Curve("d", [(0, math.nan)])])],
        confusions=[report.Confusion("e", [], [], 0.0)],
        grid=[report.Example(png(), "truth", "generated", False)],
    )
    page = Page(report.render(hollow))
    assert set(page.attributes("id")) == SECTIONS - {"results", "training", "zero-shot"}
    assert "captions it finds" not in page.text and "found first" not in page.text


def test_a_control_without_a_value_shows_a_dash(data: report.ReportData) -> None:
    section = report.render(data).split('<section id="results">')[1]
    rows = re.findall(r"<tr>.*?</tr>", section.split("</table>")[0])[1:]
    cells = [re.findall(r'<td[^>]*data-label="([^"]*)"[^>]*>([^<]*)<', row) for row in rows]
    columns = ["this model", "pixel neighbour", "no image", "shuffled", "chance"]
    assert [[name for name, _ in row] for row in cells] == [columns] * 2
    assert [[value for _, value in row] for row in cells] == [
        ["47.3%", "12.0%", "–", "–", "0.25%"],
        ["3.12", "–", "–", "0.08", "–"],
    ]


def test_a_confusion_gives_percent_of_each_row_and_counts_as_tooltips(data: report.ReportData) -> None:
    html = report.render(data).split('<section id="zero-shot">')[1].split("</section>")[0]
    cells = re.findall(r'<td title="([^"]*)" class="([^"]*)">([^<]*)<', html)
    assert cells == [
        ("true light, predicted light: 19 of 20", "h10 right", "95"),
        ("true light, predicted dark: 1 of 20", "h1", "5"),
        ("true dark, predicted light: 0 of 0", "h0", "–"),
        ("true dark, predicted dark: 0 of 0", "h0 right", "–"),
    ]
    assert "accuracy 95.0% · colours 61.0% · chance 50.0%" in Page(html).text.replace("\N{NO-BREAK SPACE}", " ")


def test_every_shade_that_a_confusion_uses_is_in_the_style_sheet() -> None:
    used = set()
    for n in range(1000):
        table = report.Confusion("t", ["a", "b"], [[n, 999 - n], [0, 1]], 50.0)
        used |= set(re.findall(r'class="(h\d+)', report.render(report.ReportData("t", confusions=[table]))))
    assert used == {f"h{level}" for level in range(11)}
    assert all(re.search(rf"\.{shade}{{", CSS) for shade in used)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (47.31, "%", "47.3%"), (0.25, "%", "0.25%"), (0.0, "%", "0.0%"), (100, "%", "100.0%"), (0.996, "%", "1.0%"),
        (1.234, "nats", "1.23 nats"), (12.34, "", "12.3"), (1234.5, "samples/s", "1,234 samples/s"),
        (6e-5, "", "6.0e-5"),
        (None, "%", "–"), (math.nan, "", "–"), (0, "", "0.00"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(value: float | None, unit: str, text: str) -> None:
    assert markup.number(value, unit) == text


def test_what_neither_html_nor_utf8_can_hold_is_replaced() -> None:
    page = Page(report.render(report.ReportData("a\x00b\udc80c\x1b[31m")))
    assert "a\ufffdb\ufffdc\ufffd[31m" in page.text
    page.html.encode()


def test_records_that_would_give_a_broken_page_are_refused() -> None:
    with pytest.raises(ValueError, match="isn't a PNG"):
        report.Example(b"\xff\xd8\xff", "a", "b", False)
    with pytest.raises(ValueError, match="2 labels"):
        report.Confusion("t", ["a", "b"], [[1, 2]], 1.0)
    for url in ("javascript:alert(1)", "data:text/html,x", "//example.org", "https://", " https://example.org"):
        with pytest.raises(ValueError, match="only http"):
            report.Link("x", url)
