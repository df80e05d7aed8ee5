"""How much of each held-out list could be found by words that training shows?

    python benchmarks/known_words.py                   # seconds

Someone recognises every word that stands in at least so many training captions, without an error, and knows no other
word. To them a picture is the set of its caption's words that they know; captions with the same set can't be told
apart and share the first places by lot. So of G such captions, each is within the first k with probability min(1, k/G).
An upper limit for a model that learns words from these captions; one that guesses at names that it never saw, by what
flags or fruits have in common with others, may do better. "new names" are pictures of a concept that training doesn't
show. Writes benchmarks/results/known_words.json.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable

from common import write_result

from opencoca.data.openmoji import Row, load_table

LISTS = ("val", "test_pictures", "test_combinations", "test_concepts")
CAPTIONS = (1, 3, 10)  # training captions that a word must stand in to be known
WITHIN = (1, 5)
WORD = re.compile(r"\w+(?:-\w+)*")  # "medium-dark" is one word


def main() -> None:
    """Counts, for each list and each number of captions."""
    rows = load_table()
    train = [row for row in rows if row.split == "train"]
    concepts = {row.concept for row in train}
    captions_with = Counter(word for row in train for word in words(row))
    lists = {}
    for name in LISTS:
        members = [row for row in rows if row.split == name]
        new = [row.concept not in concepts for row in members]
        found: dict[str, object] = {"pictures": len(members), "new_names": sum(new)}
        for least in CAPTIONS:
            known = [frozenset(word for word in words(row) if captions_with[word] >= least) for row in members]
            found[f"words_of_{least}_captions"] = limits(known, new)
        lists[name] = found
    write_result("known_words", {"lists": lists})


def words(row: Row) -> set[str]:
    """The words of a picture's caption."""
    return set(WORD.findall(row.caption.lower()))


def limits(known: list[frozenset[str]], new: list[bool]) -> dict[str, float]:
    """Recall of a list whose pictures are told apart by these sets alone: of all, and of those with a new name."""
    alike = Counter(known)
    chosen = {"": range(len(known)), "new_names/": [i for i, is_new in enumerate(new) if is_new]}
    return {
        f"{part}recall@{k}": _mean(min(1.0, k / alike[known[i]]) for i in which)
        for part, which in chosen.items()
        if len(which)
        for k in WITHIN
    }


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 3)


if __name__ == "__main__":
    main()
