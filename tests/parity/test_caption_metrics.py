"""Caption metrics against pycocoevalcap 1.2 and Stanford's PTBTokenizer, and by hand where those have no answer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from opencoca.errors import ConfigError, DataError
from opencoca.eval.metrics import Scores, bleu, cider, exact_match, rouge_l
from opencoca.eval.ptb import words

DATA = Path(__file__).parent / "data"
COCO = json.loads((DATA / "caption_metrics_cases.json").read_text("utf-8"))
PTB = json.loads((DATA / "ptb_tokens.json").read_text("utf-8"))
CASES: dict[str, Any] = COCO["cases"]
CANDIDATES = [case["candidate"] for case in CASES.values()]
REFERENCES = [case["references"] for case in CASES.values()]
TOLERANCE = 1e-12  # measured worst: 2.7e-15 (CIDEr-D of one picture)


def assert_close(scores: Scores, total: float, items: list[float]) -> None:
    assert scores.total == pytest.approx(total, abs=TOLERANCE)
    assert scores.items == pytest.approx(items, abs=TOLERANCE)


def test_tokens_of_the_coco_cases() -> None:
    for case in CASES.values():
        assert words(case["candidate"]) == case["candidate_tokenized"].split()
        assert [words(text) for text in case["references"]] == [text.split() for text in case["references_tokenized"]]


@pytest.mark.parametrize(("text", "tokens"), PTB["cases"])
def test_tokens_of_odd_text(text: str, tokens: str) -> None:
    assert words(text) == tokens.split(" ")


def test_bleu() -> None:
    for order, scores in enumerate(bleu(CANDIDATES, REFERENCES)):
        assert_close(scores, COCO["scores"]["bleu_1_to_4"][order], PTB["bleu_per_picture"][order])


def test_rouge_l() -> None:
    expected = COCO["scores"]["rouge_l_per_image"]
    assert_close(rouge_l(CANDIDATES, REFERENCES), COCO["scores"]["rouge_l"], [expected[key] for key in CASES])


def test_cider_d_is_what_the_coco_evaluation_calls_cider() -> None:
    expected = COCO["scores"]["cider_per_image"]
    scores = cider(CANDIDATES, REFERENCES)
    assert_close(scores, COCO["scores"]["cider"], [expected[key] for key in CASES])
    assert cider(CANDIDATES, REFERENCES, "cider").total > scores.total + 0.1, "without clipping and length penalty"


def test_plain_cider_by_hand() -> None:
    """Two pictures; only "red" and "dog" differ between them, so each has idf ln 2 and "a" has none."""
    references = [["a red dog"], ["a cat", "a cat"]]
    assert cider(["a red dog", "a cat"], references, "cider").items == pytest.approx([7.5, 5.0]), "3 and 2 of 4 orders"
    # 1-grams: red twice against red, dog: cosine 2 / (2 sqrt 2); 2-grams: "red red" against "a red", "red dog": 0
    assert cider(["red red", "a cat"], references, "cider").items[0] == pytest.approx(10 * math.sqrt(0.5) / 4)
    # clipping halves it, one word too few costs exp(-1/72)
    expected = 10 * math.sqrt(0.5) / 2 / 4 * math.exp(-1 / 72)
    assert cider(["red red", "a cat"], references, "cider_d").items[0] == pytest.approx(expected)


def test_a_set_of_one_picture_has_no_document_frequencies() -> None:
    assert cider(["a dog"], [["a dog"]]).total == 0.0


def test_exact_match_folds_case_and_white_space_only() -> None:
    references = [["a dog", "Two Dogs"], ["café"], ["a cat"], ["a b"]]
    assert exact_match([" two  dogs\n", "CAFÉ", "a cat.", "ab"], references) == Scores(0.5, [1.0, 1.0, 0.0, 0.0])


def test_empty_candidates_score_nothing() -> None:
    references = [["a dog"], ["a cat"]]
    for metric in (rouge_l, cider, exact_match):
        assert metric(["", "!"], references).items == [0.0, 0.0]
    assert max(scores.total for scores in bleu(["", "!"], references)) == pytest.approx(0.0)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider, exact_match])
def test_bad_input_is_refused(metric: Any) -> None:
    with pytest.raises(DataError, match="2 candidate captions and 1 sets"):
        metric(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="no captions"):
        metric([], [])
    with pytest.raises(DataError, match="references of caption 1"):
        metric(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="references of caption 0"):
        metric(["a"], ["a"])
    with pytest.raises(ConfigError, match="'cider_r'"):
        cider(["a"], [["a"]], "cider_r")  # type: ignore[arg-type]
