"""CLIP's tokenizer: lower-cased words in byte-level BPE, as the published checkpoints read captions.

Text is repaired (ftfy), HTML entities become characters (twice, for what was escaped twice), runs of white space become
one space, letters become small. A regular expression cuts it into words, single digits and runs of other characters;
the last byte of each carries "</w>", and merges join bytes to pieces. Ids follow from the merges: 256 bytes, 256 bytes
that end a word, one piece per merge, start, end. So a list of merges is the whole tokenizer, and that is what we ship.

Source: CLIP (Radford et al. 2021), Section 2.4; OpenCLIP's SimpleTokenizer, whose ids these are.
Differs: what is a letter or a digit is Unicode 16's; there, it depends on the version of a package.
"""

import functools
import gzip
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from opencoca.data.tokenizer import ALPHABET, FILE_NAME, SpecialIds, Tokenizer
from opencoca.errors import CheckpointError

MERGES_FILE = "clip_merges.txt.gz"
PUBLISHED_MERGES = 48_894
PUBLISHED_FINGERPRINT = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
END_OF_WORD = "</w>"
SPECIAL_NAMES = ("<|startoftext|>", "<|endoftext|>")  # as tokenizer.json calls them
SPECIAL_TEXTS = ("<start_of_text>", "<end_of_text>")  # what OpenCLIP reads as a special id where a caption says it
# ſ is the one other letter that OpenCLIP, which ignores case here, takes for one of these after text was lower-cased.
WORDS = r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

_plain = re.compile(r"[\t\n\r !-%'-~]*")  # ASCII without "&": ftfy and HTML unescaping leave it as it is


class ClipTokenizer(Tokenizer):
    """CLIP's kind of tokenizer: `published()`, or read `from_files`, `load`ed, or made `from_merges`.

    Its pad id 0 is a real piece as well ("!" inside a word), so `valid` is False there too: the published weights were
    trained so. The texts "<start_of_text>" and "<end_of_text>" in a caption become the special ids, as in OpenCLIP.
    """

    def __init__(self, merges: Sequence[str], vocab: dict[str, int]):
        """Internal: use `from_merges`, which makes the vocabulary and checks it."""
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        super().__init__(_pipeline(models.BPE(vocab, pairs, end_of_word_suffix=END_OF_WORD)), "\n".join(merges))
        self.special = SpecialIds(pad=0, start=len(vocab) - 2, end=len(vocab) - 1)

    @classmethod
    def published(cls) -> "ClipTokenizer":
        """The vocabulary of every published CLIP and OpenCLIP CoCa checkpoint: 49,408 ids, shipped in this package."""
        return _published()

    @classmethod
    def from_merges(cls, merges: Iterable[str], name: str = "the list of merges") -> "ClipTokenizer":
        """The tokenizer of merges written "left right", in their order; few of them make a small vocabulary.

        Raises: CheckpointError for a merge of pieces that aren't there yet, or whose result is there already.
        """
        merges = tuple(merges)
        return cls(merges, _vocabulary(merges, name))

    @classmethod
    def from_files(cls, folder: str | os.PathLike[str]) -> "ClipTokenizer":
        """The tokenizer of a hub folder: its tokenizer.json, else its vocab.json and merges.txt, else CLIP's own.

        OpenCLIP itself reads none of these files: its checkpoints mean CLIP's vocabulary, whether they say it or not.

        Raises: CheckpointError for damaged files, another kind of tokenizer, and a vocabulary of CLIP's size that isn't
          CLIP's.
        """
        folder = Path(folder)
        source = folder / FILE_NAME
        if source.is_file():
            tokenizer = parsed(_json(source), str(source))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            source = folder / "merges.txt"
            lines = _read(source).splitlines()
            if lines and "#version" in lines[0]:
                del lines[0]
            model = {"type": "BPE", "end_of_word_suffix": END_OF_WORD, "merges": lines}
            tokenizer = parsed({"model": {**model, "vocab": _json(folder / "vocab.json")}}, str(source))
        else:
            return cls.published()
        if len(tokenizer._source.splitlines()) == PUBLISHED_MERGES and tokenizer.fingerprint != PUBLISHED_FINGERPRINT:
            raise _refusal(
                str(source),
                "it is as large as CLIP's vocabulary and another one (remove it if the model was trained with CLIP's)",
            )
        return tokenizer

    def encode_batch(self, texts: Sequence[str], context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 [B,T] and valid bool [B,T], as `Tokenizer.encode_batch`; valid is False at every id 0."""
        ids, _ = super().encode_batch(texts, context_length)
        return ids, ids != self.special.pad

    def to_json(self) -> str:
        """The whole tokenizer as one line of JSON; other programs that read it lack only ftfy and HTML entities."""
        backend = _pipeline(self._backend.model)
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        around = list(zip(SPECIAL_NAMES, self.special[1:], strict=True))
        backend.post_processor = processors.TemplateProcessing(
            single=[SPECIAL_NAMES[0], "$A", SPECIAL_NAMES[1]], special_tokens=around
        )
        backend.add_special_tokens(list(SPECIAL_NAMES))
        return backend.to_str(pretty=False)

    def _ids(self, text: str) -> list[int]:
        text = cleaned(text)
        if not any(special in text for special in SPECIAL_TEXTS):
            return super()._ids(text)
        ids: list[int] = []
        # Only where they make a word: "!<end_of_text>" starts with the run "!<".
        for word, (first, last) in self._backend.pre_tokenizer.pre_tokenize_str(text):
            if word in SPECIAL_TEXTS:
                ids.append(self.special[1 + SPECIAL_TEXTS.index(word)])
            else:
                ids += super()._ids(text[first:last])
        return ids

    def _text(self, ids: list[int]) -> str:
        while ids and ids[-1] == self.special.pad:  # no word ends in the piece that shares this id
            ids.pop()
        kept = [token for token in ids if token != self.special.start]
        return self._backend.decode(kept, skip_special_tokens=False).strip()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.fingerprint == PUBLISHED_FINGERPRINT:
            return ClipTokenizer.published, ()
        return ClipTokenizer.from_merges, (tuple(self._source.splitlines()),)


def cleaned(text: str) -> str:
    """The text as CLIP reads it: repaired, without HTML entities, single spaces, lower case."""
    if not _plain.fullmatch(text):
        import ftfy  # takes longer to import than most captions to encode

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def is_clip(content: Any) -> bool:
    """Whether the content of a tokenizer.json claims to be of CLIP's kind; `parsed` then checks it."""
    model = content.get("model") if isinstance(content, dict) else None
    return isinstance(model, dict) and model.get("end_of_word_suffix") == END_OF_WORD


def parsed(content: Any, name: str) -> ClipTokenizer:
    """The tokenizer that the content of a tokenizer.json of CLIP's kind describes, from whichever program.

    Raises: CheckpointError if the vocabulary isn't what its merges give, or if anything in it isn't as in CLIP's.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not is_clip(content) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise _refusal(name, f"it is no CLIP tokenizer (its model is {kind!r}, not 'BPE' with {END_OF_WORD!r})")
    for option in ("continuing_subword_prefix", "dropout", "byte_fallback", "ignore_merges"):
        if model.get(option):
            raise _refusal(name, f"its {option} is {model[option]!r}, which CLIP's doesn't have")
    try:
        merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        theirs = {**model["vocab"], **{token["content"]: token["id"] for token in content.get("added_tokens", ())}}
        is_published = _digest(merges) == PUBLISHED_FINGERPRINT
    except (KeyError, TypeError, ValueError) as error:  # ValueError: half a surrogate pair
        raise _refusal(name, f"its vocabulary can't be read ({error!r})") from error
    tokenizer = _published() if is_published else ClipTokenizer.from_merges(merges, name)
    for ours, other in zip(SPECIAL_NAMES, SPECIAL_TEXTS, strict=True):
        if other in theirs and ours not in theirs:
            theirs[ours] = theirs.pop(other)
    expected = tokenizer._backend.get_vocab(with_added_tokens=False)
    if theirs != expected:
        wrong = (piece for piece in {*theirs, *expected} if theirs.get(piece) != expected.get(piece))
        piece = min(wrong, key=lambda piece: (expected.get(piece, len(expected)), str(piece)))
        raise _refusal(
            name,
            f"{piece!r} has id {theirs.get(piece, 'none')} in its vocabulary and {expected.get(piece, 'none')} "
            "by its merges",
        )
    return tokenizer


@functools.cache
def _published() -> ClipTokenizer:
    packed = (resources.files("opencoca.data") / MERGES_FILE).read_bytes()
    return ClipTokenizer.from_merges(gzip.decompress(packed).decode("utf-8").splitlines(), MERGES_FILE)


def _vocabulary(merges: Sequence[str], name: str) -> dict[str, int]:
    vocab = {piece: i for i, piece in enumerate([*ALPHABET, *(letter + END_OF_WORD for letter in ALPHABET)])}
    for number, merge in enumerate(merges, 1):
        left, _, right = merge.partition(" ")
        piece = left + right
        if left not in vocab or right not in vocab or piece in vocab:
            raise _refusal(
                name, f"merge {number} of {len(merges)}, {merge[:60]!r}, makes no new piece of two known ones"
            )
        vocab[piece] = len(vocab)
    for special in SPECIAL_NAMES:
        vocab[special] = len(vocab)
    return vocab


def _pipeline(model: Any) -> Backend:
    """A backend around `model` for text that is `cleaned`, and back to text with a space after each word."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    return backend


def _digest(merges: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(merges).encode("utf-8")).hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(str(path), f"it can't be read ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise _refusal(str(path), f"it is damaged: no valid JSON ({error})") from error


def _refusal(name: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{name} can't be used: {problem}; take it from the model's origin again")
