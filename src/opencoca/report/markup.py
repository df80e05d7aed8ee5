"""HTML from calls, where text can't become markup: all that isn't `Html` already is escaped on its way in."""

import html
import math
import re
from collections.abc import Iterable

VOID = {"img", "meta", "br"}
# Neither HTML nor UTF-8 files can hold these: control characters and lone halves of a surrogate pair (odd file names).
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
DASH = "–"


class Html(str):
    """Finished markup, which `tag` takes as it is. Only this package makes it, and never from a caller's text."""

    __slots__ = ()


def escape(text: str) -> Html:
    """The text as HTML that shows it, also inside a quoted attribute."""
    return text if isinstance(text, Html) else Html(html.escape(UNPRINTABLE.sub("\ufffd", text), quote=True))


def join(parts) -> Html:
    """Several pieces as one; what isn't `Html` is escaped."""
    return Html("".join(escape(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """An element. In an attribute's name a trailing _ is dropped, others are hyphens; None and False leave it out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value) if value is not True else "")}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{shown}>") if name in VOID else Html(f"<{name}{shown}>{join(children)}</{name}>")


def wide_table(head: Iterable[str], rows: Iterable[str], style: str) -> Html:
    """A table of header cells and rows, which scrolls by itself where the page is narrower."""
    body = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_=style)
    return tag("div", body, class_="wide")


def number(value: float | None, unit: str = "") -> str:
    """A measured value as people write it, with its unit: 47.3%, 0.25%, 1.52, 312; an en dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if unit == "%":
        return f"{value:.2f}%" if 0 < size < 0.995 else f"{value:.1f}%"
    if size >= 99.95:
        text = f"{value:,.0f}"
    elif size >= 0.01 or size == 0:
        text = f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-")
    return f"{text} {unit}".rstrip()


def count(n: int, noun: str) -> str:
    """A number of things: "1 picture", "1,200 pictures"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
