"""CLIP's tokenizer in hub folders and model folders, and what of them is refused."""

import json
import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from opencoca.data import clip_tokenizer
from opencoca.data.clip_tokenizer import PUBLISHED_FINGERPRINT, PUBLISHED_MERGES, ClipTokenizer
from opencoca.data.tokenizer import Tokenizer, train_tokenizer
from opencoca.errors import CheckpointError

MERGES = ("t h", "th e</w>", "d o", "do g</w>")
SMALL = ClipTokenizer.from_merges(MERGES)
WHOLE = ClipTokenizer.published()


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
