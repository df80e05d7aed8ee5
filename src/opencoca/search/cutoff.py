"""How similar a picture must be to count as a match: more than what unrelated words find in the same index.

A cosine similarity says little by itself: 0.3 is much for one model and nothing for another, and the best of a million
pictures is higher than the best of ten. So the index measures itself. Each of a few dozen words, most of which no
folder of pictures shows, finds its best picture; the median of those similarities is the index's `level`. It grows with
the number of pictures as a query's own best does, and words that do have their picture don't move it, as long as they
are fewer than half. A picture above the level is a good match; a query whose best picture is below has none.

Of a sum of several terms the level is measured in the same way: the same signs, with unrelated words for its words and
other pictures of the index for its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_WORDS = """
time idea reason law price theory meaning government language history science market question answer memory
silence truth justice freedom energy anger work school health power value method opinion chance duty habit promise
budget contract election inflation strategy grammar logic ethics insurance interest policy salary statistics
tradition tuesday yesterday advice agreement argument concept decision economy quality quantity risk rule software
style success system topic
"""
NEUTRAL = tuple(_WORDS.split())


def level(embeds: np.ndarray, best: Callable[[np.ndarray], float]) -> float:
    """The median of the best similarities of these queries [Q,E]; `best` finds one's in the index."""
    return float(np.median([best(query) for query in embeds]))


def level_of_sum(
    signs: Sequence[int],
    is_text: Sequence[bool],
    words: np.ndarray,
    pictures: np.ndarray,
    combine: Callable[[list[np.ndarray]], np.ndarray],
) -> float:
    """The level for sums of this form, on a sample of the index's pictures [I,E]; `combine` makes one of its terms."""
    draws = np.random.default_rng(0)
    bests = []
    for turn in range(len(words)):
        drawn = draws.permutation(len(pictures))[: len(signs)]
        if len(drawn) < len(signs):
            return -1.0  # too few pictures to say
        terms = [words[(turn + 7 * i) % len(words)] if text else pictures[drawn[i]] for i, text in enumerate(is_text)]
        scores = pictures @ combine(terms)
        scores[drawn] = -np.inf
        bests.append(scores.max())
    return float(np.median(bests))
