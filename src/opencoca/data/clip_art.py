"""Open Clip Art: public-domain pictures whose captions are the titles and keywords that their authors typed.

They are as noisy as the web's: of 8,121 files more than half carry the title of their series ("Lemon SVG theme"), so
most of this module says no, with a reason that is counted. What it lets through has a title of at most three files, in
plain English, and names nothing that a held-out list keeps unseen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

MOST_BYTES = 300_000  # larger files are tracings that take seconds to draw
MOST_ALIKE = 3  # files with one title; more of them is a series, whose name says nothing of the picture
PUBLIC_DOMAIN = (
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
)
SERIES = re.compile(
    r"clip ?art by|collection|theme|symbol_signs|\bicons?\b|iconset|hash\(|sibmission|svg|inkscape|\blogo"
)
FOREIGN = re.compile(r"[^a-zA-Z0-9 ,.'&()/-]")
ENDING = re.compile(
    r"( \d+| - rpg map elements| - body part| \((b and w|contour|correct|\d+)\)|,? by .*)$", re.IGNORECASE
)
EMPTY_TAGS = re.compile(
    "hash|icons?|theme|action|computer|application|special|unsorted|mapsym|lemon_theme_icon|appicon|recreation|people|"
    "clip_?art|signs_and_symbols|magick|mimetypes|filesystem|menu|webpage|sign|symbol|shapes?",
    re.IGNORECASE,
)
TAGS_PER_CAPTION = 3


class ClipArt(NamedTuple):
    """One file, by its path below the folder, with its captions: the title, then keywords if it has good ones."""

    name: str
    captions: tuple[str, ...]


class Described(NamedTuple):
    """What a file says of itself; `reason` is why it is left out."""

    name: str
    title: str = ""
    tags: tuple[str, ...] = ()
    reason: str = ""


def describe(path: Path, name: str) -> Described:
    """Title and keywords of one SVG file, or the reason why it has none."""
    if path.stat().st_size > MOST_BYTES:
        return Described(name, reason=f"larger than {MOST_BYTES} bytes")
    try:
        work = next((e for e in ElementTree.parse(path).iter() if e.tag.endswith("}Work")), None)
    except (ElementTree.ParseError, ValueError, LookupError):
        return Described(name, reason="no well-formed XML")
    if work is None:
        return Described(name, reason="no description inside")
    licences = [value for e in work.iter() if e.tag.endswith("}license") for value in e.attrib.values()]
    if not licences or not set(licences) <= set(PUBLIC_DOMAIN):
        return Described(name, reason="not marked as public domain")
    title = next((e.text or "" for e in work if e.tag.endswith("}title")), "").strip()
    tags = tuple((e.text or "").strip() for e in work.iter() if e.tag.endswith("}li"))
    return Described(name, title, tags)


def clean_title(title: str, name: str = "") -> str:
    """The title in plain words without number, series or author; empty where that leaves no word.

    `name` is the file's path: in a folder of flags, a bare country becomes "flag of" it.
    """
    words = " ".join(re.sub(r"[_]|(?<=\w)-(?=\w)", " ", title).split())
    while (shorter := ENDING.sub("", words).strip(" ,.-")) != words:
        words = shorter
    words = re.sub(r"(?<=[a-z])\d+$", "", words)
    if "/flags/" in name and words and not re.search(r"\b(flag|map)\b", words, re.IGNORECASE):
        return f"flag of {words.title() if words.islower() else words}"
    if words.lower().startswith("flag of "):
        return "flag of " + words[len("flag of ") :]
    return " ".join(word.lower() if word[1:].islower() else word for word in words.split())


def clean_tags(tags: Sequence[str], title: str) -> str:
    """Up to three keywords that the title doesn't say, as a caption; empty where there are none."""
    said = set(title.lower().split())
    kept = dict.fromkeys(
        tag.replace("_", " ").lower() for tag in tags if len(tag) > 2 and not EMPTY_TAGS.fullmatch(tag)
    )
    good = [tag for tag in kept if re.fullmatch(r"[a-z ]+", tag) and not set(tag.split()) <= said]
    return ", ".join(good[:TAGS_PER_CAPTION])


def clip_art(folder: Path, unseen: Sequence[str], english: Container[str]) -> tuple[list[ClipArt], Counter[str]]:
    """The files with usable captions, sorted by name, and how many were left out for each reason.

    Args: folder has the SVG files of Debian's openclipart-svg; unseen has phrases that no caption may hold;
      english has the words (lower case, three letters or more) of which a title must hold one.
    """
    held = re.compile(r"\b(" + "|".join(map(re.escape, sorted(unseen, key=len, reverse=True))) + r")(s|es)?\b")
    paths = sorted(folder.rglob("*.svg"))
    described = [describe(path, path.relative_to(folder).as_posix()) for path in paths]
    titles = Counter(one.title.lower() for one in described if not one.reason)
    kept, left_out = [], Counter(one.reason for one in described if one.reason)
    for one in described:
        if one.reason:
            continue
        title = clean_title(one.title, one.name)
        tags = clean_tags(one.tags, title)
        if titles[one.title.lower()] > MOST_ALIKE:
            reason = f"its title stands in more than {MOST_ALIKE} files"
        elif SERIES.search(one.title.lower()):
            reason = "its title names a series or file format"
        elif len(re.findall(r"[a-zA-Z]{3,}", title)) < 1 or len(title) > 60:
            reason = "its title has no word, or over 60 letters"
        elif FOREIGN.search(title):
            reason = "its title has signs beyond plain English"
        elif not any(word in english for word in re.findall(r"[a-z]{3,}", title.lower())):
            reason = "its title has no word that the names and keywords of emoji have: foreign, or a brand"
        elif held.search(" ".join((title, *one.tags, one.name.replace("_", " "))).lower()):
            reason = "it may show what a held-out list keeps unseen"
        else:
            kept.append(ClipArt(one.name, (title, tags) if tags else (title,)))
            continue
        left_out[reason] += 1
    return kept, left_out
