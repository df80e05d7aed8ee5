"""The report: whole pages are parsed and looked through, so that nothing hangs on how they are written."""

import base64
import dataclasses
import hashlib
import math
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from opencoca import report
from opencoca.errors import OpenCoCaError
from opencoca.report import captions, charts, markup
from opencoca.report.style import CSS

VOID = {"img", "meta", "br", "hr", "link", "input"}
EVIL = '<script>alert(1)</script>" onclick="x" \'&'
SECTIONS = {"results", "examples", "zero-shot", "training", "run", "next"}


def png() -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


class Page(HTMLParser):
    """A page taken apart; tags that don't match fail at once."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.html = html
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def attributes(self, name: str) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get(name)) is not None]

    def classes(self) -> list[str]:
        return [one for value in self.attributes("class") for one in value.split()]


@pytest.fixture
def data() -> report.ReportData:
    figure = report.Figure(
        "image-to-text R@1", 47.3, "%", [("pixel neighbour", 12.04), ("no image", None)], 0.25, "ranked first", True
    )
    plain = report.Figure("CIDEr-D", 3.1234, "", [("shuffled", 0.08)])
    found = [report.Retrieved("tin whistle", 0.714, False), report.Retrieved("old harp", 0.652, True)]
    return report.ReportData(
        title="A small CoCa",
        subtitle=["trained in four minutes"],
        facts=[("parameters", "4.9 million")],
        charts=[report.Chart("Losses", "nats", [report.Curve("contrastive", [(0, 9.0), (100, 1.52)])])],
        results=[report.Results("test_pictures", "drawn at random", 400, [figure, plain])],
        controls=[("pixel neighbour", "copies the caption of the nearest picture")],
        grid=[
            report.Example(png(), "old harp", "old harp", True, found[::-1]),
            report.Example(png(), "Dark horse, running", "dark cat running away", False, found),
        ],
        grid_note="Every tenth picture.",
        confusions=[
            report.Confusion("Tone", ["light", "dark"], [[19, 1], [0, 0]], 95.0, 50.0, [("colours", 61.0)], "two tones")
        ],
        next_steps=[("Describe a picture.", "coca caption 'my photo.png'")],
        credits=[["Pictures by ", report.Link("OpenMoji", "https://openmoji.org"), "."]],
    )


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


def with_text(value, index: list[int], text: str):
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


@pytest.mark.parametrize(
    ("truth", "generated", "missing", "wrong"),
    [
        ("Dark horse, running", "dark cat running away", ["horse,"], ["cat", "away"]),
        ("a b", "a b", [], []),
        ("woman firefighter, dark skin tone", "woman firefighter", ["dark", "skin", "tone"], []),
        ("harp", "", ["harp"], []),
        ("flag of Chad", "flag of flag of Chad", [], ["flag", "of"]),
        ("Straße!", "STRASSE", [], []),
        ("🔥 — !", "🔥 !", ["—"], []),
    ],
)
def test_captions_are_compared_word_by_word(truth: str, generated: str, missing: list, wrong: list) -> None:
    in_truth, in_generated = captions.compare(truth, generated)
    assert [word for word, good in in_truth if not good] == missing
    assert [word for word, good in in_generated if not good] == wrong
    assert [word for word, _ in in_truth] == truth.split() and [word for word, _ in in_generated] == generated.split()


@pytest.mark.parametrize(
    ("generated", "exact", "verdict", "said"),
    [
        ("dark cat running", False, "✗ 1 word off", 'class="said">dark <mark>cat</mark> running'),
        ("dark blue cat runs", False, "✗ 3 words off", 'class="said">dark <mark>blue cat runs</mark>'),
        ("dark horse", False, "✗ 1 word missing", 'class="said">dark horse'),
        ("", False, "✗ no caption", 'class="said"></p>'),
        ("dark horse running", True, "✓ exact", 'class="said">dark horse running</p>'),
        ("Dark horse, running", False, "≈ same words", 'class="said">Dark horse, running'),
    ],
)
def test_a_card_says_in_words_how_right_a_caption_is(generated: str, exact: bool, verdict: str, said: str) -> None:
    card = captions.card(report.Example(png(), "dark horse running", generated, exact))
    assert verdict in Page(card).text
    assert said in card
    assert ("<u>" in card) == ("off" in verdict or "missing" in verdict or "no caption" in verdict)


def test_a_retrieved_truth_is_ticked(data: report.ReportData) -> None:
    page = Page(captions.card(data.grid[1]))
    assert "tin whistle0.71✓old harp0.65" in page.text
    assert page.classes().count("truth") == 1 and page.attributes("aria-label") == ["the true one"]


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


def test_write_makes_the_folder_and_leaves_only_the_file(data: report.ReportData, tmp_path: Path) -> None:
    path = report.write(tmp_path / "new" / "report.html", data)
    assert path.read_text(encoding="utf-8") == report.render(data)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    report.write(str(path), dataclasses.replace(data, title="Another"))
    assert "<h1 dir=\"auto\">Another</h1>" in path.read_text(encoding="utf-8")  # fmt: skip


def test_a_write_that_fails_keeps_the_old_report_and_leaves_nothing(
    data: report.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OpenCoCaError, match=r"report\.html \(No space left on device\); free some space"):
        report.write(path, data)
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_bytes_are_on_the_disk_before_the_name_is(
    data: report.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    report.write(tmp_path / "report.html", data)
    assert calls[:2] == ["fsync", "replace"]


def test_a_report_needs_the_standard_library_only() -> None:
    code = "import sys, opencoca.report; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
