"""Pictures with one class each, from labelled folders and from shards, and how changed ones are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.eval.cache import Arrays, Cache, fingerprint
from opencoca.eval.captioned import Captioned
from opencoca.eval.embed import embed_labels
from opencoca.eval.labelled import Labelled, open_labelled
from opencoca.eval.registry import Options, Place
from opencoca.eval.results import skipped_facts
from opencoca.eval.statistics import bootstrap_interval, digest
from opencoca.infer.predictor import Predictor

MANIFEST = "manifest.json"  # of shards, as `coca quickstart` and `coca data import` write them
BLOCK = 128
CAPTIONS = "captions"

# What is worked out for a batch: its squares uint8 [B,H,W,3] and their ids, to arrays with a row for each.
Work = Callable[[np.ndarray, list[str]], Arrays]


class Judged(NamedTuple):
    """What was worked out of the pictures that could be read: their places, arrays with a row each, and the others."""

    places: list[int]
    rows: Arrays
    skipped: list[tuple[str, str]]


def open_pictures(place: Place) -> Labelled:
    """Labelled pictures in any form of `open_labelled`; of shards, each different caption is a class.

    Raises: DataError if there are none.
    """
    path, split = place
    if (path / MANIFEST).is_file():
        return _captioned(place)
    if split is not None:
        if not (path / split).is_dir():
            raise DataError(f"{path} has no folder {split!r}; leave #{split} out, or name a folder of classes in it")
        path = path / split
    return open_labelled(path)


def _captioned(place: Place) -> Labelled:
    source = Captioned(place, Options())
    captions, kept, skipped = [], [], list(source.skipped)
    for i, key in enumerate(source.keys):
        try:
            captions.append(source.read(i).caption.strip())
            kept.append(i)
        except DataError as error:
            skipped.append((key, str(error)))
    if not kept:
        raise DataError(f"{place.path} has no picture that can be read; prepare it again")
    classes = list(dict.fromkeys(captions))
    number = {caption: i for i, caption in enumerate(classes)}
    return Labelled(
        [source.keys[i] for i in kept],
        [number[caption] for caption in captions],
        tuple((caption,) for caption in classes),
        ("{}",),
        CAPTIONS,
        lambda i: source.read(kept[i]),
        skipped,
        source.stamp,
    )


def per_picture(
    predictor: Predictor, pictures: Labelled, cache: Cache, key: Sequence[object], work: Work, empty: Arrays
) -> Judged:
    """What `work` gives for each picture, block by block; a picture that can't be read is named and left out.

    Args: key tells what `work` does apart, for the cache; empty has an array of no rows for each that `work` gives.
    """

    def block_of(block: range) -> Arrays:
        files, reasons = [], []
        for i in block:
            try:
                files.append(pictures.read(i).picture)
                reasons.append("")
            except DataError as error:
                files.append(b"")  # which can't be read either
                reasons.append(str(error))
        made = {name: np.zeros((len(block), *one.shape[1:]), one.dtype) for name, one in empty.items()}
        bad: list[str] = []
        good: set[int] = set()
        for batch in predictor.squares(files, lambda _, error: bad.append(str(error))):
            for name, rows in work(batch.squares, [pictures.ids[block[place]] for place in batch.places]).items():
                made[name][batch.places] = rows
            good.update(batch.places)
        for place, reason in zip((i for i in range(len(block)) if i not in good), bad, strict=True):
            reasons[place] = reasons[place] or reason
        return {**made, "reasons": np.array(reasons, dtype=str)}

    whole = ("judged", fingerprint(predictor), pictures.stamp, *key)
    made = cache.in_blocks(whole, len(pictures), block_of, BLOCK)
    reasons = made.pop("reasons").tolist() if made else []
    places = [i for i, reason in enumerate(reasons) if not reason]
    skipped = [(pictures.ids[i], reason) for i, reason in enumerate(reasons) if reason]
    if not places:
        raise DataError(
            f"none of {len(pictures)} pictures can be read; {skipped[0][1] if skipped else 'there are none'}"
        )
    return Judged(places, {name: rows[places] for name, rows in made.items()}, [*pictures.skipped, *skipped])


class Classes:
    """The classes of labelled pictures for one model, as unit-norm embeddings [L,E], and what it takes pictures for."""

    def __init__(self, predictor: Predictor, pictures: Labelled, cache: Cache) -> None:
        self.embeds = embed_labels(predictor, pictures.names, pictures.templates, cache)
        self.key = digest([pictures.names, pictures.templates])
        self._predictor = predictor

    def guesses(self, squares: np.ndarray) -> np.ndarray:
        """The class int32 [B] that is nearest to each square uint8 [B,H,W,3]."""
        embeds = self._predictor.encode_squares(squares).embed.float().cpu()
        return (embeds @ self.embeds.T).argmax(dim=1).numpy().astype(np.int32)


def truths_of(pictures: Labelled, places: Sequence[int]) -> np.ndarray:
    """The true classes of the pictures at some places."""
    return np.array([pictures.truths[place] for place in places])


def is_right(guesses: np.ndarray, truths: np.ndarray) -> Tensor:
    """1 where a guess [I,...] is the truth [I], else 0, as float64."""
    return torch.from_numpy((guesses == truths.reshape(-1, *(1,) * (guesses.ndim - 1))).astype(np.float64))


def band(title: str, note: str, rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shares of pictures by condition, with their intervals, as the report draws them; nan is left out."""
    known = {name: values[values.isfinite()] for name, values in rows.items()}
    return {
        "title": title,
        "note": note,
        "unit": "%",
        "rows": [
            {"name": name, "n": len(values), "value": 100 * float(values.mean())}
            | dict(zip(("low", "high"), (100 * end for end in bootstrap_interval(values)), strict=True))
            for name, values in known.items()
            if len(values)
        ],
    }


def common_facts(pictures: Labelled, places: Sequence[int], skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The facts that every evaluation of labelled pictures has."""
    return {
        "split_digest": pictures.digest,
        "samples": len(places),
        "classes": len(pictures.names),
        "chance": 1 / len(pictures.names),
        "templates": list(pictures.templates),
        "template_source": pictures.template_source,
        "skipped": skipped_facts(skipped),
    }
