"""Captions to token ids and back: a byte-level Unigram or BPE vocabulary in one `tokenizer.json`.

Text takes three steps. One space is put in front, so that a word has the same piece at the start of a caption as inside
it. Its UTF-8 bytes become 256 printable characters, all of them in every vocabulary, so nothing is ever unknown. Pieces
of these characters become ids. Decoding takes the same steps backwards and strips that one space again, which makes
`decode(encode(text)) == text` for every string that UTF-8 can hold.
"""

import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from opencoca.errors import CheckpointError, ConfigError, DataError
from opencoca.files import write_atomically

FILE_NAME = "tokenizer.json"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
# A raw space can't occur once bytes are mapped to characters (a typed space is "Ġ" by then), so no text contains these.
# They are plain entries of the vocabulary: the library would search registered "added tokens" in the user's text.
SPECIAL_NAMES = ("pad ", "start ", "end ")
MARK = " "  # not a byte character either; see _unigram
MAX_WORD_BYTES = 256  # training learns from no more of a word; one of 300,000 bytes would take it minutes
MAX_TRAINING_WORDS = 5_000_000  # counts are scaled down to about this: training needs their proportions only
MIN_VOCAB_SIZE = len(SPECIAL_NAMES) + len(ALPHABET)


class SpecialIds(NamedTuple):
    """The ids that stand for no text. [CLS] isn't among them: it is a parameter of the text decoder."""

    pad: int = 0
    start: int = 1
    end: int = 2


class Tokenizer:
    """Token ids of captions and captions of token ids; made by `train_tokenizer` or `Tokenizer.load`.

    It encodes text by text, without the library's threads, so a forked or spawned loader worker may use it, and several
    threads may share it; it pickles. CLIP's kind is `clip_tokenizer.ClipTokenizer`.
    """

    special: SpecialIds = SpecialIds()

    def __init__(self, backend: Backend, text: str):
        """Internal: `text` is the JSON that `backend` was parsed from; use `from_json`, which checks it."""
        self._backend = backend
        self._source = text
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=False)
        self.fingerprint: str = hashlib.sha256(text.encode("utf-8")).hexdigest()

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The ids of `text` without special ids, at most the first `max_tokens` of them.

        Raises: DataError for a string that has no UTF-8 form (a lone surrogate).
        """
        ids = self._ids(_checked(text))
        return ids if max_tokens is None else ids[: max(max_tokens, 0)]

    def encode_batch(self, texts: Sequence[str], context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 [B,T] and valid bool [B,T]: start, caption, end, then pad up to the longest caption of the batch.

        A caption that needs more than `context_length` positions loses its last tokens, never its end id. An empty
        caption gives start and end only: whether that is acceptable is for data preparation to say.
        """
        if context_length < len(("start", "end")):
            raise ConfigError(
                f"context_length {context_length} has no room for the start and end ids; give at least 2, "
                "and more to leave room for words"
            )
        if isinstance(texts, str):
            raise DataError(f"encode_batch wants a list of captions and got one string, {_shown(texts)}; pass [text]")
        pad, start, end = self.special
        rows = [[start, *self.encode(text, context_length - 2), end] for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=0)), pad, np.int64)  # torch's calls would take longer
        valid = np.zeros(ids.shape, bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            valid[index, : len(row)] = True
        return torch.from_numpy(ids), torch.from_numpy(valid)

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The text of one sequence of ids, up to the first end id; pad and start ids are skipped.

        Bytes that are no UTF-8, as a sequence cut inside a character leaves them, become U+FFFD.

        Raises: DataError for an id outside the vocabulary.
        """
        kept: list[int] = []
        for token in ids.tolist() if isinstance(ids, torch.Tensor) else ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(
                    f"token id {token} is outside this vocabulary of {self.vocab_size}; "
                    "decode with the tokenizer of the model that produced it"
                )
            if token == self.special.end:
                break
            kept.append(int(token))
        return self._text(kept)

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _text(self, ids: list[int]) -> str:
        return self._backend.decode([token for token in ids if token not in self.special], skip_special_tokens=False)

    def to_json(self) -> str:
        """The whole tokenizer as one line of JSON, which the `tokenizers` library reads as well."""
        return self._source

    @classmethod
    def from_json(cls, text: str, name: str = FILE_NAME) -> "Tokenizer":
        """The tokenizer, of whichever kind, that `to_json` wrote; `name` is what an error calls it.

        Raises: CheckpointError if it is damaged, or made by another program (unless it is CLIP's).
        """
        from opencoca.data.clip_tokenizer import is_clip, parsed  # that module builds on this one

        repair = "restore it from the model's origin, or train the model again"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} is damaged: no valid JSON ({error}); {repair}") from error
        if is_clip(content):
            return parsed(content, name)
        try:
            backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception for whatever it can't read
            raise CheckpointError(f"{name} holds no tokenizer ({_one_line(error)}); {repair}") from error
        difference = _difference(backend)
        if difference:
            raise CheckpointError(f"{name} is not an OpenCoCa tokenizer: {difference}; {repair}")
        return Tokenizer(backend, text)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the tokenizer to a file, or as `tokenizer.json` into an existing folder, and return the file's path.

        The file appears whole or not at all.
        """
        target = _file(path)
        write_atomically(target, self.to_json())
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer in a file, or in the `tokenizer.json` of a folder.

        Raises: CheckpointError if the file is missing, unreadable, damaged or foreign.
        """
        file = _file(path)
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{file} is damaged: no UTF-8 text; restore it from the model's origin, or train the model again"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"can't read {file} ({error.strerror}); point at a model folder that has a {FILE_NAME}"
            ) from error
        return cls.from_json(text, str(file))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_json, (self._source,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


def train_tokenizer(captions: Iterable[str], vocab_size: int, kind: Literal["unigram", "bpe"] = "unigram") -> Tokenizer:
    """A tokenizer whose pieces fit `captions`, with at most `vocab_size` ids (specials and 256 bytes included).

    Few or repetitive captions hold fewer useful pieces than asked for: read `.vocab_size` of what comes back. Unigram
    training isn't reproducible between runs (the library sums in hash order), so save the result and keep it.

    Raises: ConfigError for an unknown kind or a vocabulary without room for every byte; DataError without any text.
    Source: CoCa Section 4.1 (a Unigram model of 64k pieces trained on the training captions).
    Differs: byte-level, so that any Unicode round-trips.
    """
    if kind not in ("unigram", "bpe"):
        raise ConfigError(f"unknown tokenizer kind {kind!r}; use 'unigram' or 'bpe'")
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size {vocab_size} can't hold 256 bytes and 3 special ids; use {MIN_VOCAB_SIZE} or more"
        )
    words = _count_words(captions)
    size = vocab_size - len(SPECIAL_NAMES)
    model = _unigram(words, size) if kind == "unigram" else _bpe(words, size)
    # Training used threads; without this the library warns in every loader worker that is forked from here on.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Tokenizer.from_json(_pipeline(model).to_str(pretty=False))


def _count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as byte characters with its leading space, split as `encode` splits."""
    words: Counter[str] = Counter()
    splitter = _pipeline(models.BPE()).pre_tokenizer
    for caption in captions:
        if _checked(caption):
            words.update(word[:MAX_WORD_BYTES] for word, _ in splitter.pre_tokenize_str(" " + caption))
    if not words:
        raise DataError("no caption with any text to train a tokenizer on; check the captions of the data")
    shrink = max(1.0, words.total() / MAX_TRAINING_WORDS)
    return Counter({word: math.ceil(count / shrink) for word, count in words.items()})


def _unigram(words: Counter[str], size: int) -> models.Unigram:
    """A Unigram model of at most `size` pieces and the special names.

    The library looks for candidate pieces among the repeated substrings of its list of *different* words, and only
    where the next character varies: "woman" is a candidate if "woman's" and "womanly" occur, but if "woman" alone does,
    however often, it is spelt out. So each word that occurs twice is listed a second time with MARK behind it, which
    gives it two continuations. MARK itself always precedes the word's end and so never joins a longer candidate.
    """
    marked = (word + MARK for word, count in words.items() if count > 1)
    plain = (word for word, count in words.items() for _ in range(max(1, count - 1)))
    backend = Backend(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 1, initial_alphabet=ALPHABET, special_tokens=[], show_progress=False
    )
    backend.train_from_iterator(itertools.chain(marked, plain), trainer)
    scores: dict[str, float] = dict(json.loads(backend.to_str())["model"]["vocab"])
    scores.pop(MARK, None)
    # Bytes are kept whatever their score; the library exceeds the size where they alone fill it.
    longer = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: (-scores[piece], piece))
    kept = sorted([*longer[: size - len(ALPHABET)], *ALPHABET], key=lambda piece: (-scores[piece], piece))
    lowest = scores[kept[-1]]
    return models.Unigram([*((name, lowest) for name in SPECIAL_NAMES), *((piece, scores[piece]) for piece in kept)])


def _bpe(words: Counter[str], size: int) -> models.BPE:
    """A BPE model of at most `size` pieces and the special names; ids in the order of the merges."""
    backend = Backend(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=ALPHABET, special_tokens=[], show_progress=False)
    backend.train_from_iterator(words.elements(), trainer)
    trained = json.loads(backend.to_str())["model"]
    ordered = [*SPECIAL_NAMES, *sorted(trained["vocab"], key=trained["vocab"].__getitem__)]
    merges = [tuple(merge) for merge in trained["merges"]]
    return models.BPE({piece: index for index, piece in enumerate(ordered)}, merges)


def _pipeline(model: Any) -> Backend:
    """A backend around `model` with the three steps of the module's docstring."""
    backend = Backend(model)
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    return backend


def _difference(backend: Backend) -> str:
    """What makes `backend` unlike one of ours, in a few words; empty if nothing does."""
    vocab = backend.get_vocab(with_added_tokens=True)
    for index, name in enumerate(SPECIAL_NAMES):
        if vocab.get(name) != index:
            return f"id {index} should be {name!r} and is {backend.id_to_token(index)!r}"
    missing = sum(letter not in vocab for letter in ALPHABET)
    if missing:
        return f"{missing} of 256 byte characters are not in its vocabulary"
    if sorted(vocab.values()) != list(range(len(vocab))):
        return "its ids have gaps or repeat"
    ours, theirs = json.loads(_pipeline(models.BPE()).to_str()), _settings(backend)
    for part, value in theirs.items():
        if value != ours[part]:
            return f"its {part} differs"
    return ""


def _settings(backend: Backend) -> dict[str, Any]:
    """The backend's settings apart from its model, as the library writes them."""
    probe = Backend(models.BPE())  # serialising the model too would cost 0.2 s for 64k pieces
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        value = getattr(backend, part)
        if value is not None:
            setattr(probe, part, value)
    settings = json.loads(probe.to_str())
    settings["added_tokens"] = sorted(map(str, backend.get_added_tokens_decoder().values()))
    settings["truncation"], settings["padding"] = backend.truncation, backend.padding
    del settings["model"]
    return settings


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"a caption must be a string and is {type(text).__name__}; fix the data that holds it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"caption {_shown(text)} has half a surrogate pair at character {error.start}, which is no Unicode text; "
            "decode its source as UTF-8 again or remove it"
        ) from error
    return text


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
