"""The same emoji as several designers drew them: which drawings there are, what each is called, and who may see them.

A style is an icon set in Iconify's npm layout: `icons.json` holds the drawings by slug, `chars.json` the slugs by code
points. Names are the captions of `openmoji.tsv`, so one emoji has one name in every style; keywords are CLDR's, from
the npm package emojibase-data. OpenMoji's own drawings are the held-out style and no style of this module.

Who may see what, all by concept (an emoji without tone, gender and direction) and without skin tone:

- `test_unseen`: OpenMoji's drawings of the concepts that `openmoji.tsv` keeps for its `test_concepts`;
- `test_seen`: OpenMoji's drawings of emoji that training shows in another style;
- `val`: 60 pictures of concepts that training never shows (kind "unseen") and 140 of emoji that it shows in other
  styles (kind "seen"), in Noto's and Twemoji's hand, which differ more from the rest than the two Fluent sets do.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.data.openmoji import Row, load_table
from opencoca.errors import DataError

UNSEEN_IN_VAL, SEEN_IN_VAL = 60, 140
VAL_STYLES = ("noto", "twemoji")
TAGS_PER_CAPTION = 3
FILES = ("icons.json", "chars.json", "en/data.json")  # all that is read of the npm packages
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


class Style(NamedTuple):
    """One icon set: its npm package, and the one whose `chars.json` knows its slugs (Fluent's colour set has none)."""

    name: str
    package: str
    characters: str


STYLES = (
    Style("noto", "@iconify-json/noto", "@iconify-json/noto"),
    Style("fluent", "@iconify-json/fluent-emoji", "@iconify-json/fluent-emoji-flat"),
    Style("flat", "@iconify-json/fluent-emoji-flat", "@iconify-json/fluent-emoji-flat"),
    Style("twemoji", "@iconify-json/twemoji", "@iconify-json/twemoji"),
)


class Drawing(NamedTuple):
    """One emoji in one style, as SVG text, with its split and `kind` (of "val" only, see above)."""

    style: str
    row: Row
    svg: str
    split: str
    kind: str


def order_of(*parts: str) -> bytes:
    """A position without meaning, the same on every machine."""
    return hashlib.sha256("/".join(parts).encode()).digest()


def plain(id: str) -> str:
    """Code points without variation selectors, in capitals: the icon sets disagree about both."""
    return "-".join(code for code in id.upper().split("-") if code != "FE0F")


@cache
def emoji() -> dict[str, Row]:
    """Every emoji of the table by `plain` code points; where two have one drawing, only the first."""
    return {plain(row.id): row for row in load_table() if row.picture == row.id}


@cache
def unseen_concepts() -> dict[str, str]:
    """The concepts that training never shows, and the split that each belongs to."""
    held = {row.concept: "test_unseen" for row in load_table() if row.split == "test_concepts"}
    pool = sorted(
        {row.concept for row in emoji().values() if not row.tones} - set(held), key=lambda c: order_of("v", c)
    )
    return held | dict.fromkeys(pool[:UNSEEN_IN_VAL], "val")


@cache
def unseen_names() -> tuple[str, ...]:
    """The names of unseen emoji without skin tone, in lower case: captions of other pictures must not hold them."""
    names = {row.caption.lower() for row in emoji().values() if row.concept in unseen_concepts() and not row.tones}
    return tuple(sorted(names | {name.removeprefix("flag of ").removeprefix("the ") for name in names}))


def read_json(folder: Path, name: str) -> Any:
    """One JSON file of an unpacked package.

    Raises: DataError if it is missing or damaged.
    """
    path = folder / name
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}); unpack the package again") from error


def svg_of(icons: dict[str, Any], slug: str) -> str | None:
    """The SVG text of a slug in an `icons.json`, aliases and mirrored ones resolved; None if there is none.

    Raises: DataError where an alias leads in a circle.
    """
    mirrored, seen = False, set[str]()
    while slug not in icons["icons"]:
        if slug in seen:
            raise DataError(f"the alias {slug!r} leads in a circle; unpack the package again")
        seen.add(slug)
        alias = icons.get("aliases", {}).get(slug)
        if alias is None:
            return None
        mirrored ^= bool(alias.get("hFlip"))
        slug = alias["parent"]
    icon = icons["icons"][slug]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"]
    if mirrored:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    box = f"{left} {top} {width} {height}"
    return f'<svg {NAMESPACES} viewBox="{box}">{body}</svg>'


def drawings(folders: dict[str, Path]) -> list[Drawing]:
    """Every drawing of every style that some split wants, in an order of no meaning.

    Of an emoji with skin tones, training takes one tone per style, and none of two people: half of all drawings would
    be tones otherwise. Pictures of unseen concepts outside `val` are left out.

    Args: folders has the unpacked package of each name.
    Raises: DataError if a package is missing or damaged.
    """
    taken: list[Drawing] = []
    found: dict[str, dict[str, str]] = {}
    for style in STYLES:
        icons = read_json(folders[style.package], "icons.json")
        characters = read_json(folders[style.characters], "chars.json")
        for codes, slug in characters.items():
            row, svg = emoji().get(plain(codes)), svg_of(icons, slug)
            if row is not None and svg is not None:
                found.setdefault(row.id, {})[style.name] = svg
    rows = {row.id: row for row in emoji().values()}
    in_val = _val(found)
    tones: dict[tuple[str, str], tuple[bytes, Drawing]] = {}
    for id, drawn in found.items():
        row = rows[id]
        for style, svg in drawn.items():
            if in_val.get(id, ("", ""))[0] == style:
                taken.append(Drawing(style, row, svg, "val", in_val[id][1]))
            elif row.concept in unseen_concepts() or len(row.tones) > 1:
                continue
            elif row.tones:
                role, place = (style, row.concept + row.gender), order_of("tone", style, id)
                if role not in tones or place < tones[role][0]:
                    tones[role] = place, Drawing(style, row, svg, "train", "")
            else:
                taken.append(Drawing(style, row, svg, "train", ""))
    taken += [drawing for _, drawing in tones.values()]
    return sorted(taken, key=lambda drawing: order_of("order", drawing.style, drawing.row.id))


def _val(found: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    """(style, kind) of each emoji's one picture in `val`."""
    rows = {row.id: row for row in emoji().values() if not row.tones}
    chosen: dict[str, tuple[str, str]] = {}
    concepts: set[str] = set()
    seen = 0
    for id in sorted(set(found) & set(rows), key=lambda id: order_of("val", id)):
        styles = [style for style in VAL_STYLES if style in found[id]]
        concept = rows[id].concept
        if not styles or concept in concepts:
            continue
        style = styles[order_of("style", id)[0] % len(styles)]
        if unseen_concepts().get(concept) == "val":
            chosen[id] = style, "unseen"
            concepts.add(concept)
        elif concept not in unseen_concepts() and len(found[id]) >= 3 and seen < SEEN_IN_VAL:
            chosen[id] = style, "seen"
            concepts.add(concept)
            seen += 1
    return chosen


def test_rows() -> dict[str, list[Row]]:
    """The emoji of `test_seen` and `test_unseen`, without skin tone; Twemoji draws every one of them."""
    lists: dict[str, list[Row]] = {"test_seen": [], "test_unseen": []}
    for row in emoji().values():
        if not row.tones and unseen_concepts().get(row.concept) != "val":
            lists["test_unseen" if row.concept in unseen_concepts() else "test_seen"].append(row)
    return lists


def keywords(folder: Path) -> dict[str, list[str]]:
    """CLDR's English keywords of each emoji by `plain` code points.

    Args: folder has the unpacked npm package emojibase-data.
    Raises: DataError if it is missing or damaged.
    """
    entries = read_json(folder, "en/data.json")
    return {plain(entry["hexcode"]): entry.get("tags", []) for entry in entries}


def english_words(tags: dict[str, list[str]]) -> frozenset[str]:
    """Every word of three letters or more in the names and keywords of emoji, in lower case."""
    texts = [row.caption for row in emoji().values()] + [tag for some in tags.values() for tag in some]
    return frozenset(word for text in texts for word in re.findall(r"[a-z]{3,}", text.lower()))


def keyword_caption(row: Row, tags: list[str], salt: str) -> str | None:
    """A few of an emoji's keywords that its name doesn't say, or None if it has none left."""
    words = set(row.caption.lower().replace(",", " ").split())
    fresh = [tag for tag in tags if tag.isascii() and len(tag) > 2 and not set(tag.lower().split()) <= words]
    fresh.sort(key=lambda tag: order_of(salt, row.id, tag))
    return ", ".join(fresh[:TAGS_PER_CAPTION]) or None
