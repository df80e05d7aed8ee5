"""The drawings that the shipped model learns from, as tar shards: emoji in four styles and public-domain clip art.

Each drawing is written several times, with another caption or another look: moved, scaled, turned a little, paler or
stronger, on white or a light ground. So a reader that knows no augmentation still shows the model a new picture.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from opencoca.data import clip_art, emoji_styles, openmoji
from opencoca.data.emoji_styles import Drawing
from opencoca.data.shards import ShardWriter
from opencoca.errors import DataError

SIZE_PX = 72
RENDER_PX = 144
MOST_SKIPPED = 0.02
FAINTEST = 16  # of 255: what varies by less in every channel shows nothing
CREDITS = (
    "Noto Emoji by Google, Apache-2.0",
    "Fluent Emoji by Microsoft, MIT",
    "Twemoji by Twitter and other contributors, CC BY 4.0",
    "Open Clip Art Library, public domain",
    "names and keywords: Unicode CLDR, Unicode-3.0, through emojibase-data (MIT)",
)
CLIP_ART_FOLDER = "usr/share/openclipart/svg"
REPAIR = 'pip install "opencoca[demo]"'


class Copy(NamedTuple):
    """One sample on its way into a shard."""

    split: str
    key: str
    picture: bytes
    caption: str
    attributes: dict[str, Any]


def packages() -> dict[str, dict[str, str]]:
    """The packages that the drawings come from: version, file name, sha256, licence and source ("npm" or "debian")."""
    return json.loads(resources.files("opencoca.data").joinpath("drawings_packages.json").read_bytes())


def render(svg: str, size_px: int = RENDER_PX) -> Image.Image:
    """An SVG as an RGBA image whose longer side is size_px.

    Raises: DataError if it can't be drawn, or the renderer isn't installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(f"the SVG renderer is not installed ({error}); run: {REPAIR}") from error
    try:
        # 90 dots per inch are what old Inkscape files mean; without a number, sizes in millimetres are refused.
        content = resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, dpi=90, skip_system_fonts=True)
    except ValueError as error:
        raise DataError(f"a drawing can't be rendered ({error}); leave it out") from error
    return Image.open(io.BytesIO(content)).convert("RGBA")


def trimmed(image: Image.Image) -> Image.Image:
    """The part of an RGBA image that isn't transparent.

    Raises: DataError if nothing is drawn, or all in one colour up to the edges.
    """
    box = image.getchannel("A").getbbox()
    if box is None:
        raise DataError("the drawing is empty; leave it out")
    image = image.crop(box)
    if np.ptp(np.asarray(image), axis=(0, 1)).max() < FAINTEST:
        raise DataError("the drawing is all of one colour; leave it out")
    return image


def composed(image: Image.Image, size_px: int, chance: random.Random | None = None) -> bytes:
    """PNG bytes of an RGBA drawing in a square of size_px: centred on white, or as `chance` would have it."""
    scale, turn, ground = 1.0, 0.0, (255, 255, 255)
    if chance is not None:
        scale = chance.uniform(0.72, 1.0)
        turn = chance.uniform(-10, 10) if chance.random() < 0.5 else 0.0
        if chance.random() < 0.25:
            ground = tuple(chance.randint(190, 255) for _ in range(3))
    if turn:
        image = image.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    factor = scale * size_px / max(image.size)
    wide, high = (max(1, round(side * factor)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.LANCZOS)
    across, down = ((size_px - side) / 2 for side in (wide, high))
    if chance is not None:
        across, down = across * chance.uniform(0.3, 1.7), down * chance.uniform(0.3, 1.7)
        alpha = image.getchannel("A")
        for enhance in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness):
            image = enhance(image).enhance(chance.uniform(0.75, 1.25))
        image.putalpha(alpha)
    square = Image.new("RGB", (size_px, size_px), ground)
    square.paste(image, (int(across), int(down)), image)
    buffer = io.BytesIO()
    square.save(buffer, "PNG")
    return buffer.getvalue()


def emoji_copies(drawing: Drawing, tags: list[str], size_px: int) -> Iterator[Copy]:
    """The samples of one emoji drawing: in training, its name three times (once with a tone) and its keywords once."""
    row = drawing.row
    key = f"{drawing.style}-{row.id}"
    attributes = {"concept": row.concept, "picture": row.id, "style": drawing.style, "kind": drawing.kind}
    image = render(drawing.svg)
    if drawing.split != "train":
        yield Copy(drawing.split, key, composed(image, size_px), row.caption, attributes)
        return
    captions = [row.caption] if row.tones else [row.caption] * 3
    if not row.tones and (words := emoji_styles.keyword_caption(row, tags, drawing.style)):
        captions.append(words)
    for number, caption in enumerate(captions):
        name = f"{key}-{number}"
        looks = random.Random(name) if number else None
        yield Copy("train", name, composed(image, size_px, looks), caption, attributes)


def clip_art_copies(art: clip_art.ClipArt, folder: Path, number: int, size_px: int) -> Iterator[Copy]:
    """The samples of one piece of clip art: its title twice and its keywords once."""
    image = trimmed(render((folder / art.name).read_text(encoding="utf-8", errors="replace"), 2 * RENDER_PX))
    attributes = {"concept": f"clip-art-{number}", "picture": f"clip-art-{number}", "style": "clip art", "kind": ""}
    for copy, caption in enumerate((art.captions[0], *art.captions)):
        key = f"clip-art-{number}-{copy}"
        looks = random.Random(key) if copy else None
        yield Copy("train", key, composed(image, size_px, looks), caption, attributes | {"file": art.name})


def prepare(
    folder: str | Path,
    unpacked: dict[str, Path],
    size_px: int = SIZE_PX,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes all splits as tar shards into folder and says how many samples each has; takes about 3 minutes.

    Args: unpacked has the folder of each package that `packages` lists, by its name.
    Raises: DataError if a package is missing or damaged, or too many drawings can't be rendered.
    """
    tags = emoji_styles.keywords(unpacked["emojibase-data"])
    drawn = emoji_styles.drawings(unpacked)
    clips = unpacked["openclipart-svg"] / CLIP_ART_FOLDER
    arts, left_out = clip_art.clip_art(clips, emoji_styles.unseen_names(), emoji_styles.english_words(tags))
    jobs: list[tuple[str, str, Callable[[], Iterator[Copy]]]] = []
    for one in drawn:
        words = tags.get(emoji_styles.plain(one.row.id), [])
        jobs.append(
            (one.split, f"{one.style}-{one.row.id}", lambda one=one, words=words: emoji_copies(one, words, size_px))
        )
    for number, art in enumerate(arts):
        jobs.append(("train", art.name, lambda number=number, art=art: clip_art_copies(art, clips, number, size_px)))
    for split, rows in emoji_styles.test_rows().items():
        jobs += [(split, row.id, lambda split=split, row=row: openmoji_copies(split, row, size_px)) for row in rows]
    jobs.sort(key=lambda job: emoji_styles.order_of(*job[:2]))
    source = {"name": "drawings", "size_px": size_px, "credits": list(CREDITS), "test_credit": openmoji.CREDIT}
    source |= {"packages": packages(), "clip_art_left_out": dict(left_out.most_common()), "clip_art_kept": len(arts)}
    counts: Counter[str] = Counter()
    with ShardWriter(folder, source=source) as writer:
        for done, (split, key, copies) in enumerate(jobs, 1):
            try:
                for copy in copies():
                    writer.add(*copy)
                    counts[copy.split] += 1
            except DataError as error:
                writer.skip(split, key, str(error))
            if on_progress:
                on_progress(done, len(jobs))
        if len(writer.skipped) > MOST_SKIPPED * len(jobs):
            raise DataError(
                f"{len(writer.skipped)} of {len(jobs)} drawings were skipped; the first: {writer.skipped[0]}"
            )
    return dict(counts)


def openmoji_copies(split: str, row: openmoji.Row, size_px: int) -> Iterator[Copy]:
    """The one sample of a held-out drawing, plain on white, framed as the other emoji are."""
    attributes = {"concept": row.concept, "picture": row.id, "style": "openmoji", "kind": ""}
    image = render((openmoji.svg_folder() / f"{row.id}.svg").read_text(encoding="utf-8"))
    yield Copy(split, row.id, composed(image, size_px), row.caption, attributes)
