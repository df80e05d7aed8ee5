"""Captions in the report: compared word by word, and judged in words."""

import pytest
from tests import report_pages
from tests.report_pages import Page, png

from opencoca import report
from opencoca.report import captions

data = report_pages.data


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
        ("cat", False, "✗ 3 words off", 'class="said"><mark>cat</mark>'),
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
    assert "captions it finds cosine similarity" in page.text
    assert page.classes().count("truth") == 1 and page.attributes("aria-label") == ["the true one"]
