"""CLIP's tokenizer against the ids of OpenCLIP 3.3.0."""

import json
from pathlib import Path

import pytest

from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.tokenizer import SpecialIds

SOURCE = json.loads((Path(__file__).parent / "data" / "clip_tokenizer_cases.json").read_text("utf-8"))
CASES = SOURCE["cases"]


def test_the_vocabulary_is_the_published_one() -> None:
    tokenizer = ClipTokenizer.published()
    assert tokenizer.vocab_size == SOURCE["vocab_size"] == 49408 and len(CASES) == 54
    assert tokenizer.special == SpecialIds(pad=0, start=49406, end=49407)


@pytest.mark.parametrize("case", CASES, ids=[ascii(case["text"][:30]) for case in CASES])
def test_the_ids_are_the_same(case: dict) -> None:
    tokenizer, wanted = ClipTokenizer.published(), case["ids_76"]
    ids, valid = tokenizer.encode_batch([case["text"]], context_length=76)
    assert ids[0].tolist() == wanted
    assert valid[0].tolist() == [token != 0 for token in wanted]
    if len(wanted) < 76:
        for context_length in (77, 128, 256):
            assert tokenizer.encode_batch([case["text"]], context_length)[0][0].tolist() == wanted


@pytest.mark.parametrize("context_length", [76, 77, 128, 256])
def test_a_batch_of_all_of_them_fits_any_context(context_length: int) -> None:
    """Only the two cases that are longer than 76 ids depend on the context: they fill it, end id last."""
    ids, _ = ClipTokenizer.published().encode_batch([case["text"] for case in CASES], context_length)
    for row, case in zip(ids.tolist(), CASES, strict=True):
        wanted = case["ids_76"]
        if len(wanted) < 76:
            assert row == wanted + [0] * (len(row) - len(wanted))
        else:
            assert row[:75] == wanted[:75] and row[: row.index(49407) + 1][:-1].count(49407) == 0
            assert row[: row.index(49407) + 1] == [t for t in row if t] and len(row) <= context_length
