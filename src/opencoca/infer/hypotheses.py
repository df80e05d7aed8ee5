"""What a search holds: its plan, the hypotheses that live, what they can become, and the captions that are finished."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds


class Generated(NamedTuple):
    """One caption.

    ids: its tokens, the prompt included, without start and end.
    log_prob: log p(caption | image) in nats as `score` gives it: of all of `ids`, and of the end if it was reached.
    score: what captions are ranked by (see `infer.search`).
    """

    ids: list[int]
    log_prob: float
    score: float


class Plan(NamedTuple):
    """What to search for: `groups` times `beams` hypotheses of each picture, a prompt and a key for each picture."""

    config: GenerationConfig
    special: SpecialIds
    max_tokens: int
    groups: int
    beams: int
    prompts: list[list[int]]
    keys: list[int]


class Live(NamedTuple):
    """The hypotheses of the pictures [P] that aren't done: ids [P,G,b,T]; their sums, and rows in the cache, [P,G,b].

    All groups start from one row, so b is 1 at first. A hypothesis that has ended, or never was, has the score -inf.
    """

    pictures: list[int]
    ids: Tensor
    scores: Tensor
    log_probs: Tensor
    rows: Tensor


class Continuations(NamedTuple):
    """Each group's next tokens, the best first, [P,G,X]: of which of its hypotheses, and the sums with the token."""

    parents: Tensor
    tokens: Tensor
    scores: Tensor
    log_probs: Tensor

    def take(self, order_PGX: Tensor) -> Continuations:
        """Those at the given places of each group."""
        return Continuations(*(values.gather(2, order_PGX) for values in self))


class Finished:
    """The captions of one picture, by group."""

    def __init__(self, plan: Plan, picture: int) -> None:
        self.plan, self.prompt_length = plan, len(plan.prompts[picture])
        self.groups: list[list[Generated]] = [[] for _ in range(plan.groups)]
        self.done = [False] * plan.groups

    def score(self, total: float, length: int) -> float:
        """The score of a caption of `length` tokens, prompt and end included, whose tokens' scores add up so."""
        config = self.plan.config
        counted = length - self.prompt_length + (config.beam_scores == "logit")
        return total / counted**config.length_penalty

    def add(self, group: int, ids: list[int], log_prob: float, score: float) -> None:
        """Takes a caption in, unless its group is done."""
        if not self.done[group]:
            self.groups[group].append(Generated(ids, log_prob, score))

    def settle(self, group: int, best_total: float, length: int) -> None:
        """Notes that a group is done if its best continuation doesn't score better than its finished captions."""
        captions, beams = self.groups[group], self.plan.beams
        if len(captions) >= beams:
            worst = sorted(caption.score for caption in captions)[-beams]
            self.done[group] |= self.score(best_total, length) <= worst

    def wants_cut_off(self, group: int) -> bool:
        """Whether hypotheses that max_tokens cuts off are captions of this group."""
        if self.plan.config.beam_scores == "logit":
            return not self.done[group]
        return len(self.groups[group]) < self.plan.beams

    def ranked(self) -> list[Generated]:
        """The best of each group, the best of all first; of one caption that beams of several groups found, one."""
        kept = _by_score([one for group in self.groups for one in _by_score(group)[: self.plan.beams]])
        if self.plan.config.temperature > 0:
            return kept
        distinct: dict[tuple[int, ...], Generated] = {}
        for one in kept:
            distinct.setdefault(tuple(one.ids), one)
        return list(distinct.values())


def _by_score(captions: list[Generated]) -> list[Generated]:
    return sorted(captions, key=lambda caption: caption.score, reverse=True)
