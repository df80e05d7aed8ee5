"""Where hypotheses can go: the best next tokens of each group, or drawn ones, from logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.infer.hypotheses import Continuations, Live, Plan
from opencoca.infer.rules import allowed, penalised
from opencoca.infer.sampling import sample
from opencoca.infer.score import normaliser, picked

BLOCK = 64  # tokens that stand side by side in the vocabulary, of which only the likeliest is looked at, at first


def continuations(logits_RV: Tensor, live: Live, plan: Plan) -> Continuations:
    """Each group's best 2 * beams next tokens, those that end included; or the one that is drawn.

    Where a picture's prompt goes on, its next token is the only one, and costs nothing.
    """
    step = _Step(logits_RV, live, plan)
    if plan.config.diversity_penalty == 0:
        return step.continuations(slice(None))
    found = step.continuations(slice(0, 1))
    for group in range(1, plan.groups):
        earlier = going_on(found, plan)
        earlier_PX = earlier.tokens.where(earlier.scores.isfinite(), -1).flatten(1)
        more = step.continuations(slice(group, group + 1), earlier_PX)
        found = Continuations(*(torch.cat(both, dim=1) for both in zip(found, more, strict=True)))
    return found


def going_on(found: Continuations, plan: Plan) -> Continuations:
    """Each group's best `beams` continuations that don't end."""
    ends_PGX = found.tokens == plan.special.end
    going = found._replace(scores=found.scores.masked_fill(ends_PGX, -math.inf))
    return going.take(ends_PGX.int().argsort(dim=2, stable=True)[..., : plan.beams])


def _top(logits_XV: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens [X,C] of each row, the best first.

    They stand in the `count` blocks with the highest maxima, and maxima are quickly found.
    """
    vocab = logits_XV.shape[1]
    if vocab % BLOCK or count > vocab // BLOCK:
        return logits_XV.topk(count, dim=1).indices
    blocks_XBV = logits_XV.unflatten(1, (-1, BLOCK))
    best_XC1 = blocks_XBV.amax(dim=2).topk(count, dim=1).indices[..., None]
    within_XC = blocks_XBV.gather(1, best_XC1.expand(-1, -1, BLOCK)).flatten(1).topk(count, dim=1).indices
    return best_XC1[..., 0].gather(1, within_XC // BLOCK) * BLOCK + within_XC % BLOCK


class _Step:
    """What one step's logits [R,V] mean for the plan; groups that haven't parted yet share a row."""

    def __init__(self, logits_RV: Tensor, live: Live, plan: Plan) -> None:
        self.live, self.plan = live, plan
        self.normaliser_R = normaliser(logits_RV)
        said = live.ids.shape[3]
        prompts = [plan.prompts[picture] for picture in live.pictures]
        self.forced_P = torch.tensor([prompt[said] if said < len(prompt) else -1 for prompt in prompts])
        forced_R1 = self.forced_P.clamp(min=0).repeat_interleave(len(logits_RV) // len(prompts))[:, None]
        self.forced_log_p_R = picked(logits_RV, self.normaliser_R, forced_R1.to(logits_RV.device))[:, 0].cpu()
        said_RT = live.ids.new_empty(len(logits_RV), said)
        said_RT[live.rows.flatten()] = live.ids.flatten(0, 2)
        self.allowed_RV = allowed(logits_RV, said_RT, plan.special, plan.config)
        self.scored_RV = penalised(self.allowed_RV, said_RT, plan.config)

    def continuations(self, groups: slice, earlier_PX: Tensor | None = None) -> Continuations:
        """Those of some groups, which are pushed away from earlier groups' tokens; -1 is none."""
        config, beams, device = self.plan.config, self.plan.beams, self.scored_RV.device
        rows_PGb = self.live.rows[:, groups]
        rows_X = rows_PGb.flatten().to(device)
        choice_XV = self.scored_RV if len(rows_X) == len(self.scored_RV) else self.scored_RV[rows_X]
        if earlier_PX is not None:
            earlier_XX = earlier_PX.repeat_interleave(len(rows_X) // len(rows_PGb), dim=0).to(device)
            push_XX = -config.diversity_penalty * (earlier_XX >= 0).to(choice_XV.dtype)
            choice_XV = choice_XV.scatter_add(1, earlier_XX.clamp(min=0), push_XX)
        if config.temperature > 0:
            copies = range(self.plan.groups)[groups]
            said = self.live.ids.shape[3]
            draws = [(config.seed, self.plan.keys[p], copy, said) for p in self.live.pictures for copy in copies]
            tokens_XC = sample(choice_XV, draws, config)[:, None]
        else:
            tokens_XC = _top(choice_XV, min(2 * beams, choice_XV.shape[1]) if beams > 1 else 1)
        offset_X1 = self.normaliser_R[rows_X][:, None]
        log_p_XC = self.allowed_RV[rows_X[:, None], tokens_XC].double() - offset_X1
        scores_XC = self.scored_RV[rows_X[:, None], tokens_XC].double()
        if config.beam_scores == "log_prob":
            scores_XC = scores_XC - offset_X1
        stacked = torch.stack((tokens_XC.double(), scores_XC, log_p_XC)).cpu().unflatten(1, rows_PGb.shape)
        tokens, scores, log_p = stacked[0].long(), stacked[1], stacked[2]
        forced = self.forced_P[:, None, None, None]
        free_PGbC = torch.zeros_like(scores).masked_fill(torch.arange(tokens.shape[3]) > 0, -math.inf)
        scores = scores.where(forced < 0, free_PGbC)
        log_p = log_p.where(forced < 0, self.forced_log_p_R[rows_PGb][..., None])
        tokens = tokens.where(forced < 0, forced)
        return self._best(groups, tokens, scores, log_p, earlier_PX)

    def _best(
        self, groups: slice, tokens: Tensor, scores: Tensor, log_p: Tensor, earlier_PX: Tensor | None
    ) -> Continuations:
        """Of each group's candidates [P,G,b,C] the best."""
        totals = (self.live.scores[:, groups, :, None] + scores).flatten(2)
        log_probs = (self.live.log_probs[:, groups, :, None] + log_p).flatten(2)
        rank_by = totals
        if earlier_PX is not None:
            equal = tokens.flatten(2)[..., None] == earlier_PX[:, None, None]
            rank_by = totals - self.plan.config.diversity_penalty * equal.sum(dim=-1)
        order = rank_by.argsort(dim=2, descending=True, stable=True)[..., : 2 * self.plan.beams]
        found = Continuations(
            torch.arange(tokens.shape[2]).repeat_interleave(tokens.shape[3]).expand_as(totals),
            tokens.flatten(2),
            totals,
            log_probs,
        ).take(order)
        missing = max(0, self.plan.beams - order.shape[2])  # with a tiny vocabulary
        padded = (F.pad(values, (0, missing)) for values in found)
        return Continuations(*padded)._replace(scores=F.pad(found.scores, (0, missing), value=-math.inf))
