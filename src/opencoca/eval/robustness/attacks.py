"""Attacks within a box around a picture (L-infinity): FGSM and PGD, on any differentiable classifier.

Pixels are float [B,3,H,W] from 0 to 1; eps is in the same unit, so that a change by n levels of 8 bits is n / 255. An
attacked picture is not rounded to 8 bits: FGSM's stays on the levels where eps does, PGD's need not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.errors import ConfigError

STEPS = 10
REACH = 2.5  # PGD's steps together are this many times eps, so that it can cross the box from any start
Logits = Callable[[Tensor], Tensor]  # pixels [B,3,H,W] -> logits [B,L]


def fgsm(logits: Logits, pixels: Tensor, truths: Tensor, eps: float) -> Tensor:
    """The pictures moved by eps in every value, along the sign of the loss's gradient, and clipped to 0..1.

    Source: Goodfellow et al. 2015. With eps 0 they come back unchanged.
    """
    _check(eps)
    if eps == 0:
        return pixels.clone()
    return (pixels + eps * _gradient_and_guesses(logits, pixels, truths)[0].sign()).clamp(0, 1)


def pgd(
    logits: Logits,
    pixels: Tensor,
    truths: Tensor,
    eps: float,
    steps: int = STEPS,
    start: Tensor | None = None,
) -> Tensor:
    """The pictures after `steps` steps of 2.5 eps / steps along the gradient's sign, each back into the box of eps.

    A picture stays as it is as soon as it fools the classifier: an attack doesn't undo its success.

    Args: start [B,3,H,W], from -1 to 1, times eps is where it starts; without, it starts at the picture.
    Source: Madry et al. 2018, whose first iterate is random too.
    """
    _check(eps)
    if steps < 1:
        raise ConfigError(f"{steps} steps attack nothing; take 1 or more")
    if eps == 0:
        return pixels.clone()
    made = pixels.clone() if start is None else (pixels + eps * start).clamp(0, 1)
    low, high = (pixels - eps).clamp(0, 1), (pixels + eps).clamp(0, 1)
    standing = torch.arange(len(pixels), device=pixels.device)
    for _ in range(steps):
        gradient, guesses = _gradient_and_guesses(logits, made[standing], truths[standing])
        right = guesses == truths[standing]
        standing, gradient = standing[right], gradient[right]
        if not len(standing):
            break
        moved = made[standing] + REACH * eps / steps * gradient.sign()
        made[standing] = torch.minimum(torch.maximum(moved, low[standing]), high[standing])
    return made


def starts(ids: Sequence[str], shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random starts [B,*shape] from -1 to 1, each drawn from the seed and its picture's id."""
    drawn = []
    for one in ids:
        digest = hashlib.sha256(f"{seed}\0pgd\0{one}".encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        drawn.append(torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)))
    return torch.stack(drawn)


def _gradient_and_guesses(logits: Logits, pixels: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the summed cross-entropy, in which no picture depends on another, and the guesses [B]."""
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_(True)
        scores = logits(leaf)
        (gradient,) = torch.autograd.grad(F.cross_entropy(scores.float(), truths, reduction="sum"), leaf)
    return gradient, scores.detach().argmax(dim=1)


def _check(eps: float) -> None:
    if not 0 <= eps <= 1:
        raise ConfigError(f"eps {eps} must be from 0 to 1, where 1 is white; write 8 levels of 8 bits as 8/255")
