"""The official VQA accuracy, against cases written out by hand from its rules."""

import pytest

from opencoca.eval.vqa import normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        (" two\n", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The red car", "red car"),
        ("a", ""),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # the table lets one apostrophe be left out, not both
        ("somebody'd", "somebodyd"),  # an oddity of the official table
        ("yes, sir", "yes sir"),
        ("black/white", "black white"),  # a mark inside of words becomes a space
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),  # a number with a comma: marks go without a space
        ("1,000-2,000", "10002000"),
        ("3.5", "3.5"),
        ("no.", "no"),
        ("u.s.a.", "usa"),
        ("what?!", "what"),
        ("it's", "it's"),
    ],
)
def test_answers_are_compared_in_this_form(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def annotated(**counts: int) -> list[str]:
    return [answer for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("answer", "counts", "expected"),
    [
        ("yes", {"yes": 10}, 1.0),
        ("yes", {"yes": 4, "no": 6}, 1.0),  # each of the 4 leaves 3 others, each of the 6 leaves 4
        ("yes", {"yes": 3, "no": 7}, (3 * 2 / 3 + 7 * 1.0) / 10),
        ("yes", {"yes": 2, "no": 8}, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("yes", {"yes": 1, "no": 9}, (1 * 0.0 + 9 * 1 / 3) / 10),
        ("maybe", {"yes": 3, "no": 7}, 0.0),
    ],
)
def test_ten_annotators(answer: str, counts: dict[str, int], expected: float) -> None:
    assert vqa_accuracy(answer, annotated(**counts)) == pytest.approx(expected)


def test_annotators_who_differ_are_compared_without_punctuation() -> None:
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == pytest.approx(1.0)
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0.0  # they agree, so theirs stand as they are, and ours doesn't


def test_one_annotator_is_right() -> None:
    assert vqa_accuracy("Two.", ["two"]) == 1.0
    assert vqa_accuracy("three", ["two"]) == 0.0
    assert vqa_accuracy("b", ["a b", "b", "c"]) == 1.0
