"""The data sets that package tools deliver: what each is, whose, under which licence, and how its folder is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from opencoca.data import drawings, easy_vqa, emoji_styles, idx, openmoji, sprite_clips, stamps, statements
from opencoca.data.get.packages import Facts, Wanted
from opencoca.data.shards import ShardReader
from opencoca.errors import DataError

OPENMOJI_PX = 96  # as `coca quickstart` wants them
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"  # inside the package
VIDEO_REPAIR = 'pip install "opencoca[demo,video]"'
CLIPS = {"train": 480, "val": 80, "test": 240}


class Made(NamedTuple):
    """What a folder holds that was just made: samples by split, a remark, (key, reason) of what had to be left out."""

    counts: Mapping[str, int]
    remark: str = ""
    skipped: tuple[tuple[str, str], ...] = ()


class Files(NamedTuple):
    """What a data set is made from: its packages' files, the folders of what was read of them, other data sets."""

    packages: Mapping[str, Path]
    folders: Mapping[str, Path]
    sets: Mapping[str, Path]


Make = Callable[[Path, Files], Made]


class DataSet(NamedTuple):
    """A data set.

    what: in a line. megabytes: that are fetched. splits: how it is divided. packages: what is fetched, and wanted: what
    is read of it, by package; a wheel that `make` reads itself has none. needs: other data sets that it is made from.
    """

    name: str
    what: str
    megabytes: int
    licence: str
    credit: str
    splits: str
    make: Make
    packages: Mapping[str, Facts] = {}
    wanted: Mapping[str, Wanted] = {}
    needs: tuple[str, ...] = ()


def _openmoji(folder: Path, files: Files) -> Made:
    summary = openmoji.prepare(folder, OPENMOJI_PX)
    return Made(summary.counts, skipped=tuple(summary.skipped))


def _drawings(folder: Path, files: Files) -> Made:
    try:
        with ShardReader(folder) as reader:
            if reader.manifest["source"].get("packages") == drawings.packages():
                return Made(reader.manifest["samples"])  # whole, and of these packages: another command wrote it
    except DataError:
        pass
    return Made(drawings.prepare(folder, dict(files.folders)))


def _stamps(folder: Path, files: Files) -> Made:
    (unpacked,) = files.folders.values()
    prepared = stamps.prepare(folder, unpacked)
    left_out = ", ".join(f"{count}: {reason}" for reason, count in prepared.left_out.items())
    return Made(prepared.counts, f"left out {left_out}" if left_out else "")


def _easy_vqa(folder: Path, files: Files) -> Made:
    (wheel,) = files.packages.values()
    prepared = easy_vqa.prepare(folder, wheel)
    pairs = ", ".join(f"{colour} {shape}" for shape, colour in prepared.held_out)
    return Made(prepared.questions, f"{easy_vqa.PAIRS_TABLE} holds out {pairs}: {counted(prepared.pairs)}")


def _fashion_mnist(folder: Path, files: Files) -> Made:
    (unpacked,) = files.folders.values()
    folder.mkdir(parents=True)
    for file in sorted((unpacked / FASHION_FOLDER).glob("*.gz")):
        shutil.copyfile(file, folder / file.name)
    return Made({split: len(idx.open_idx(folder, split, idx.FASHION)) for split in idx.PARTS})


def _statements(kind: statements.Kind) -> Make:
    return lambda folder, files: Made(statements.build(folder, files.sets["openmoji"], kind))


def _decisive(folder: Path, files: Files) -> Made:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise DataError(f"PyAV, which writes videos, is not installed ({error}); run: {VIDEO_REPAIR}") from error
    return _clips(folder, sprite_clips.decisive, as_files=True)


def _motion(folder: Path, files: Files) -> Made:
    return _clips(folder, sprite_clips.motion, as_files=False)  # backwards to the bit, which no video file would be


def _clips(folder: Path, build: Callable[[str, int], sprite_clips.SpriteClip], as_files: bool) -> Made:
    clips: dict[str, Sequence[sprite_clips.SpriteClip]] = {
        split: [build(split, i) for i in range(count)] for split, count in CLIPS.items()
    }
    sprite_clips.write_table(folder, clips, as_files)
    return Made(CLIPS)


_OPENMOJI = ("CC BY-SA 4.0", openmoji.CREDIT)
_NPM_FILES = Wanted(emoji_styles.FILES)
SETS = {
    one.name: one
    for one in (
        DataSet(
            "openmoji",
            "3,944 emoji with their names, one style; the lists hold out pictures, combinations and concepts",
            0,
            *_OPENMOJI,
            "train, val, test_pictures, test_combinations, test_concepts: by concept",
            _openmoji,
        ),
        DataSet(
            "drawings",
            "emoji in four styles and clip art, several captions and looks of each; OpenMoji's style is held out",
            59,
            "Apache-2.0, MIT, CC BY 4.0, public domain; test: CC BY-SA 4.0",
            "; ".join((*drawings.CREDITS, openmoji.CREDIT)),
            "train, val, test_seen, test_unseen: by concept and style",
            _drawings,
            drawings.packages(),
            {
                name: Wanted((drawings.CLIP_ART_FOLDER,), (".svg",)) if facts["source"] == "debian" else _NPM_FILES
                for name, facts in drawings.packages().items()
            },
        ),
        DataSet(
            "stamps",
            "Tux Paint's photographs and drawings of single things, each with an English sentence",
            161,
            "GPL-2",
            stamps.CREDIT,
            "train, val, test: by concept",
            _stamps,
            stamps.PACKAGE,
            {"tuxpaint-stamps-default": Wanted((stamps.FOLDER,), (".txt", ".png", ".svg"))},
        ),
        DataSet(
            "easy-vqa",
            "48,248 questions about 5,000 pictures of one coloured shape each",
            3,
            "MIT",
            easy_vqa.CREDIT,
            "train, val, test: by picture; pairs.csv holds out four pairs of shape and colour, test_pairs",
            _easy_vqa,
            easy_vqa.PACKAGE,
        ),
        DataSet(
            "fashion-mnist",
            "70,000 pictures of clothing, 28 px, 10 labels",
            31,
            "MIT",
            "Fashion-MNIST by Zalando Research (https://github.com/zalandoresearch/fashion-mnist), licence MIT",
            "train, val, test: every tenth official training picture is val",
            _fashion_mnist,
            idx.FASHION_PACKAGE,
            {"dataset-fashion-mnist": Wanted((FASHION_FOLDER,), (".gz",))},
        ),
        DataSet(
            "pairs",
            "7,800 built statements about the skin tones in two drawings, true or false (as NLVR2)",
            0,
            *_OPENMOJI,
            "train, val, test: OpenMoji's",
            _statements("pairs"),
            needs=("openmoji",),
        ),
        DataSet(
            "triples",
            "7,800 built statements that a drawing entails, contradicts or leaves open (as SNLI-VE)",
            0,
            *_OPENMOJI,
            "train, val, test: OpenMoji's",
            _statements("triples"),
            needs=("openmoji",),
        ),
        DataSet(
            "decisive-clips",
            "800 generated clips of drawings, 16 frames: one frame shows the class, the others something else",
            0,
            *_OPENMOJI,
            "train, val, test: by clip",
            _decisive,
        ),
        DataSet(
            "motion-clips",
            "800 generated clips of a drawing that moves to the left or right, each there backwards, too",
            0,
            *_OPENMOJI,
            "train, val, test: by drawing",
            _motion,
        ),
    )
}


def named(name: str) -> DataSet:
    """A data set by its name. Raises: DataError for another name."""
    if name not in SETS:
        raise DataError(f"there is no data set {name!r}; there are: {', '.join(SETS)}")
    return SETS[name]


def described(dataset: DataSet) -> dict[str, str]:
    """Name, what it is, where it is from, licence, splits."""
    if dataset.packages:
        tools = dict.fromkeys(one["source"].replace("debian", "apt-get") for one in dataset.packages.values())
        source = f"{dataset.megabytes} MB by {' and '.join(tools)}"
    else:
        source = f"made from {' and '.join(dataset.needs) or 'opencoca[demo]'}"
    return {
        "name": dataset.name,
        "what": dataset.what,
        "from": source,
        "licence": dataset.licence,
        "splits": dataset.splits,
    }


def counted(counts: Mapping[str, int]) -> str:
    """Counts by split, in words."""
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())
