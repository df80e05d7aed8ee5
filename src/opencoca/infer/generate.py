"""Caption generation with a static KV cache: greedy and beam search.

Each picture's keys and values are projected once and shared by its beams; the head is applied to the last
position only; finished sequences leave the computation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from opencoca.data.tokenizer import SpecialIds
from opencoca.model.coca import CoCa


class Generated(NamedTuple):
    """One caption: its token ids without start and end, and its log-probability in nats, end included if reached."""

    ids: list[int]
    log_prob: float


@torch.no_grad()
def greedy(model: CoCa, image_tokens: Tensor, special: SpecialIds, max_tokens: int) -> list[Generated]:
    """The most probable next token at each step, for image tokens [B,Q,D], until end or `max_tokens` tokens."""
    batch, device = image_tokens.shape[0], image_tokens.device
    max_tokens = _bounded(model, max_tokens)
    cache = model.start_decoding(image_tokens, capacity=max_tokens)
    ids_BT = torch.full((batch, max_tokens + 1), special.end, device=device)
    log_probs_B = torch.zeros(batch, dtype=torch.float64, device=device)
    live_B = torch.arange(batch, device=device)
    next_ids = torch.full((batch, 1), special.start, device=device)
    for t in range(max_tokens):
        log_p_BV = _log_probs(model.decode_step(next_ids, cache), special)
        best = log_p_BV.max(dim=-1)
        ids_BT[live_B, t] = best.indices
        log_probs_B[live_B] += best.values
        going = best.indices != special.end
        if not going.all():
            rows = going.nonzero()[:, 0]
            if len(rows) == 0:
                break
            live_B, best_ids = live_B[rows], best.indices[rows]
            cache.select_rows(rows, picture_rows=rows)
        else:
            best_ids = best.indices
        next_ids = best_ids[:, None]
    return [
        Generated(_until_end(row, special.end), log_prob)
        for row, log_prob in zip(ids_BT.tolist(), log_probs_B.tolist(), strict=True)
    ]


@torch.no_grad()
def n_best(
    model: CoCa,
    image_tokens: Tensor,
    special: SpecialIds,
    max_tokens: int,
    beams: int,
    length_penalty: float = 1.0,
) -> list[list[Generated]]:
    """Beam search: up to `beams` captions for each picture of image tokens [B,Q,D], best first.

    Captions are ranked by log-probability / length ** length_penalty; length counts the tokens and the end. A picture
    is done when it has `beams` finished captions and no live hypothesis scores better, at its present length, than the
    worst of them; done pictures leave the computation. A hypothesis that `max_tokens` cuts off counts only where fewer
    than `beams` captions have ended.
    """
    pictures, device = image_tokens.shape[0], image_tokens.device
    max_tokens = _bounded(model, max_tokens)
    cache = model.start_decoding(image_tokens, capacity=max_tokens, beams=beams)
    finished: list[list[tuple[float, Generated]]] = [[] for _ in range(pictures)]
    ids = torch.full((pictures, beams, 1), special.start, device=device)
    log_probs = torch.full((pictures, beams), float("-inf"), dtype=torch.float64, device=device)
    log_probs[:, 0] = 0.0  # all beams start equal: only the first may branch
    owners = list(range(pictures))
    for t in range(max_tokens):
        step_log_p = _log_probs(model.decode_step(ids[:, :, -1:].flatten(0, 1), cache), special)
        vocab = step_log_p.shape[-1]
        scores = (log_probs[..., None] + step_log_p.unflatten(0, (-1, beams))).flatten(1)
        # at most `beams` candidates can end, so 2 * beams always leave `beams` that go on
        best = scores.topk(min(2 * beams, scores.shape[1]), dim=-1)
        parents, tokens = best.indices // vocab, best.indices % vocab
        ends = tokens == special.end
        for row, rank in (ends[:, :beams] & best.values[:, :beams].isfinite()).nonzero().tolist():
            caption = Generated(ids[row, parents[row, rank], 1:].tolist(), best.values[row, rank].item())
            finished[owners[row]].append((caption.log_prob / (t + 1) ** length_penalty, caption))
        order = ends.int().argsort(dim=-1, stable=True)[:, :beams]
        parents, tokens, log_probs = (x.gather(1, order) for x in (parents, tokens, best.values))
        ids = torch.cat([ids.gather(1, parents[..., None].expand_as(ids)), tokens[..., None]], dim=-1)
        rows = parents + beams * torch.arange(len(owners), device=device)[:, None]
        keep = [
            row
            for row, owner in enumerate(owners)
            if not _is_done(finished[owner], beams, log_probs[row, 0].item() / (t + 1) ** length_penalty)
        ]
        if not keep:
            break
        if len(keep) < len(owners):
            kept = torch.tensor(keep, device=device)
            owners = [owners[row] for row in keep]
            ids, log_probs, rows = ids[kept], log_probs[kept], rows[kept]
            cache.select_rows(rows.flatten(), picture_rows=kept)
        else:
            cache.select_rows(rows.flatten())
    for row, owner in enumerate(owners):
        if len(finished[owner]) < beams:
            for beam in range(beams):
                caption = Generated(ids[row, beam, 1:].tolist(), log_probs[row, beam].item())
                if caption.log_prob == float("-inf"):  # a beam that never had a hypothesis
                    continue
                finished[owner].append((caption.log_prob / len(caption.ids) ** length_penalty, caption))
    ranked = [sorted(captions, key=lambda scored: scored[0], reverse=True) for captions in finished]
    return [[caption for _, caption in captions[:beams]] for captions in ranked]


def _is_done(finished: list[tuple[float, Generated]], beams: int, best_live: float) -> bool:
    return len(finished) >= beams and best_live <= sorted(score for score, _ in finished)[-beams]


def _bounded(model: CoCa, max_tokens: int) -> int:
    """At most so many tokens as the context has room for between start and end."""
    return max(1, min(max_tokens, model.config.text.context_length - 2))


def _log_probs(logits_BV: Tensor, special: SpecialIds) -> Tensor:
    """Log-probabilities in float64; pad and start can't be generated."""
    logits_BV = logits_BV.to(torch.float64, copy=True)
    logits_BV[:, [special.pad, special.start]] = float("-inf")
    return logits_BV.log_softmax(dim=-1)


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
