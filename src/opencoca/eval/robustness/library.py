"""Attacks of the Adversarial Robustness Toolbox, where it is installed: BIM, MIM, DeepFool, Square and AutoPGD.

It is no dependency of ours: it needs scipy and scikit-learn, and nobody needs it to evaluate a model. torchattacks
needs torchvision, whose wheels must match torch build for build, and AutoAttack's authors publish no wheel; hence this
one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PACKAGE, WHEEL = "art", "adversarial-robustness-toolbox"
REPAIR = f"{WHEEL} isn't installed; `pip install {WHEEL}` to measure it"
NAMES = ("bim_8", "mim_8", "deepfool_8", "square_8", "autopgd_8")
STEPS = 10
QUERIES = 100  # of Square, which sees no gradient


def version() -> str:
    """The library's version, or "" where it isn't installed."""
    try:
        return importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _Module(nn.Module):
    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self._logits(pixels)


def ways(logits: Callable[[Tensor], Tensor], classes: int, eps: float) -> dict[str, Callable]:
    """Each attack by name, as (pixels, truths, ids) -> pixels.

    What an attack gives is drawn back into the box of eps: DeepFool looks for the nearest boundary and knows no box.
    """
    evasion = importlib.import_module("art.attacks.evasion")
    estimator = importlib.import_module("art.estimators.classification").PyTorchClassifier

    def wrapped(pixels: Tensor) -> Any:
        shape = tuple(pixels.shape[1:])
        device = "cpu" if pixels.device.type == "cpu" else "gpu"
        loss = nn.CrossEntropyLoss()
        return estimator(_Module(logits), loss, shape, classes, clip_values=(0.0, 1.0), device_type=device)

    step = {"eps": eps, "eps_step": 2.5 * eps / STEPS, "max_iter": STEPS, "verbose": False}
    makers: dict[str, Callable[[Any], Any]] = {
        "bim_8": lambda model: evasion.BasicIterativeMethod(model, **step),
        "mim_8": lambda model: evasion.MomentumIterativeMethod(model, decay=1.0, **step),
        "deepfool_8": lambda model: evasion.DeepFool(model, max_iter=20, nb_grads=min(10, classes), verbose=False),
        "square_8": lambda model: evasion.SquareAttack(model, eps=eps, max_iter=QUERIES, verbose=False),
        "autopgd_8": lambda model: evasion.AutoProjectedGradientDescent(model, **step, nb_random_init=1),
    }

    def way(make: Callable[[Any], Any]) -> Callable:
        def attack(pixels: Tensor, truths: Tensor, ids: list[str]) -> Tensor:
            np.random.seed(0)  # the library draws from numpy's and torch's own streams
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made = make(wrapped(pixels)).generate(pixels.cpu().numpy(), truths.cpu().numpy())
            moved = torch.from_numpy(made).to(pixels)
            return torch.minimum(torch.maximum(moved, pixels - eps), pixels + eps).clamp(0, 1)

        return attack

    return {name: way(make) for name, make in makers.items()}
