"""Embeddings of many pictures and labels, where a picture that can't be read is named and not averaged away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opencoca.data.sample import Sample
from opencoca.errors import DataError
from opencoca.eval.cache import Arrays, Cache, fingerprint
from opencoca.infer.predictor import Predictor
from opencoca.infer.zeroshot import averaged, sentences

LABELS = 256  # labels whose sentences are embedded at once: with 80 templates 20,480 texts


class Embedded(NamedTuple):
    """Pictures that could be read: their places, unit-norm embeddings float32 [I,E], and captions where there are any.

    skipped: (key, reason) of those that could not.
    """

    places: list[int]
    embeds: Tensor
    captions: list[list[str]]
    skipped: list[tuple[str, str]]


def embed_pictures(
    predictor: Predictor,
    read: Callable[[int], Sample],
    keys: Sequence[str],
    cache: Cache,
    stamp: str,
) -> Embedded:
    """The embeddings of the samples that `read` gives for 0 to len(keys)-1, block by block.

    Args: stamp tells the samples' contents apart for the cache.
    """

    def work(block: range) -> Arrays:
        samples, reasons = _readable(read, block)
        rows = np.zeros((len(block), predictor.model.config.embed_dim), np.float32)
        bad: list[str] = []
        good: set[int] = set()
        for batch in predictor.squares(_pictures(samples), lambda _, error: bad.append(str(error))):
            rows[batch.places] = predictor.encode_squares(batch.squares).embed.float().cpu().numpy()
            good.update(batch.places)
        for place, reason in zip((i for i in range(len(block)) if i not in good), bad, strict=True):
            reasons[place] = reasons[place] or reason
        captions = [json.dumps([] if sample is None else sample.captions) for sample in samples]
        return {"embeds": rows, "captions": np.array(captions), "reasons": np.array(reasons, dtype=str)}

    made = cache.in_blocks(("embeds", fingerprint(predictor), stamp), len(keys), work)
    return taken(made, keys)


def taken(made: Arrays, keys: Sequence[str]) -> Embedded:
    """The samples without a reason against them, and those with."""
    if not made:
        return Embedded([], torch.empty(0, 0), [], [])
    reasons = made["reasons"].tolist()
    places = [place for place, reason in enumerate(reasons) if not reason]
    captions = [json.loads(made["captions"][place]) for place in places]
    skipped = [(keys[place], reason) for place, reason in enumerate(reasons) if reason]
    return Embedded(places, torch.from_numpy(made["embeds"][places]), captions, skipped)


def embed_labels(
    predictor: Predictor, names: Sequence[Sequence[str]], templates: Sequence[str], cache: Cache
) -> Tensor:
    """Unit-norm embeddings [L,E] of classes: the mean over every name in every template, a few labels at a time.

    Memory is that of the result and of the sentences of `LABELS` classes, whatever the number of labels.
    """

    def work(block: range) -> Arrays:
        groups = [[text for some in sentences(names[i], templates) for text in some] for i in block]
        return {"embeds": averaged(predictor, groups).numpy()}

    key = ("labels", fingerprint(predictor), json.dumps([list(map(list, names)), list(templates)]))
    return torch.from_numpy(cache.in_blocks(key, len(names), work, LABELS)["embeds"])


def _readable(read: Callable[[int], Sample], block: range) -> tuple[list[Sample | None], list[str]]:
    """The samples of a block, None where one can't be read, and the reason, "" where it can."""
    samples: list[Sample | None] = []
    reasons = []
    for i in block:
        try:
            samples.append(read(i))
            reasons.append("")
        except DataError as error:
            samples.append(None)
            reasons.append(str(error))
    return samples, reasons


def _pictures(samples: Sequence[Sample | None]) -> Iterator[bytes]:
    """The picture files; an empty one, which can't be read either, where there is no sample."""
    return (b"" if sample is None else sample.picture for sample in samples)
