"""Caption metrics as the COCO caption evaluation computes them: BLEU-1..4, ROUGE-L, CIDEr and CIDEr-D, exact match.

Each takes the candidate caption and the reference captions of every picture, as plain text (see `ptb.words`), and
returns the score of the set and of each picture.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from opencoca.errors import ConfigError, DataError
from opencoca.eval.ptb import words

MAX_ORDER = 4  # longest n-gram of BLEU and CIDEr
ROUGE_BETA = 1.2  # weight of recall against precision
CIDER_SIGMA = 6.0  # words by which a candidate may miss a reference's length before CIDEr-D fades
CIDER_SCALE = 10.0
# BLEU's own guards against 0/0 and log 0 in the COCO evaluation; they show in the score of a single short caption.
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9

Words = list[str]
Vector = dict[tuple[str, ...], float]


class Scores(NamedTuple):
    """The score of the whole set, and one score per picture in the order given."""

    total: float
    items: list[float]


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Scores, ...]:
    """BLEU-1 to BLEU-4, 0 to 1; the total counts n-grams over the whole set and isn't the mean of the items.

    Source: Papineni et al. 2002. The reference length is that of the closest reference, the shorter of two.
    """
    rows = []
    for candidate, own in _tokenized(candidates, references):
        length = min((abs(len(reference) - len(candidate)), len(reference)) for reference in own)[1]
        row = [len(candidate), length]
        for order in range(1, MAX_ORDER + 1):
            ceiling: Counter[tuple[str, ...]] = Counter()
            for reference in own:
                ceiling |= _ngrams(reference, order)
            row += [(_ngrams(candidate, order) & ceiling).total(), max(0, len(candidate) - order + 1)]
        rows.append(row)
    items = [_bleu_of(row) for row in rows]
    total = _bleu_of([sum(column) for column in zip(*rows, strict=True)])
    return tuple(Scores(total[n], [item[n] for item in items]) for n in range(MAX_ORDER))


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """ROUGE-L, 0 to 1: F-measure of the longest common subsequence; the total is the mean.

    Source: Lin 2004. Precision and recall are each the best over the references, as the COCO evaluation has it.
    """
    items = []
    for candidate, own in _tokenized(candidates, references):
        common = [_common_length(candidate, reference) for reference in own]
        precision = max(common) / max(1, len(candidate))
        recall = max(length / max(1, len(reference)) for length, reference in zip(common, own, strict=True))
        weight = ROUGE_BETA**2
        items.append((1 + weight) * precision * recall / (recall + weight * precision) if max(common) else 0.0)
    return _mean(items)


def cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    variant: Literal["cider", "cider_d"] = "cider_d",
) -> Scores:
    """CIDEr-D or CIDEr, 0 to 10: mean TF-IDF cosine of the n-grams with the references; the total is the mean.

    What the COCO evaluation and papers report as "CIDEr" is CIDEr-D, hence the default: repeated n-grams are clipped
    at the reference's count, and a Gaussian of the length difference punishes padding. Document frequencies come from
    the references given, so scores of different sets don't compare, and a set of one picture scores 0.

    Source: Vedantam et al. 2015.
    Differs: words aren't stemmed (nor does the COCO evaluation), and plain CIDEr carries the factor 10 of CIDEr-D.
    """
    if variant not in ("cider", "cider_d"):
        raise ConfigError(f"unknown CIDEr variant {variant!r}; use 'cider' or 'cider_d'")
    pairs = _tokenized(candidates, references)
    frequency: Counter[tuple[str, ...]] = Counter()
    for _, own in pairs:
        frequency.update({gram for reference in own for n in range(MAX_ORDER) for gram in _ngrams(reference, n + 1)})
    log_pictures = math.log(len(pairs))

    def vectors(text: Words) -> list[Vector]:
        return [
            {
                gram: count * (log_pictures - math.log(max(1, frequency[gram])))
                for gram, count in _ngrams(text, n).items()
            }
            for n in range(1, MAX_ORDER + 1)
        ]

    items = []
    for candidate, own in pairs:
        mine = vectors(candidate)
        score = 0.0
        for reference in own:
            similarity = sum(
                _cosine(left, right, clip=variant == "cider_d")
                for left, right in zip(mine, vectors(reference), strict=True)
            )
            if variant == "cider_d":
                # The COCO evaluation counts bigrams here, which is words less one, and 0 for an empty caption too.
                gap = max(1, len(candidate)) - max(1, len(reference))
                similarity *= math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
            score += similarity / MAX_ORDER
        items.append(CIDER_SCALE * score / len(own))
    return _mean(items)


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """The share of candidates that equal one of their references up to letter case and white space."""
    _check(candidates, references)
    return _mean(
        [
            float(_folded(candidate) in {_folded(reference) for reference in own})
            for candidate, own in zip(candidates, references, strict=True)
        ]
    )


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidate captions and {len(references)} sets of references; give one set for each"
        )
    if not candidates:
        raise DataError("no captions to score; give at least one")
    for index, own in enumerate(references):
        if isinstance(own, str) or not own:
            raise DataError(f"references of caption {index} must be a list of at least one caption, and are {own!r}")


def _tokenized(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[Words, list[Words]]]:
    _check(candidates, references)
    return [
        (words(candidate), [words(reference) for reference in own])
        for candidate, own in zip(candidates, references, strict=True)
    ]


def _mean(items: list[float]) -> Scores:
    return Scores(sum(items) / len(items), items)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _ngrams(text: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(order)), strict=False))


def _bleu_of(row: Sequence[int]) -> list[float]:
    """BLEU-1..4 of counts: candidate length, reference length, then matches and n-grams of each order."""
    ratio = (row[0] + BLEU_TINY) / (row[1] + BLEU_SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order in range(1, MAX_ORDER + 1):
        matches, total = row[2 * order], row[2 * order + 1]
        product *= (matches + BLEU_TINY) / (total + BLEU_SMALL)
        scores.append(product ** (1 / order) * brevity)
    return scores


def _common_length(left: Words, right: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _cosine(candidate: Vector, reference: Vector, clip: bool) -> float:
    """Cosine of two TF-IDF vectors; clipping holds the candidate's entries down to the reference's."""
    product = 0.0
    for gram, value in candidate.items():
        other = reference.get(gram, 0.0)
        product += (min(value, other) if clip else value) * other
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    return product / norms if norms else 0.0
