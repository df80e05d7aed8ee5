"""A contact sheet: the pictures of a search on one page that needs nothing else, neither files nor scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opencoca.data.pixels import open_picture
from opencoca.errors import DataError
from opencoca.report.markup import Html, count, escape, join, tag

FAINT = "Faint pictures are weak matches: no better than what unrelated words find."
THUMBNAIL_PX = 320  # twice what is shown, for sharp screens
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f7f9;--ink:#1a1e26;--soft:#5a6372;--line:#dfe3e9;--accent:#2a56c6}
@media (prefers-color-scheme:dark){:root{--paper:#12151b;--panel:#1a1e26;--ink:#e7eaf0;--soft:#9aa4b4;--line:#2c323d;
--accent:#8db0ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:80rem;padding:2rem 1.25rem;background:var(--paper);color:var(--ink);overflow-wrap:anywhere;
font:1rem/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",sans-serif}
h1{font-size:1.6rem;letter-spacing:-.01em;margin:0 0 .25rem}
h2{font-size:1.1rem;margin:2rem 0 .75rem}
p{margin:0;color:var(--soft)}
ol{list-style:none;margin:1.5rem 0 0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));
gap:1.1rem}
figure{margin:0}
.plate{display:flex;align-items:center;justify-content:center;aspect-ratio:1;background:#fff;
border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
.plate img{max-width:100%;max-height:100%;display:block}
.plate span{color:#5a6372;font-size:.8rem;padding:1rem;text-align:center}
figcaption{padding:.45rem .1rem 0;font-size:.86rem}
figcaption b{display:block;font-weight:600}
figcaption span{display:block;color:var(--soft);font-size:.8rem}
.weak .plate{opacity:.55}
.score{color:var(--accent);font-variant-numeric:tabular-nums}
"""


class Cell(NamedTuple):
    """A picture of the sheet: its file, the name and lines below it, and whether it is a good match."""

    file: Path
    name: str
    caption: str
    why: str
    good: bool = True


def sheet(title: str, note: str, groups: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """The page: groups of pictures, each under its heading ("" for none)."""
    body = [tag("h1", title), tag("p", note)]
    if not all(cell.good for _, cells in groups for cell in cells):
        body.append(tag("p", FAINT))
    for heading, cells in groups:
        if heading:
            body.append(tag("h2", heading, " ", tag("span", f"· {count(len(cells), 'picture')}", class_="score")))
        body.append(tag("ol", *(tag("li", _figure(cell), class_="weak" if not cell.good else None) for cell in cells)))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


def _figure(cell: Cell) -> Html:
    lines = [tag("b", cell.caption)] if cell.caption else []
    lines += [tag("span", cell.name), tag("span", cell.why)]
    return tag("figure", tag("div", _thumbnail(cell), class_="plate"), tag("figcaption", join(lines)))


def _thumbnail(cell: Cell) -> Html:
    try:
        image = open_picture(cell.file, name=cell.name)
    except DataError as error:
        return tag("span", escape(str(error)))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.info.clear()
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return tag(
        "img", src="data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), alt=cell.caption or cell.name
    )
