"""Test pictures that are in the training set too, or nearly: found by a perceptual hash and by the model's embedding.

A duplicate is a pair whose hashes differ in at most 6 of 64 bits and whose thumbnails of 16 x 16 pixels, in colour,
differ by at most 6 of 255 on average: the hash alone takes many drawings on white for each other. It survives scaling,
JPEG and small changes of colour, and neither cropping nor mirroring. Beside it, the pictures nearest by the model's own
embedding are counted, where training has 10,000 or fewer: these share a subject, not always a picture, and which
they are depends on the model.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from opencoca.data.pixels import open_picture
from opencoca.data.sample import Sample
from opencoca.errors import DataError
from opencoca.eval.cache import Arrays, Cache
from opencoca.eval.captioned import Captioned
from opencoca.eval.embed import embed_labels, embed_pictures
from opencoca.eval.labelled import Labelled
from opencoca.eval.registry import Data, Options, Place
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.robustness.pictures import MANIFEST, band, common_facts, open_pictures, truths_of
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor
from opencoca.ranking import top_k

HASH_BITS, THUMB_LEVELS, COSINE = 6, 6.0, 0.95
GREY_PX, THUMB_PX, SIDE = 32, 16, 8
MOST_EMBEDDED = 10_000  # training pictures; hashing a million takes minutes, embedding them hours
SHOWN = 12
METHOD = 1  # raised when hashes or thumbnails change


def described(picture: Image.Image) -> tuple[int, np.ndarray]:
    """A picture's hash of 64 bits and its thumbnail uint8 [16,16,3].

    The hash tells which of the 64 slowest waves of the grey picture are above their median, as "pHash" does.
    """
    grey = np.asarray(picture.convert("L").resize((GREY_PX, GREY_PX), Image.Resampling.BOX), dtype=np.float64)
    waves = _cosines() @ grey @ _cosines().T
    flat = waves.ravel()
    # The first wave is the mean. What a symmetric drawing lacks is 0 up to rounding: a little above the median, such
    # waves are below it whatever their last bits.
    bits = flat > np.median(flat[1:]) + 0.05 * np.abs(flat[1:]).mean()
    value = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return value, np.asarray(picture.convert("RGB").resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX))


def nearest(hashes: np.ndarray, thumbs: np.ndarray, known: np.ndarray, known_thumbs: np.ndarray) -> np.ndarray:
    """For each picture the index of the training picture that it duplicates, or -1.

    Args: hashes uint64 [I] and thumbs uint8 [I,16,16,3] of the pictures, known ones [J] likewise.
    """
    found = np.full(len(hashes), -1)
    if not len(known):
        return found
    for i, one in enumerate(hashes):
        close = np.flatnonzero(_bit_count(known ^ one) <= HASH_BITS)
        if len(close):
            gaps = np.abs(known_thumbs[close].astype(np.int16) - thumbs[i].astype(np.int16)).mean(axis=(1, 2, 3))
            if gaps.min() <= THUMB_LEVELS:
                found[i] = close[gaps.argmin()]
    return found


class Overlap:
    """Accuracy on all test pictures, and on those of which training has no duplicate, which is the headline."""

    def __init__(self, name: str, pictures: Labelled, training: Place, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures.spread(options.limit), options
        self._training = _Training(training)
        self.key = digest([name, METHOD, self._pictures.stamp, self._pictures.digest, self._training.stamp])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model; the training pictures are hashed once, and those that differ embedded once."""
        began, pictures, training, cache = time.perf_counter(), self._pictures, self._training, self._options.cache
        known = _described_all(training.read, training.keys, training.stamp, cache)
        own = _described_all(pictures.read, pictures.ids, pictures.stamp, cache)
        embedded = embed_pictures(predictor, pictures.read, pictures.ids, cache, pictures.stamp)
        if not embedded.places or not any(not reason for reason in known["reasons"].tolist()):
            raise DataError(f"{self.name}: no picture of the test or the training set can be read; check the paths")
        unread = [(training.keys[i], r) for i, r in enumerate(known["reasons"].tolist()) if r]
        # Copies of one file count once: shards may hold a picture with several captions.
        _, firsts = np.unique(known["files"], return_index=True)
        firsts = np.sort(firsts[known["reasons"][firsts] == ""])
        places = embedded.places
        twin = nearest(own["hashes"][places], own["thumbs"][places], known["hashes"][firsts], known["thumbs"][firsts])
        some = [int(i) for i in firsts]
        near, alike = self._near(predictor, embedded.embeds, [pictures.ids[place] for place in places], some)
        labels = embed_labels(predictor, pictures.names, pictures.templates, cache)
        guesses = top_k(embedded.embeds, labels, k=1)[1][:, 0].numpy()
        right = torch.from_numpy((guesses == truths_of(pictures, places)).astype(np.float64))
        twins = torch.from_numpy(twin >= 0)
        per_sample = {
            "acc1_clean": _only(right, ~twins),
            "acc1": right,
            "acc1_duplicates": _only(right, twins),
            "duplicates": twins.double(),
        }
        not_near = torch.full_like(right, torch.nan)
        if near is not None:
            not_near = per_sample["acc1_not_near_in_embedding"] = _only(right, ~near)
            per_sample["near_in_embedding"] = near.double()
        figures = {name: mean for name, values in per_sample.items() if (mean := _mean(values)) is not None}
        examples = [
            {"test": pictures.ids[places[i]], "training": training.keys[some[twin[i]]]}
            for i in np.flatnonzero(twin >= 0)[:SHOWN].tolist()
        ]
        facts = {
            **common_facts(pictures, places, [*pictures.skipped, *embedded.skipped]),
            "bands": [
                band(
                    "accuracy with and without what training has too",
                    "near in embedding: a subject in common, as the model sees it, and not always a picture",
                    {
                        "all": right,
                        "no duplicate": per_sample["acc1_clean"],
                        "duplicates": per_sample["acc1_duplicates"],
                        "not near in embedding": not_near,
                    },
                )
            ],
            "training_pictures": len(training.keys),
            "training_pictures_that_differ": len(some),
            "training_unread": skipped_facts([*training.skipped, *unread]),
            "duplicates_found": examples,
            "nearest_in_embedding": alike,
            "not_measured": {}
            if near is not None
            else {"near_in_embedding": f"training has {len(some)} different pictures, more than {MOST_EMBEDDED}"},
            "rule": f"hashes within {HASH_BITS} of 64 bits and thumbnails within {THUMB_LEVELS:g} of 255 levels; "
            f"near in embedding: cosine of {COSINE} or more",
            "seconds": round(time.perf_counter() - began, 2),
        }
        ids = [pictures.ids[place] for place in places]
        headline = "acc1_clean" if "acc1_clean" in figures else "acc1"
        return EvaluationResult(self.name, figures, headline, per_sample, ids, facts)

    def _near(
        self, predictor: Predictor, embeds: torch.Tensor, ids: list[str], some: list[int]
    ) -> tuple[torch.Tensor | None, list[dict]]:
        """Which pictures are near one of training's in embedding [I], and the nearest; None if there are too many."""
        if len(some) > MOST_EMBEDDED:
            return None, []
        training = self._training
        keys = [training.keys[i] for i in some]
        stamp = digest([training.stamp, *some])
        learnt = embed_pictures(predictor, lambda i: training.read(some[i]), keys, self._options.cache, stamp)
        cosines, likest = top_k(embeds, learnt.embeds, k=1)
        alike = [
            {
                "test": ids[i],
                "training": keys[learnt.places[int(likest[i, 0])]],
                "cosine": round(float(cosines[i, 0]), 4),
            }
            for i in cosines[:, 0].argsort(descending=True)[:SHOWN].tolist()
        ]
        return cosines[:, 0] >= COSINE, alike


class _Training:
    """The training pictures, by index, in any form that evaluations or training read."""

    def __init__(self, place: Place) -> None:
        if (place.path / MANIFEST).is_file():
            source = Captioned(Place(place.path, place.split or "train"), Options())
            self.keys, self.stamp, self.skipped = source.keys, source.stamp, source.skipped
        else:
            source = open_pictures(place)
            self.keys, self.stamp, self.skipped = source.ids, source.stamp, source.skipped
        self.read: Callable[[int], Sample] = source.read


def _described_all(read: Callable[[int], Sample], keys: list[str], stamp: str, cache: Cache) -> Arrays:
    """Hash, thumbnail and a digest of the file of every picture, and the reason where it can't be read."""

    def work(block: range) -> Arrays:
        hashes, files = np.zeros(len(block), np.uint64), np.zeros(len(block), np.uint64)
        thumbs, reasons = np.zeros((len(block), THUMB_PX, THUMB_PX, 3), np.uint8), []
        for row, i in enumerate(block):
            try:
                content = read(i).picture
                value, thumbs[row] = described(open_picture(content, name=keys[i]))
                hashes[row] = value
                files[row] = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
                reasons.append("")
            except DataError as error:
                reasons.append(str(error))
        return {"hashes": hashes, "files": files, "thumbs": thumbs, "reasons": np.array(reasons, dtype=str)}

    made = cache.in_blocks(("described", METHOD, stamp), len(keys), work)
    if not made:
        raise DataError("there are no pictures to compare; check the paths")
    return made


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The 8 slowest waves of the cosine transform of 32 values [8,32]."""
    return np.cos(np.pi * np.outer(np.arange(SIDE), np.arange(GREY_PX) + 0.5) / GREY_PX)


def _bit_count(values: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    return np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1).sum(axis=1)


def _only(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The values, nan where they aren't kept."""
    return torch.where(kept, values, torch.full_like(values, torch.nan))


def _mean(values: torch.Tensor) -> float | None:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None


def make(name: str, data: Data, options: Options) -> Overlap:
    """The pictures at `--data classes=PATH` that are in `--data training=PATH` too."""
    return Overlap(name, open_pictures(data["classes"]), data["training"], options)
