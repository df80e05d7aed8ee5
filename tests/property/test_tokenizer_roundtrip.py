"""decode(encode(x)) == x for every Unicode string, alone and in a batch."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opencoca.data.tokenizer import SPECIAL_NAMES, Tokenizer, train_tokenizer

CAPTIONS = ["woman firefighter, dark skin tone", "a dog's house", "flag: Åland Islands", "family: man, woman, boy"] * 3
TOKENIZERS = {kind: train_tokenizer(CAPTIONS, 400, kind) for kind in ("unigram", "bpe")}
FRAGMENTS = st.sampled_from(
    [*SPECIAL_NAMES, " ", "  ", "\n", "\x00", "'s", "woman", "Ġ", "Ā", "<pad>", "👩🏽‍🚒", "\ufffd"]
)
TEXTS = st.text() | st.lists(FRAGMENTS | st.text(max_size=3)).map("".join)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("".join(SPECIAL_NAMES))
def test_any_text_comes_back_and_holds_no_special_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIAL_NAMES) <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(2, 40))
def test_a_batch_holds_what_fits_of_each_caption(tokenizer: Tokenizer, texts: list[str], context_length: int) -> None:
    ids, valid = tokenizer.encode_batch(texts, context_length)
    assert ids.shape[1] == valid.sum(dim=1).max() <= context_length
    for text, row, keep in zip(texts, ids, valid, strict=True):
        assert row[keep].tolist() == [1, *tokenizer.encode(text)[: context_length - 2], 2]
        assert not row[~keep].any() and not keep[keep.sum() :].any()
