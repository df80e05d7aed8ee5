"""Pictures that are nearly the same, and albums of pictures that are alike, by their embeddings alone.

Both give the same groups for the same index, whatever the number of threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from opencoca.search.query import words

BLOCK = 2048
NEARLY_SAME = 0.97
ROUNDS = 25
TITLE_SHARE = 0.5  # of an album's captions that must share a word for it to be in the title


class Album(NamedTuple):
    """Places (in what was given) of pictures that are alike, the most typical first, and what their captions share."""

    title: str
    places: list[int]


def duplicates(embeds: np.ndarray, threshold: float = NEARLY_SAME) -> list[list[int]]:
    """Groups of places whose unit-norm embeddings [I,E] are linked by similarities of `threshold` or more.

    Groups of one are left out; groups, and the places in each, are ordered by place.
    """
    parent = np.arange(len(embeds))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for first, second in _close_pairs(embeds, threshold):
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    groups: dict[int, list[int]] = {}
    for i in range(len(embeds)):
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def albums(embeds: np.ndarray, captions: Sequence[str], count: int = 0) -> list[Album]:
    """Pictures in `count` albums (0: about the square root of half their number), the largest first.

    Spherical k-means from centres that are spread out: the first is the most typical picture, each next one the picture
    farthest from the centres so far among the denser ones.
    """
    total = len(embeds)
    if not total:
        return []
    count = min(count or max(1, round((total / 2) ** 0.5)), total)
    values = np.asarray(embeds, np.float32)
    centres = _spread(values, count)
    labels = np.full(total, -1)
    for _ in range(ROUNDS):
        scores = values @ centres.T
        new = scores.argmax(axis=1)
        if (new == labels).all():
            break
        labels = new
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, values)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 1e-9, sums / np.maximum(norms, 1e-9), centres)
    scores = (values @ centres.T)[np.arange(total), labels]
    groups = [np.flatnonzero(labels == label) for label in range(count)]
    ordered: list[list[int]] = [group[np.lexsort((group, -scores[group]))].tolist() for group in groups if len(group)]
    made = [Album(title([captions[i] for i in group]), group) for group in ordered]
    return sorted(made, key=lambda album: (-len(album.places), album.places[0]))


def title(captions: Sequence[str]) -> str:
    """What these captions (the most typical first) share: the words that half of them have, else the first one."""
    known = [caption for caption in captions if caption]
    if not known:
        return "pictures without a caption"
    counts = Counter(word for caption in known for word in words(caption))
    shared = {word for word, times in counts.items() if times >= max(2, TITLE_SHARE * len(known))}
    if not shared:
        return known[0]
    best = max(known, key=lambda caption: len(words(caption) & shared) / (1 + len(words(caption) - shared)))
    return " ".join(word for word in best.split() if words(word) & shared) or best


def _close_pairs(embeds: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start in range(0, len(embeds), BLOCK):
        left = np.asarray(embeds[start : start + BLOCK], np.float32)
        for other in range(start, len(embeds), BLOCK):
            right = left if other == start else np.asarray(embeds[other : other + BLOCK], np.float32)
            rows, columns = np.nonzero(left @ right.T >= threshold)
            keep = rows + start < columns + other
            found += zip((rows[keep] + start).tolist(), (columns[keep] + other).tolist(), strict=True)
    return found


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Starting centres [count,E] without chance: picture after picture, each the least like the centres before it."""
    middle = values.mean(axis=0)
    chosen = [int((values @ middle).argmax())]
    nearest = values @ values[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, values @ values[chosen[-1]])
    return values[chosen].copy()
