"""CLIP's tokenizer: its text, its special ids, hub folders, model folders, and what is refused."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from opencoca.data import clip_tokenizer
from opencoca.data.clip_tokenizer import MERGES_FILE, PUBLISHED_FINGERPRINT, PUBLISHED_MERGES, ClipTokenizer, cleaned
from opencoca.data.tokenizer import SpecialIds, Tokenizer, train_tokenizer
from opencoca.errors import CheckpointError, ConfigError, DataError

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


def hub_json(merges: tuple[str, ...] = MERGES, names: tuple[str, str] = ("<|startoftext|>", "<|endoftext|>")) -> dict:
    """A tokenizer.json as the hub has it: special names in the vocabulary and among the added tokens."""
    alphabet = clip_tokenizer.ALPHABET
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges), *names]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    added = [{"id": len(pieces) - 2 + i, "content": name, **flags} for i, name in enumerate(names)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    options = {"dropout": None, "unk_token": names[1], "continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    return {
        "version": "1.0",
        "added_tokens": added,
        "model": {"type": "BPE", **options, "vocab": vocab, "merges": merges},
    }


def write_hub(folder: Path, content: dict) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_old_hub(folder: Path, merges: tuple[str, ...] = MERGES) -> Path:
    (folder / "vocab.json").write_text(json.dumps(hub_json(merges)["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


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


@pytest.mark.parametrize("tokenizer", [SMALL, WHOLE], ids=["small", "whole"])
def test_model_folders_and_pickles_keep_the_tokenizer(tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    text = "A photo of the dog, isn't it? 12 naïve 猫 !!<end_of_text>"
    assert tokenizer.save(tmp_path) == tmp_path / "tokenizer.json"
    for again in (
        Tokenizer.load(tmp_path),
        ClipTokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.from_json(tokenizer.to_json()),
        ClipTokenizer.from_files(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert type(again) is ClipTokenizer and again.special == tokenizer.special
        assert (again.fingerprint, again.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)
        assert again.encode(text) == tokenizer.encode(text) and again.to_json() == tokenizer.to_json()
    assert len(pickle.dumps(tokenizer)) < 10_000
    assert repr(tokenizer).startswith(f"ClipTokenizer(vocab_size={tokenizer.vocab_size}")


def test_other_programs_read_what_we_write() -> None:
    foreign = Backend.from_str(WHOLE.to_json())
    for text in ("A photo of  the Dog, isn't it?", "12 naïve 猫"):
        assert foreign.encode(text).ids == WHOLE.encode_batch([text], 77)[0][0].tolist()
        assert foreign.decode(foreign.encode(text).ids).strip() == WHOLE.decode(WHOLE.encode(text))


def test_our_own_kind_stays_our_own(tmp_path: Path) -> None:
    own = train_tokenizer(["a dog", "the dog"], 300)
    own.save(tmp_path)
    assert type(Tokenizer.load(tmp_path)) is type(ClipTokenizer.load(tmp_path)) is Tokenizer
    assert SMALL.fingerprint != WHOLE.fingerprint == PUBLISHED_FINGERPRINT


@pytest.mark.parametrize("names", [("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>")])
def test_a_hub_folder_is_read(names: tuple[str, str], tmp_path: Path) -> None:
    read = ClipTokenizer.from_files(write_hub(tmp_path, hub_json(names=names)))
    assert read.fingerprint == SMALL.fingerprint and read.encode("the dog") == [513, 515]
    pairs = hub_json(names=names)
    pairs["model"]["merges"] = [merge.split() for merge in MERGES]
    assert ClipTokenizer.from_files(write_hub(tmp_path, pairs)).to_json() == SMALL.to_json()


def test_an_old_hub_folder_is_read(tmp_path: Path) -> None:
    assert ClipTokenizer.from_files(write_old_hub(tmp_path)).fingerprint == SMALL.fingerprint


def test_a_folder_without_a_tokenizer_means_the_published_one(tmp_path: Path) -> None:
    assert ClipTokenizer.from_files(tmp_path) is WHOLE
    (tmp_path / "merges.txt").write_text("t h\n")
    assert ClipTokenizer.from_files(tmp_path) is WHOLE, "half of a vocabulary is none"
    assert len(WHOLE._source.splitlines()) == PUBLISHED_MERGES


def test_another_vocabulary_of_the_same_size_is_refused(tmp_path: Path) -> None:
    merges = WHOLE._source.splitlines()
    merges[-2:] = merges[:-3:-1]
    for folder in (write_hub(tmp_path, hub_json(tuple(merges))), write_old_hub(tmp_path, tuple(merges))):
        with pytest.raises(CheckpointError, match="as large as CLIP's vocabulary and another one") as caught:
            ClipTokenizer.from_files(folder)
        assert "remove it if" in str(caught.value) and "take it from the model's origin" in str(caught.value)
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


def damaged(case: str) -> tuple[dict | str, str]:
    content = hub_json()
    model = content["model"]
    if case == "another id":
        model["vocab"]["the</w>"], model["vocab"]["do"] = model["vocab"]["do"], model["vocab"]["the</w>"]
        return content, "'the</w>' has id 514 in its vocabulary and 513 by its merges"
    if case == "a piece too many":
        model["vocab"]["cat</w>"] = 518
        return content, "'cat</w>' has id 518 in its vocabulary and none by its merges"
    if case == "an added token too many":
        content["added_tokens"].append({"id": 518, "content": "[PAD]"})
        return content, "'\\[PAD\\]' has id 518"
    if case == "other special names":
        return hub_json(names=("[BOS]", "[EOS]")), "has id none in its vocabulary and 516 by its merges"
    if case == "a merge twice":
        model["merges"] = [*MERGES, "t h"]
        return content, "merge 5 of 5, 't h', makes no new piece"
    if case == "a merge of nothing known":
        model["merges"] = [*MERGES, "猫 h"]
        return content, "merge 5 of 5"
    if case == "no merges":
        del model["merges"]
        return content, "vocabulary can't be read"
    if case == "merges of another form":
        model["merges"] = [3]
        return content, "vocabulary can't be read"
    if case == "half a surrogate pair":
        model["merges"] = [*MERGES, "t \ud83d"]
        return content, "vocabulary can't be read"
    if case == "a list as id":
        model["vocab"]["!"] = [0]
        return content, "'!' has id \\[0\\]"
    if case == "ends words with nothing":
        model["end_of_word_suffix"] = ""
        return content, "no CLIP tokenizer"
    if case == "another model":
        model["type"] = "WordPiece"
        return content, "its model is 'WordPiece'"
    if case == "drops merges":
        model["dropout"] = 0.1
        return content, "its dropout is 0.1"
    return {"no JSON": ("{", "no valid JSON"), "a list": ("[]", "no CLIP tokenizer"), "no UTF-8": ("\ud83d", "read")}[
        case
    ]


CASES = [
    *("another id", "a piece too many", "an added token too many", "other special names", "a merge twice"),
    *(
        "a merge of nothing known",
        "no merges",
        "merges of another form",
        "half a surrogate pair",
        "a list as id",
        "ends words with nothing",
    ),
    *("another model", "drops merges", "no JSON", "a list", "no UTF-8"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_or_foreign_hub_folder_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = damaged(case)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=message) as caught:
        ClipTokenizer.from_files(tmp_path)
    assert str(tmp_path) in str(caught.value) and "take it from the model's origin again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_model_folder_is_refused(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"the</w>":513', '"the</w>":600'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be used: 'the</w>' has id 600"):
        Tokenizer.load(tmp_path)
    path.write_text(Backend(models.BPE()).to_str())
    with pytest.raises(CheckpointError, match="not an OpenCoCa tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_folder_of_vocabulary_and_merges_that_disagree_is_refused(tmp_path: Path) -> None:
    write_old_hub(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt can't be used: .* by its merges"):
        ClipTokenizer.from_files(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="by its merges"):
        ClipTokenizer.from_files(tmp_path)


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
