"""The tokenizer: pieces, batches, special ids, files, and what is refused."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from opencoca.data.tokenizer import SPECIAL_NAMES, SpecialIds, Tokenizer, train_tokenizer
from opencoca.errors import CheckpointError, ConfigError, DataError

KINDS = ("unigram", "bpe")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
ROLES = ("firefighter", "astronaut", "farmer", "judge", "cook", "singer", "pilot", "teacher", "scientist", "artist")
CAPTIONS = [f"{who} {role}, {tone} skin tone" for who in ("woman", "man", "person") for role in ROLES for tone in TONES]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(CAPTIONS, 500, request.param)


def test_frequent_words_are_single_pieces(tokenizer: Tokenizer) -> None:
    """The library's own Unigram training spells out a word that is no part of another one, however frequent."""
    for word in ("woman", "firefighter", "medium", "dark", "tone"):
        assert len(tokenizer.encode(word)) == 1, word
    assert len(tokenizer.encode("woman firefighter, dark skin tone")) == 6


def test_a_word_has_the_same_piece_at_the_start_and_inside(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("woman judge")[-1:] == tokenizer.encode("judge")
    assert tokenizer.encode("dark woman") == tokenizer.encode("dark") + tokenizer.encode("woman")


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b ", "\x00", "a\r\n\tb", "😀👩🏽‍🚒", "naïve 中文 ́", "\ufeff", "\U0010ffff"]
)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", [*SPECIAL_NAMES, *map(str.strip, SPECIAL_NAMES), "<pad>", "<start>", "<unk>", "[CLS]"])
def test_no_text_is_taken_for_a_special_token(tokenizer: Tokenizer, name: str) -> None:
    for text in (name, f"a {name} b", name + name):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special)
        assert tokenizer.decode(ids) == text


def test_special_ids_and_vocabulary_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.special == SpecialIds(pad=0, start=1, end=2)
    everything = {i for text in [*CAPTIONS, *map(chr, range(256))] for i in tokenizer.encode(text)}
    assert max(everything) < tokenizer.vocab_size <= 500
    assert min(everything) == len(tokenizer.special)


def test_a_batch_is_trimmed_to_its_longest_caption_and_padded(tokenizer: Tokenizer) -> None:
    texts = ["dark", "", "woman judge, dark skin tone"]
    ids, valid = tokenizer.encode_batch(texts, context_length=64)
    rows = [[1, *tokenizer.encode(text), 2] for text in texts]
    assert ids.dtype == torch.int64 and valid.dtype == torch.bool
    assert ids.shape == valid.shape == (3, max(map(len, rows)))
    assert [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)] == rows
    assert (ids[~valid] == 0).all() and (valid.diff(dim=1).sum(dim=1) <= 1).all()
    assert [tokenizer.decode(row) for row in ids] == texts


def test_truncation_keeps_the_start_and_the_end(tokenizer: Tokenizer) -> None:
    text = "woman firefighter, dark skin tone"
    ids, valid = tokenizer.encode_batch([text], context_length=5)
    assert ids.tolist() == [[1, *tokenizer.encode(text)[:3], 2]] and valid.all()
    assert tokenizer.encode(text, max_tokens=3) == tokenizer.encode(text)[:3]
    assert tokenizer.encode(text, max_tokens=0) == []
    assert tokenizer.encode_batch([text], context_length=2)[0].tolist() == [[1, 2]]
    with pytest.raises(ConfigError, match="context_length 1"):
        tokenizer.encode_batch([text], context_length=1)


def test_no_captions_make_an_empty_batch(tokenizer: Tokenizer) -> None:
    ids, valid = tokenizer.encode_batch([], context_length=8)
    assert ids.shape == valid.shape == (0, 0)


def test_decoding_stops_at_the_end_and_survives_cut_characters(tokenizer: Tokenizer) -> None:
    dark, judge = tokenizer.encode("dark"), tokenizer.encode("judge")
    assert tokenizer.decode([1, *dark, 0, 1, *judge, 2, *dark]) == "dark judge"
    assert tokenizer.decode(torch.tensor([2, *dark])) == ""
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("猫")[:-1])
    with pytest.raises(DataError, match=f"token id {tokenizer.vocab_size} is outside"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(DataError, match="token id -1"):
        tokenizer.decode([-1])


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="half a surrogate pair at character 2"):
        tokenizer.encode("a \ud83d")
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode_batch(["fine", "\udc00"], 8)
    with pytest.raises(DataError, match="surrogate"):
        train_tokenizer(["fine", "\udc00"], 300)
    with pytest.raises(DataError, match="must be a string and is int"):
        tokenizer.encode(5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one string"):
        tokenizer.encode_batch("dark", 8)


def test_saving_and_loading_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.save(tmp_path) == tmp_path / "tokenizer.json"
    for again in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.to_json() == tokenizer.to_json()
        assert [again.encode(text) for text in CAPTIONS] == [tokenizer.encode(text) for text in CAPTIONS]
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    foreign_reader = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert foreign_reader.encode(CAPTIONS[0]).ids == tokenizer.encode(CAPTIONS[0])
    assert foreign_reader.decode(tokenizer.encode(" a ")) == " a "


def test_another_tokenizer_has_another_fingerprint(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(CAPTIONS, 300, "bpe").fingerprint != tokenizer.fingerprint


def test_a_failed_save_leaves_the_old_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("opencoca.data.tokenizer.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        tokenizer.save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def damaged(text: str) -> dict[str, tuple[str, str]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = json.dumps({"id": 1, "content": "start ", **flags, "special": True})
    return {
        "empty": ("", "damaged"),
        "truncated": (text[: len(text) // 2], "damaged"),
        "not a tokenizer": ('{"a": 1}', "holds no tokenizer"),
        "a list": ("[]", "holds no tokenizer"),
        "of the library, without our ids": (Backend(models.BPE()).to_str(), "id 0 should be 'pad '"),
        "special name changed": (text.replace('"pad "', '"[PAD]"'), "id 0 should be 'pad '"),
        "a byte missing": (text.replace('"Ā"', '"ĀĀ"', 1), "1 of 256 byte characters"),
        "another first space": (text.replace('"prepend":" "', '"prepend":"_"'), "normalizer differs"),
        "special tokens registered": (text.replace('"added_tokens":[]', f'"added_tokens":[{added}]'), "added_tokens"),
    }


@pytest.mark.parametrize("case", damaged(""))
def test_a_damaged_or_foreign_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    text = train_tokenizer(CAPTIONS, 300).to_json()
    content, message = damaged(text)[case]
    assert content != text
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) and "restore it" in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"can't read .*tokenizer\.json \(No such file"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="no UTF-8"):
        Tokenizer.load(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captions", [[], [""], ["", ""]])
def test_training_without_text_is_refused(captions: list[str], kind: str) -> None:
    with pytest.raises(DataError, match="no caption with any text"):
        train_tokenizer(captions, 300, kind)  # type: ignore[arg-type]


def test_training_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="unknown tokenizer kind 'wordpiece'"):
        train_tokenizer(CAPTIONS, 300, "wordpiece")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="vocab_size 258 can't hold"):
        train_tokenizer(CAPTIONS, 258)


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_vocabulary_is_bytes_only(kind: str) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 259, kind)  # type: ignore[arg-type]
    assert tokenizer.vocab_size == 259
    assert len(tokenizer.encode("猫")) == 4, "a space and three bytes"


@pytest.mark.parametrize("kind", KINDS)
def test_few_captions_yield_fewer_pieces_than_asked_for(kind: str) -> None:
    tokenizer = train_tokenizer(iter(["a dog", "a cat"]), 1000, kind)  # type: ignore[arg-type]
    assert 259 <= tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("a zebra")) == "a zebra"


@pytest.mark.timeout(20)  # takes minutes where such words are not cut
def test_endless_words_do_not_stall_the_training() -> None:
    tokenizer = train_tokenizer(["猫" * 100_000, "x" * 300_000, "a dog"] * 2, 300)
    text = "z" * 20000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_paper_size_of_64k_is_reached() -> None:
    random_words = random.Random(0)
    syllables = [left + right for left in "bcdfghjklmnprstvwz" for right in ("a", "e", "i", "o", "u", "ai", "ou")]
    words = sorted({"".join(random_words.choices(syllables, k=3 + n % 2)) for n in range(76_000)})
    captions = (" ".join(random_words.choices(words, k=100)) for _ in range(4_000))
    tokenizer = train_tokenizer(captions, 64_000)
    assert tokenizer.vocab_size == 64_000
    ids = tokenizer.encode(" ".join(words))
    assert len(set(ids)) > 40_000
    assert tokenizer.decode(ids) == " ".join(words)
    assert json.loads(tokenizer.to_json())["added_tokens"] == []
