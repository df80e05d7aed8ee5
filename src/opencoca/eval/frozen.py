"""What frozen features are worth by themselves: a linear probe and nearest neighbours, settings chosen on val."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError
from opencoca.eval.recognition import Pictures
from opencoca.infer.predictor import Predictor

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the linear probe's penalty
NEIGHBOURS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07  # of the neighbours' votes
ITERATIONS = 300


class Features(NamedTuple):
    """Of pictures that can be read: their rows, embeddings float32 [I,E], the mean [I,D] of the encoder's tokens."""

    rows: list[int]
    embeds: Tensor
    means: Tensor
    skipped: list[tuple[str, str]]


class Split(NamedTuple):
    """Features [I,D] and classes [I] of the pictures to learn from, to choose settings on, or to test on."""

    inputs: Tensor
    targets: Tensor


class Measured(NamedTuple):
    """Accuracy on val and test, what was chosen on val, and whether each test picture was right [I]."""

    val: float
    test: float
    chosen: float
    right: Tensor


def features(predictor: Predictor, source: Source) -> Features:
    """The frozen features of a source's pictures, from one pass of the encoder.

    Raises: DataError where none can be read.
    """
    pictures, embeds, means = Pictures(source), [], []
    rows: list[int] = []
    seen: list[Tensor] = []

    def note(_: object, __: object, tokens: Any) -> None:
        seen.append(tokens)

    hook = predictor.model.encoder.register_forward_hook(note)
    try:
        for batch in predictor.squares(pictures, pictures.skip):
            embeds.append(predictor.encode_squares(batch.squares).embed.float().cpu())
            means.append(seen.pop().float().mean(dim=1).cpu())
            rows += [picture.row for picture in batch.pictures]
    finally:
        hook.remove()
    if not rows:
        raise DataError(f"none of {len(source)} pictures can be read; look at them with `coca data check`")
    return Features(rows, torch.cat(embeds), torch.cat(means), pictures.skipped)


def linear_probe(
    train: Split, val: Split, test: Split, classes: int, strengths: Sequence[float] = STRENGTHS
) -> Measured:
    """Multinomial logistic regression on standardised features, with the penalty that does best on val.

    Source: CLIP's protocol (Radford et al. 2021): L-BFGS, and the strength swept on a validation split.
    """
    centre, spread = train.inputs.mean(dim=0), train.inputs.std(dim=0).clamp_min(1e-6)
    train, val, test = (split._replace(inputs=(split.inputs - centre) / spread) for split in (train, val, test))
    best: Measured | None = None
    weights = torch.zeros(classes, train.inputs.shape[1] + 1)
    for strength in sorted(strengths, reverse=True):  # each starts from the one before, which is near
        weights = _fit(train, weights, strength)
        on_val = _right(val, weights).double().mean().item()
        if best is None or on_val > best.val:
            right = _right(test, weights)
            best = Measured(on_val, right.double().mean().item(), strength, right)
    assert best is not None
    return best


def neighbours(train: Split, val: Split, test: Split, classes: int, counts: Sequence[int] = NEIGHBOURS) -> Measured:
    """The nearest pictures by cosine vote, weighed by exp(similarity / TEMPERATURE); their number is chosen on val.

    Source: the protocol of Wu et al. 2018, as DINO uses it.
    """
    counts = [count for count in counts if count <= len(train.inputs)]
    known, truths = F.normalize(train.inputs, dim=1), F.one_hot(train.targets, classes).float()

    def right(split: Split, count: int) -> Tensor:
        parts = []
        for some, targets in zip(split.inputs.split(1024), split.targets.split(1024), strict=True):
            near, rows = (F.normalize(some, dim=1) @ known.T).topk(count, dim=1)
            votes = (near / TEMPERATURE).softmax(dim=1)[..., None] * truths[rows]
            parts.append(votes.sum(dim=1).argmax(dim=1) == targets)
        return torch.cat(parts)

    on_val = {count: right(val, count).double().mean().item() for count in counts}
    chosen = max(counts, key=lambda count: on_val[count])
    of_test = right(test, chosen)
    return Measured(on_val[chosen], of_test.double().mean().item(), chosen, of_test)


def _fit(train: Split, weights: Tensor, strength: float) -> Tensor:
    free = weights.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=ITERATIONS, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(train.inputs, free), train.targets)
        loss = loss + 0.5 * strength * free[:, :-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return free.detach()


def _logits(inputs: Tensor, weights: Tensor) -> Tensor:
    return F.linear(inputs, weights[:, :-1], weights[:, -1])


def _right(split: Split, weights: Tensor) -> Tensor:
    return _logits(split.inputs, weights).argmax(dim=1) == split.targets
