"""Generation as its documentation says, for one picture, on lists, every step from scratch: what `generate` must equal.

And models that have strong opinions, so that captions differ between pictures and end at different lengths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from opencoca import recipes
from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.hypotheses import Generated
from opencoca.model.coca import CoCa
from opencoca.model.init import build

SPECIAL = SpecialIds(pad=4, start=0, end=2)  # not the usual order, so that an id written into the code would show
NATS = 1e-10  # worst measured: 1e-14


def opinionated(vocab_size: int, seed: int) -> CoCa:
    """A tiny float64 model whose next token depends strongly on the picture and on the tokens before."""
    config = recipes.tiny.tiny().model
    model = build(dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=vocab_size)), seed)
    model = model.double().eval().requires_grad_(False)
    model.head.weight *= 2.5
    model.unimodal.tokens.weight *= 20
    for block in model.multimodal.blocks:
        block.cross_attention.out.weight *= 6
    return model


def picture_tokens(model: CoCa, pictures: int, seed: int = 0) -> Tensor:
    pixels = torch.randn(pictures, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model.encode_image(4 * pixels).tokens


class Stubborn(torch.nn.Module):
    """The head, with some logits overruled: what a model would do that wants these ids, or never wants them."""

    def __init__(self, head: torch.nn.Module, logits: dict[int, float]) -> None:
        super().__init__()
        self.head, self.logits = head, logits

    def forward(self, decoded: Tensor) -> Tensor:
        out = self.head(decoded).clone()
        for token, value in self.logits.items():
            out[..., token] = value
        return out


def next_log_probs(
    model: CoCa, tokens_QD: Tensor, prefixes: list[tuple[int, ...]], special: SpecialIds = SPECIAL
) -> Tensor:
    """[X,T+1,V] after start and each id of X prefixes of T ids, without a cache; pad and start can't be said."""
    ids_XT = torch.tensor([[special.start, *ids] for ids in prefixes])
    text = model.encode_text(ids_XT, torch.ones_like(ids_XT, dtype=torch.bool))
    logits_XTV = model.caption_logits(model.decode(tokens_QD.expand(len(prefixes), -1, -1), text.tokens))
    allowed_V = torch.ones(logits_XTV.shape[-1], dtype=torch.bool)
    allowed_V[[special.pad, special.start]] = False
    return logits_XTV.log_softmax(dim=-1).where(allowed_V, -math.inf)


def likelihood(model: CoCa, tokens_QD: Tensor, ids: list[int], ended: bool) -> float:
    """Teacher-forced log-probability of `ids`, and of the end after them."""
    said = [*ids, SPECIAL.end] if ended else ids
    log_p_TV = next_log_probs(model, tokens_QD, [(*ids,)])[0]
    return sum(log_p_TV[t, token].item() for t, token in enumerate(said))


def assert_same(ours: list[Generated], theirs: list[Generated]) -> None:
    assert [caption.ids for caption in ours] == [caption.ids for caption in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=NATS)


def plain_greedy(model: CoCa, tokens_QD: Tensor, max_tokens: int) -> Generated:
    """The likeliest next token until the end."""
    ids: list[int] = []
    total = 0.0
    for _ in range(max_tokens):
        log_p = next_log_probs(model, tokens_QD, [(*ids,)])[0, -1]
        total += log_p.max().item()
        if log_p.argmax() == SPECIAL.end:
            break
        ids.append(int(log_p.argmax()))
    return Generated(ids, total, math.nan)


def plain_search(
    model: CoCa, tokens_QD: Tensor, config: GenerationConfig, prompt: Sequence[int] = ()
) -> list[Generated]:
    """The documented search, greedy where there is one beam; the best first."""
    groups, beams = config.num_beam_groups, config.beams // config.num_beam_groups
    live = [[(0.0, 0.0, tuple(prompt))] for _ in range(groups)]  # score, log-probability, ids
    finished: list[list[Generated]] = [[] for _ in range(groups)]
    done = [False] * groups

    def take(group: int, ids: Sequence[int], log_prob: float, total: float, ended: bool) -> None:
        if not done[group]:
            length = len(ids) - len(prompt) + ended + (config.beam_scores == "logit")
            finished[group].append(Generated(list(ids), log_prob, total / length**config.length_penalty))

    prompt_log_prob = likelihood(model, tokens_QD, list(prompt), ended=False)
    for said in range(len(prompt), config.max_tokens):
        chosen: list[int] = []
        for group in range(groups):
            if not live[group]:
                continue
            logits_XV = plain_logits(model, tokens_QD, [ids for *_, ids in live[group]])
            steps = []
            for (total, log_prob, ids), logits_V in zip(live[group], logits_XV, strict=True):
                normaliser = logits_V.logsumexp(dim=0).item()
                for token, (score, raw) in enumerate(zip(plain_rules(logits_V, ids, config), logits_V, strict=True)):
                    total_after = total + score - (0.0 if config.beam_scores == "logit" else normaliser)
                    push = config.diversity_penalty * chosen.count(token)
                    log_prob_after = log_prob + raw.item() - normaliser
                    steps.append((total_after - push, total_after, log_prob_after, ids, token))
            steps = sorted((step for step in steps if math.isfinite(step[0])), reverse=True)[: 2 * beams]
            for _, total, log_prob, ids, token in steps[:beams]:
                if token == SPECIAL.end:
                    take(group, ids, prompt_log_prob + log_prob, total, ended=True)
            if len(finished[group]) >= beams:
                worst = sorted(caption.score for caption in finished[group])[-beams]
                length = said + 1 - len(prompt) + (config.beam_scores == "logit")
                done[group] |= max(total for _, total, *_ in steps) / length**config.length_penalty <= worst
            going = [
                (total, log_prob, (*ids, token)) for _, total, log_prob, ids, token in steps if token != SPECIAL.end
            ]
            live[group] = going[:beams]
            chosen += [ids[-1] for *_, ids in live[group]]
        if all(done):
            break
    for group in range(groups):
        wanted = config.beam_scores == "logit" or len(finished[group]) < beams
        for total, log_prob, ids in live[group]:
            if wanted and len(ids) == config.max_tokens:
                take(group, ids, prompt_log_prob + log_prob, total, ended=False)
    best = [one for group in finished for one in sorted(group, key=lambda one: -one.score)[:beams]]
    distinct = {tuple(one.ids): one for one in sorted(best, key=lambda one: one.score)}
    return sorted(distinct.values(), key=lambda one: -one.score)


def plain_logits(model: CoCa, tokens_QD: Tensor, prefixes: list[tuple[int, ...]]) -> Tensor:
    """[X,V] after X prefixes of one length."""
    ids_XT = torch.tensor([[SPECIAL.start, *ids] for ids in prefixes])
    text = model.encode_text(ids_XT, torch.ones_like(ids_XT, dtype=torch.bool))
    return model.caption_logits(model.decode(tokens_QD.expand(len(prefixes), -1, -1), text.tokens))[:, -1]


def plain_rules(logits_V: Tensor, said: tuple[int, ...], config: GenerationConfig) -> list[float]:
    """What each token scores after `said`."""
    scores = logits_V.tolist()
    for token in set(said):
        scores[token] *= config.repetition_penalty if scores[token] < 0 else 1 / config.repetition_penalty
    size = config.no_repeat_ngram
    seen = {said[i : i + size] for i in range(len(said) - size + 1)}
    scores = [
        -math.inf if size and len(said) >= size and (*said[len(said) - size + 1 :], token) in seen else score
        for token, score in enumerate(scores)
    ]
    scores[SPECIAL.pad] = scores[SPECIAL.start] = -math.inf
    if len(said) < config.min_tokens:
        scores[SPECIAL.end] = -math.inf
    if max(scores) == -math.inf:
        scores[SPECIAL.end] = logits_V[SPECIAL.end].item()
    return scores
