"""The one search behind all generation, with a static KV cache.

Every picture has `groups` of `beams` hypotheses, which grow by a token per step. A group takes its 2 * beams best
continuations; those that end, among the best `beams`, are finished captions, and the best `beams` that don't are the
next hypotheses. Greedy search is one group of one beam. Sampling is one beam per caption, whose continuation is drawn.
Diverse beam search has several groups, each pushed away from the tokens that the groups before it chose in that step.

A caption's score is the sum of its tokens' scores, the end included if reached and the prompt left out, divided by
length ** length_penalty; length counts the same tokens. A token's score is its logit, after `repetition_penalty`, minus
the model's log-normaliser over the whole vocabulary: without a penalty, its log-probability. What may not be said is
left out, and its probability isn't shared among the rest. A group is done when it has `beams` finished captions and its
best continuation, at its present length, doesn't score better than the worst of the best `beams` of them. A picture
whose groups are done leaves the computation. Hypotheses that max_tokens cuts off count where a group has fewer than
`beams` finished captions.

With `beam_scores` "logit" scores are open_clip's: no normaliser is subtracted, length counts start as well, and the
hypotheses that max_tokens cuts off compete with the finished captions of every group that isn't done.

The device computes logits and the best few of them; hypotheses are kept on the CPU, in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opencoca.infer.continuations import continuations, going_on
from opencoca.infer.hypotheses import Continuations, Finished, Generated, Live, Plan
from opencoca.infer.score import log_probs
from opencoca.model.coca import CoCa, DecodeCache
from opencoca.model.decode_step import prepare_to_decode

OnStep = Callable[[int, list[int]], None]  # of a picture, the ids of what leads at the moment


@torch.inference_mode()
def search(model: CoCa, image_tokens: Tensor, plan: Plan, on_step: OnStep | None = None) -> list[list[Generated]]:
    """The captions of each picture of image tokens [B,Q,D] that the search finds, the best first.

    `on_step` is called after every step with each picture that isn't done, and the ids of its best live hypothesis.
    """
    device = image_tokens.device
    finished = [Finished(plan, picture) for picture in range(len(image_tokens))]
    step = prepare_to_decode(model, rows=len(image_tokens) * plan.groups * plan.beams)
    logits = model.caption_logits if step is None else step.head
    cache = model.start_decoding(image_tokens, plan.max_tokens, beams=plan.groups * plan.beams)
    cache.step = step
    live, decoded_RD = _begun(model, image_tokens, cache, plan)
    for length in range(live.ids.shape[3] + 1, plan.max_tokens + 1):
        found = continuations(logits(decoded_RD), live, plan)
        _finish(found, live, finished, length, plan)
        going = going_on(found, plan)
        if length == plan.max_tokens:
            _cut_off(going, live, finished, length)
            break
        keep = torch.tensor([not all(finished[picture].done) for picture in live.pictures])
        if not keep.any():
            break
        live = _grown(going, live, keep, cache, device)
        if on_step is not None:
            _tell(live, on_step)
        decoded_RD = model.decode_next(live.ids[..., -1].flatten()[:, None].to(device), cache)[:, -1]
    return [one.ranked() for one in finished]


def _begun(model: CoCa, image_tokens: Tensor, cache: DecodeCache, plan: Plan) -> tuple[Live, Tensor]:
    """What lives after the tokens that every prompt has, read at once, and the outputs [B,D] that predict the next."""
    shortest = min(map(len, plan.prompts))
    ids_BT = torch.tensor([[plan.special.start, *prompt[:shortest]] for prompt in plan.prompts])
    shape = len(ids_BT), plan.groups, 1
    ids_there_BT = ids_BT.to(image_tokens.device)
    decoded_BTD = model.decode_next(ids_there_BT, cache)
    log_p_B = log_probs(model, decoded_BTD[:, :-1], ids_there_BT[:, 1:]).sum(dim=1).cpu()
    live = Live(
        pictures=list(range(len(ids_BT))),
        ids=ids_BT[:, None, None, 1:].expand(*shape, shortest),
        scores=torch.zeros(shape, dtype=torch.float64),
        log_probs=log_p_B[:, None, None].expand(shape),
        rows=torch.arange(len(ids_BT))[:, None, None].expand(shape),
    )
    return live, decoded_BTD[:, -1]


def _finish(found: Continuations, live: Live, finished: list[Finished], length: int, plan: Plan) -> None:
    """Takes in the captions that end with their token `length`, and notes which groups are done."""
    ends = (found.tokens == plan.special.end) & found.scores.isfinite()
    ends[..., plan.beams :] = False
    for row, group, rank in ends.nonzero().tolist():
        one, parent = finished[live.pictures[row]], found.parents[row, group, rank]
        total, log_prob = found.scores[row, group, rank].item(), found.log_probs[row, group, rank].item()
        one.add(group, live.ids[row, group, parent].tolist(), log_prob, one.score(total, length))
    for picture, best in zip(live.pictures, found.scores.amax(dim=2).tolist(), strict=True):
        for group, total in enumerate(best):
            finished[picture].settle(group, total, length)


def _cut_off(going: Continuations, live: Live, finished: list[Finished], length: int) -> None:
    """Takes in the hypotheses of `length` tokens that max_tokens cuts off, where they are wanted."""
    wanted = [
        [finished[picture].wants_cut_off(group) for group in range(live.rows.shape[1])] for picture in live.pictures
    ]
    cut = going.scores.isfinite() & torch.tensor(wanted)[..., None]
    for row, group, rank in cut.nonzero().tolist():
        one, parent = finished[live.pictures[row]], going.parents[row, group, rank]
        ids = [*live.ids[row, group, parent].tolist(), going.tokens[row, group, rank].item()]
        total, log_prob = going.scores[row, group, rank].item(), going.log_probs[row, group, rank].item()
        one.add(group, ids, log_prob, one.score(total, length))


def _tell(live: Live, on_step: OnStep) -> None:
    best_P = live.scores.flatten(1).argmax(dim=1)
    ids_PXT = live.ids.flatten(1, 2)
    for row, picture in enumerate(live.pictures):
        on_step(picture, ids_PXT[row, best_P[row]].tolist())


def _grown(going: Continuations, live: Live, keep: Tensor, cache: DecodeCache, device: torch.device) -> Live:
    """The hypotheses of the pictures to `keep` [P], a token longer; the cache follows, and says how they stand."""
    ids = live.ids.gather(2, going.parents[..., None].expand(-1, -1, -1, live.ids.shape[3]))
    ids = torch.cat((ids, going.tokens[..., None]), dim=3)
    rows_of_picture = live.rows - live.rows[:, :1, :1]
    cache.select_beams(rows_of_picture.gather(2, going.parents).flatten(1).to(device))
    order = torch.arange(len(ids)) if keep.all() else cache.keep_pictures(keep.to(device)).cpu()
    ids = ids[order]
    return Live(
        pictures=[live.pictures[row] for row in order.tolist()],
        ids=ids,
        scores=going.scores[order],
        log_probs=going.log_probs[order],
        rows=torch.arange(ids.shape[:3].numel()).view(ids.shape[:3]),
    )
