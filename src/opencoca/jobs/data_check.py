"""Looking through captioned pictures before training: what is there, what is missing, what is there twice."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.pixels import open_picture
from opencoca.data.sample import Sample
from opencoca.data.shard_writer import extension_of
from opencoca.data.sources import open_source, splits_of
from opencoca.data.sources.protocol import Source
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError, DataError

EXAMPLES = 3
SCRIPTS = {
    "CJK": "Han (Chinese)", "HIRAGANA": "Kana (Japanese)", "KATAKANA": "Kana (Japanese)", "HANGUL": "Hangul (Korean)",
    "DEVANAGARI": "Devanagari (Hindi, ...)", "CYRILLIC": "Cyrillic (Russian, ...)", "ARABIC": "Arabic (Arabic, ...)",
    "LATIN": "Latin",
}  # fmt: skip
ENGLISH = frozenset({"a", "an", "the", "of", "in", "on", "with", "and", "is", "are", "at", "to", "for", "by"})


def check(
    location: str,
    *,
    split: str | None = None,
    pictures: str | None = None,
    tokenizer: str = "clip",
    context_length: int = 76,
    samples: int = 0,
    decode: bool = False,
    http: bool = False,
    on_sample: Callable[[int, int], object] = lambda done, total: None,
    on_skip: Callable[[str, str], object] = lambda key, reason: None,
) -> dict[str, Any]:
    """What a source holds and what is wrong with it, ready for JSON; with several splits also what they share.

    Args: samples looks at so many, evenly spread, of each split; 0 at all. decode opens each picture as training would,
      which takes longer than to look at its first bytes. on_sample gets (done, total); on_skip each key and reason.
    Raises: DataError if there is nothing to read there.
    """
    reads = _tokenizer(tokenizer)
    found = open_source(location, split, pictures=pictures, on_damage="count", http=http)
    names = [split] if split else [name for name in splits_of(found) if name != "restval"] or [None]
    report: dict[str, Any] = {"location": location, "columns": getattr(found, "columns", {}), "splits": {}}
    looks = {}
    for number, name in enumerate(names):
        source = found
        if len(names) > 1:
            source = open_source(location, name, pictures=pictures, on_damage="count", http=http)
        look = looks[name or "all"] = _Look(source, reads, context_length, decode)
        look.skip(source.skipped, on_skip)
        look.all(samples, on_sample, on_skip, (number, len(names)))
        report["splits"][name or "all"] = look.report()
    report["shared"] = [_shared(a, looks[a], b, looks[b]) for a, b in _pairs(list(looks))]
    report["skipped"] = sum(facts["skipped"] + facts["unreadable"] for facts in report["splits"].values())
    return report


class _Look:
    """What is gathered of one split: 16 bytes a sample, and counts."""

    def __init__(self, source: Source, tokenizer: Tokenizer, context_length: int, decode: bool) -> None:
        self.source, self.tokenizer, self.context_length, self.decode = source, tokenizer, context_length, decode
        self.rows, self.pictures, self.owners, self.captions = array("q"), array("Q"), array("q"), array("Q")
        self.reasons: Counter[str] = Counter()
        self.unreadable = self.several = self.truncated = self.longest = 0
        self.formats: Counter[str] = Counter()
        self.scripts: Counter[str] = Counter()

    def skip(self, skipped: Sequence[tuple[str, str]], on_skip: Callable[[str, str], object]) -> None:
        for key, reason in skipped:
            self.reasons[_kind(reason)] += 1
            on_skip(key, reason)

    def all(
        self,
        most: int,
        on_sample: Callable[[int, int], object],
        on_skip: Callable[[str, str], object],
        turn: tuple[int, int],
    ) -> None:
        count = len(self.source)
        rows = range(count) if not most or most >= count else np.linspace(0, count - 1, most).astype(int).tolist()
        for done, row in enumerate(rows, 1):
            try:
                self._sample(row, self.source[row])
            except DataError as error:
                self.unreadable += 1
                on_skip(self.source.keys[row], str(error))
            on_sample(turn[0] * len(rows) + done, turn[1] * len(rows))

    def _sample(self, row: int, sample: Sample) -> None:
        if self.decode:
            open_picture(sample.picture, name=f"the picture of {sample.key}")
        ending = extension_of(sample.picture)
        if ending is None:
            raise DataError(f"the picture of {sample.key} is of no known format; convert or replace it")
        self.formats[ending] += 1
        self.rows.append(row)
        self.pictures.append(_hash(sample.picture))
        self.several += len(sample.captions) > 1
        for caption in sample.captions:
            self.captions.append(_hash(caption.casefold().encode()))
            self.owners.append(row)
            self.scripts[_script(caption)] += 1
            length = len(self.tokenizer.encode(caption)) + 2  # its start and its end
            self.longest = max(self.longest, length)
            self.truncated += length > self.context_length

    def report(self) -> dict[str, Any]:
        """The figures of this split."""
        doubles = _doubles(self.pictures)
        return {
            "samples": len(self.source),
            "looked_at": len(self.rows) + self.unreadable,
            "captions": len(self.captions),
            "samples_with_several_captions": self.several,
            "skipped": sum(self.reasons.values()),
            "skipped_by_reason": dict(self.reasons.most_common()),
            "ignored": _ignored(self.source),
            "unreadable": self.unreadable,
            "formats": dict(self.formats.most_common()),
            "pictures_there_twice": int(doubles.sum()),
            "twice_for_example": [self.source.keys[self.rows[int(i)]] for i in np.flatnonzero(doubles)[:EXAMPLES]],
            "captions_there_twice": int(_doubles(self.captions).sum()),
            "captions_longer_than_context": self.truncated,
            "context_length": self.context_length,
            "longest_caption_tokens": self.longest,
            "scripts": dict(self.scripts.most_common()),
            "fingerprint": self.source.fingerprint,
        }


def _shared(a: str, first: _Look, b: str, second: _Look) -> dict[str, Any]:
    """What of a split is in another one, too."""
    pictures = np.isin(np.array(second.pictures, np.uint64), np.array(first.pictures, np.uint64))
    captions = np.isin(np.array(second.captions, np.uint64), np.array(first.captions, np.uint64))
    return {
        "splits": [a, b],
        "pictures": int(pictures.sum()),
        "captions": int(captions.sum()),
        "for_example": [second.source.keys[second.rows[int(i)]] for i in np.flatnonzero(pictures)[:EXAMPLES]],
    }


def _doubles(hashes: array) -> np.ndarray:
    """True for each value that came before."""
    values = np.array(hashes, np.uint64)
    doubles = np.ones(len(values), bool)
    doubles[np.unique(values, return_index=True)[1]] = False
    return doubles


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def _ignored(source: Source) -> dict[str, int]:
    ignored = getattr(source, "ignored", {})
    if isinstance(ignored, int):
        return {"members with odd names": ignored} if ignored else {}
    return dict(ignored)


def _kind(reason: str) -> str:
    """A reason without what differs from one sample to the next."""
    return re.sub(r"(?<!\w)\d+(?:,\d{3})*(?!\w)", "N", re.sub(r"'[^']*'", "'...'", reason.split(" (")[0]))[:80]


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _script(caption: str) -> str:
    """The script of most letters, and for Latin ones whether the words look English."""
    names = Counter(unicodedata.name(letter, "?").split(" ")[0] for letter in caption if letter.isalpha())
    if not names:
        return "no letters"
    if "HIRAGANA" in names or "KATAKANA" in names:
        return SCRIPTS["HIRAGANA"]
    most = names.most_common(1)[0][0]
    if most == "LATIN" and not ENGLISH.isdisjoint(caption.lower().split()):
        return "Latin, with English words"
    return SCRIPTS.get(most, most.title())


def _tokenizer(name: str) -> Tokenizer:
    if name == "clip":
        return ClipTokenizer.published()
    if name == "openmoji":
        text = (resources.files("opencoca.data") / "openmoji_tokenizer.json").read_text(encoding="utf-8")
        return Tokenizer.from_json(text, name="openmoji_tokenizer.json")
    if not Path(name).exists():
        raise ConfigError(f"the tokenizer {name!r} is no file; give a tokenizer.json, 'clip' or 'openmoji'")
    return Tokenizer.load(Path(name))
