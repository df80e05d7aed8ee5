"""CLIP's tokenizer: its text, its special ids, and what it ships."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opencoca.data import clip_tokenizer
from opencoca.data.clip_tokenizer import MERGES_FILE, ClipTokenizer, cleaned
from opencoca.data.tokenizer import SpecialIds
from opencoca.errors import ConfigError, DataError

MERGES = ("t h", "th e</w>", "d o", "do g</w>")
SMALL = ClipTokenizer.from_merges(MERGES)
WHOLE = ClipTokenizer.published()
FRAGMENTS = st.sampled_from(
    [
        "<start_of_text>",
        "<end_of_text>",
        "&amp;",
        "&lt;",
        "'s",
        "'ſ",
        "</w>",
        "!",
        "İ",
        "Ã©",
        "ﬁ",
        "e\u0301",
        "👩🏽‍🚒",
        " ",
    ]
)
TEXTS = st.text() | st.lists(FRAGMENTS | st.text(max_size=3)).map("".join)


def test_pieces_are_lower_case_words_and_their_ends() -> None:
    the, dog = 512 + MERGES.index("th e</w>"), 512 + MERGES.index("do g</w>")
    assert SMALL.encode("The  DOG\n") == [the, dog]
    assert SMALL.encode("dogs") == [
        512 + MERGES.index("d o"),
        SMALL.encode("ag")[0] + ord("g") - ord("a"),
        SMALL.encode("s")[0],
    ]
    assert SMALL.vocab_size == 512 + 4 + 2 and SMALL.special == SpecialIds(pad=0, start=516, end=517)
    assert SMALL.encode("the dog", max_tokens=1) == [the] and SMALL.encode("the dog", max_tokens=0) == []


def test_a_batch_is_padded_and_its_id_0_counts_as_padding() -> None:
    ids, valid = SMALL.encode_batch(["the dog", "", "!dog !"], context_length=9)
    the, dog, start, end = 513, 515, 516, 517
    last = SMALL.encode("!")[0]
    assert ids.tolist() == [[start, the, dog, end, 0], [start, end, 0, 0, 0], [start, last, dog, last, end]]
    assert ids.dtype == torch.int64 and valid.tolist() == [[t != 0 for t in row] for row in ids.tolist()]
    ids, valid = SMALL.encode_batch(["!?dog"], context_length=9)
    assert ids[0, 1] == 0 and not valid[0, 1], "a real '!' inside a run, which the published weights never see"
    assert SMALL.decode(ids[0]) == "!? dog"


def test_truncation_keeps_the_end() -> None:
    assert SMALL.encode_batch(["the dog the dog"], 4)[0].tolist() == [[516, 513, 515, 517]]
    with pytest.raises(ConfigError, match="context_length 1"):
        SMALL.encode_batch(["the"], 1)
    assert SMALL.encode_batch([], 8)[0].shape == (0, 0)


def test_special_texts_are_special_ids_only_where_they_stand_as_a_word() -> None:
    start, end = SMALL.special[1:]
    assert SMALL.encode("<start_of_text>the<end_of_text><START_OF_TEXT>") == [start, 513, end, start]
    for text in ("!<end_of_text>", "<|startoftext|>", "<|endoftext|>", "<start_of_text", "<ſtart_of_text>"):
        assert not {start, end} & set(SMALL.encode(text)), text


def test_decoding_is_plain_text_up_to_the_end() -> None:
    assert SMALL.decode([516, 513, 515, 517, 513, 0, 0]) == "the dog"
    assert SMALL.decode(torch.tensor([516, 513, 0, 0])) == "the"
    assert SMALL.decode([517, 513]) == SMALL.decode([]) == ""
    assert SMALL.decode(SMALL.encode("Ça va?  C'est LE café…")) == "ça va ? c ' est le café …"
    assert SMALL.decode(SMALL.encode("猫")[:-1]) == "\ufffd"
    with pytest.raises(DataError, match="token id 518 is outside this vocabulary of 518"):
        SMALL.decode([518])


@settings(max_examples=150, deadline=None)
@given(TEXTS)
@example("<end_of_text>the")
@example("&amp;amp;amp;lt;")
def test_what_decoding_gives_stays_as_it_is(text: str) -> None:
    """Text that cleaning leaves alone is a fixed point; some isn't, as lower-casing can make what ftfy repairs anew."""
    ids = WHOLE.encode(text)
    assert all(0 <= token < WHOLE.vocab_size for token in ids)
    decoded = WHOLE.decode(ids)
    if cleaned(decoded) == decoded:
        assert WHOLE.decode(WHOLE.encode(decoded)) == decoded
        if not set(ids) & set(WHOLE.special[1:]):
            assert WHOLE.encode(decoded) == ids


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_decoded_ascii_is_always_a_fixed_point(text: str) -> None:
    decoded = WHOLE.decode(WHOLE.encode(text))
    assert WHOLE.decode(WHOLE.encode(decoded)) == decoded
    assert decoded.replace(" ", "") in cleaned(text).replace(" ", "") or "_of_text>" in text.lower()


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_small_and_whole_vocabularies_decode_to_the_same(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == WHOLE.decode(WHOLE.encode(text))


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
@example("".join(map(chr, range(128))))
def test_the_short_cut_past_ftfy_changes_nothing(text: str) -> None:
    if "&" not in text:
        assert cleaned(text) == " ".join(ftfy.fix_text(text).split()).lower()


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match="half a surrogate pair at character 2"):
        WHOLE.encode("a \ud83d")
    with pytest.raises(DataError, match="one string"):
        WHOLE.encode_batch("dog", 8)
    with pytest.raises(DataError, match="must be a string and is int"):
        WHOLE.encode(5)  # type: ignore[arg-type]


def test_several_threads_share_one_tokenizer() -> None:
    texts = [f"a photo of {n} naïve dogs &amp; the cat <end_of_text> {n * 7}" for n in range(200)]
    alone = [WHOLE.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(WHOLE.encode, texts * 4)) == alone * 4


def test_ftfy_is_imported_only_for_text_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)  # an import of it fails
    assert (
        SMALL.decode(SMALL.encode("The dog's here,\r\nisn't it? 10% <b>"))
        == "the dog 's here , isn 't it ? 1 0 % < b >"
    )
    for text in ("naïve", "&amp;", "\x00"):
        with pytest.raises(ImportError):
            SMALL.encode(text)


def test_the_package_ships_the_merges_and_says_whose_they_are() -> None:
    package = Path(clip_tokenizer.__file__).parent
    assert (package / MERGES_FILE).stat().st_size < 300_000
    root = Path(__file__).parents[2]
    notice, project = (root / "NOTICE").read_text("utf-8"), (root / "pyproject.toml").read_text("utf-8")
    assert MERGES_FILE in notice and "Copyright (c) 2021 OpenAI" in notice
    assert '"**/*.gz"' in project and '"NOTICE"' in project
