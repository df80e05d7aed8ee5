"""Evaluations on pictures with several captions each: retrieval both ways, and captions in COCO's and NoCaps' forms."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opencoca.data import storage
from opencoca.data.sample import Sample
from opencoca.data.sources import open_source, splits_of
from opencoca.errors import DataError
from opencoca.eval.cache import Arrays, fingerprint
from opencoca.eval.caption_scores import caption_scores, reference_package
from opencoca.eval.embed import embed_pictures
from opencoca.eval.ranks import ranks_both_ways
from opencoca.eval.registry import Data, Options, Place
from opencoca.eval.results import EvaluationResult, read_json, skipped_facts
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor

KS = (1, 5, 10)
DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}


class Captioned:
    """The pictures with captions of one split, by index, as evaluations take them."""

    def __init__(self, place: Place, options: Options) -> None:
        """Raises: DataError if there are none, or the split isn't there; without one, test is taken, then val."""
        self.split = place.split or _usual_split(place.path)
        self._source = open_source(place.path, self.split)
        count = len(self._source)
        limit = min(options.limit or count, count)
        self._kept = [i * count // limit for i in range(limit)]
        self.keys = [str(self._source.keys[i]) for i in self._kept]
        self.skipped = [(str(key), str(reason)) for key, reason in self._source.skipped]
        ignored = getattr(self._source, "ignored", None)
        self.repeats = dict(ignored) if isinstance(ignored, Counter) else {}
        self.stamp = digest([place.path.resolve(), self._source.fingerprint, *self._kept, *self._dates()])

    def read(self, i: int) -> Sample:
        """Sample i. Raises: DataError if it can't be read."""
        return self._source[self._kept[i]]

    def _dates(self) -> list[str]:
        """Sizes and dates of pictures in files of their own, whose contents the fingerprint doesn't know."""
        root = getattr(self._source, "root", None)
        if root is None or not hasattr(self._source, "columns") or storage.is_url(str(root)):
            return []
        dates = []
        for key in self.keys:
            try:
                facts = os.stat(storage.joined(str(root), key))
                dates.append(f"{facts.st_size} {facts.st_mtime_ns}")
            except OSError:
                dates.append("missing")
        return dates


class Retrieval:
    """Each picture among all captions and each caption among all pictures; ties count against the model."""

    def __init__(self, name: str, pictures: Captioned, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures, options
        self.key = digest([name, pictures.stamp])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model. A caption's part in the figures is summed over its picture: pictures are the samples."""
        began, pictures, cache = time.perf_counter(), self._pictures, self._options.cache
        embedded = embed_pictures(predictor, pictures.read, pictures.keys, cache, pictures.stamp)
        if not embedded.places:
            raise DataError(f"{self.name}: none of {len(pictures.keys)} pictures can be read; {embedded.skipped[0][1]}")
        texts = [text for captions in embedded.captions for text in captions]
        targets = torch.tensor([i for i, captions in enumerate(embedded.captions) for _ in captions])

        def work(block: range) -> Arrays:
            return {"embeds": predictor.embed_texts(texts[block.start : block.stop]).numpy()}

        key = ("texts", fingerprint(predictor), digest(texts))
        text_embeds = torch.from_numpy(cache.in_blocks(key, len(texts), work, 4096)["embeds"])
        ranking = time.perf_counter()
        image_ranks, text_ranks = ranks_both_ways(embedded.embeds, text_embeds, targets)
        ranked_s = time.perf_counter() - ranking
        count = len(embedded.places)
        per_sample = {}
        for k in KS:
            per_sample[f"i2t_recall@{k}"] = (image_ranks < k).double()
        for k in KS:
            hits = torch.zeros(count, dtype=torch.double).index_add_(0, targets, (text_ranks < k).double())
            per_sample[f"t2i_recall@{k}"] = hits * count / len(texts)
        figures = {metric: float(values.mean()) for metric, values in per_sample.items()}
        keys = [pictures.keys[place] for place in embedded.places]
        shared = Counter(text.strip().casefold() for text in texts)
        facts = {
            "split": pictures.split,
            "split_digest": digest(
                [f"{key} {captions}" for key, captions in zip(keys, embedded.captions, strict=True)]
            ),
            "samples": count,
            "captions": len(texts),
            "duplicates": {
                "captions of the same words": sum(times - 1 for times in shared.values()),
                "pictures with the same embedding": _equal_rows(embedded.embeds),
                "how they count": "a caption's own picture alone is right, as in all published figures",
            },
            "chance": 1 / count,
            "skipped": skipped_facts([*pictures.skipped, *embedded.skipped]),
            "repeated_captions_left_out": sum(pictures.repeats.values()),
            "ranking_seconds": round(ranked_s, 2),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return EvaluationResult(self.name, figures, "i2t_recall@1", per_sample, keys, facts)


class Captions:
    """Captions against their references: BLEU, ROUGE-L, CIDEr-D and CIDEr, of each of NoCaps' domains too."""

    def __init__(self, name: str, pictures: Captioned, options: Options, domains: dict[str, str] | None = None) -> None:
        self.name, self._pictures, self._options, self._domains = name, pictures, options, domains or {}
        self.key = digest([name, pictures.stamp, options.beams, sorted(self._domains.items())])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures = time.perf_counter(), self._pictures
        made = captions_of(predictor, pictures.read, pictures.keys, pictures.stamp, self._options)
        reasons, captions = made["reasons"].tolist(), made["said"].tolist()
        places = [i for i, reason in enumerate(reasons) if not reason]
        unread = [(pictures.keys[i], reason) for i, reason in enumerate(reasons) if reason]
        if not places:
            raise DataError(f"{self.name}: none of {len(reasons)} pictures can be read; {unread[0][1]}")
        references = [[str(text) for text in pictures.read(i).captions] for i in places]
        candidates = [str(captions[i]) for i in places]
        keys = [pictures.keys[i] for i in places]
        figures, per_sample = caption_scores(candidates, references)
        for domain, short in DOMAINS.items():
            rows = [row for row, key in enumerate(keys) if self._domains.get(Path(key).name) == domain]
            if rows:
                some = caption_scores([candidates[row] for row in rows], [references[row] for row in rows])[0]
                figures[f"cider_d_{short}"] = some["cider_d"]
        more, unmeasured = reference_package(candidates, references)
        for metric, (total, items) in more.items():
            figures[metric], per_sample[metric] = total, torch.tensor(items, dtype=torch.double)
        facts: dict[str, Any] = {
            "split": pictures.split,
            "split_digest": digest([f"{key} {texts}" for key, texts in zip(keys, references, strict=True)]),
            "samples": len(places),
            "references": sum(map(len, references)),
            "beams": self._options.beams,
            "domains": dict(Counter(self._domains.get(Path(key).name, "none") for key in keys))
            if self._domains
            else {},
            "not_measured": unmeasured,
            "examples": [
                {"id": keys[row], "caption": candidates[row], "reference": references[row][0]}
                for row in np.linspace(0, len(keys) - 1, min(8, len(keys))).astype(int).tolist()
            ],
            "skipped": skipped_facts([*pictures.skipped, *unread]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return EvaluationResult(self.name, figures, "cider_d", per_sample, keys, facts)


def captions_of(
    predictor: Predictor, read: Callable[[int], Sample], keys: Sequence[str], stamp: str, options: Options
) -> Arrays:
    """What the model says of each picture ("said"), and the reason where it says nothing ("reasons")."""
    beams = options.beams

    def work(block: range) -> Arrays:
        said, reasons = [""] * len(block), [""] * len(block)
        files: list[tuple[int, bytes]] = []
        for row, i in enumerate(block):
            try:
                files.append((row, read(i).picture))
            except DataError as error:
                reasons[row] = str(error)
        bad: list[str] = []
        rows = {id(file): row for row, file in files}
        given = [file for _, file in files]
        told = predictor.describe(given, beams=beams, on_bad=lambda _, error: bad.append(str(error)))
        done = set()
        for one in told:
            row = rows[id(one.picture)]
            said[row] = one.captions[0].text
            done.add(row)
        for (row, _), reason in zip([(r, f) for r, f in files if r not in done], bad, strict=True):
            reasons[row] = reason
        return {"said": np.array(said, dtype=str), "reasons": np.array(reasons, dtype=str)}

    key = ("captions", fingerprint(predictor), stamp, beams, repr(predictor.config.generation))
    return options.cache.in_blocks(key, len(keys), work, 128)


def make_retrieval(name: str, data: Data, options: Options) -> Retrieval:
    """Retrieval on `--data DATASET=PATH`."""
    return Retrieval(name, Captioned(data[name.partition("/")[0]], options), options)


def make_captions(name: str, data: Data, options: Options) -> Captions:
    """Captioning on `--data DATASET=PATH`; NoCaps' json tells each picture's domain."""
    place = data[name.partition("/")[0]]
    return Captions(name, Captioned(place, options), options, _domains(place.path))


def _usual_split(path: Path) -> str | None:
    """test where the data have it, else val, else all there is."""
    try:
        known = splits_of(open_source(path, None))
    except DataError:
        return None
    return next((split for split in ("test", "val") if split in known), None)


def _domains(path: Path) -> dict[str, str]:
    """The domain of each picture's file name, from NoCaps' json."""
    files = [path] if path.is_file() else sorted(path.glob("*nocaps*.json"))
    found: dict[str, str] = {}
    for file in files if path.is_dir() or path.suffix == ".json" else []:
        content = read_json(file)
        images = content.get("images") if isinstance(content, dict) else None
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict) and image.get("domain") in DOMAINS and isinstance(image.get("file_name"), str):
                found[Path(image["file_name"]).name] = image["domain"]
    return found


def _equal_rows(embeds: torch.Tensor) -> int:
    return len(embeds) - len(np.unique(embeds.numpy(), axis=0))
