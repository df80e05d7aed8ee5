"""The page of an evaluation says what its figures are: which have no interval and why, whose p is whose."""

from tests.report_pages import Page

from opencoca.report.evaluation import Difference, EvaluationPage, Row, Table, render
from opencoca.report.plots import Cell


def page_of(models: list[str]) -> str:
    both = [Cell(40.0, 35.0, 45.0), Cell(30.0, 25.0, 35.0)][: len(models)]
    differences = [Difference(10.0, 5.0, 15.0, 0.266)] if len(models) > 1 else []
    rows = [
        Row("accuracy", "%", both, differences, 20.0, headline=True),
        Row("recall", "%", both, differences),
        Row("BLEU-4", "%", [Cell(cell.value) for cell in both], [None for _ in differences]),
        Row("SPICE", "%", [Cell(None) for _ in both], [None for _ in differences]),
    ]
    data = EvaluationPage("t", [], models, [Table("captions", "12 samples", rows)])
    return Page(render(data).split('<section id="figures">')[1].split("</section>")[0]).text


def test_a_p_says_whether_it_is_by_holms_rule() -> None:
    text = page_of(["mine", "theirs"])
    assert "difference from theirs" in text and "Holm's rule" in text
    assert text.count("p 0.266 (Holm)") == 1 and text.count("p 0.266") == 2
    assert "Holm" not in page_of(["mine"]) and "difference" not in page_of(["mine"])


def test_a_figure_without_an_interval_says_why() -> None:
    text = page_of(["mine"])
    assert "BLEU-4of the whole list, no interval40.0%" in text and text.count("no interval") == 1
