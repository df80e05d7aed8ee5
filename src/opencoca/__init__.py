"""OpenCoCa: Contrastive Captioners (arXiv 2205.01917), trained, evaluated and used.

    import opencoca
    coca = opencoca.load("runs/quickstart")
    coca.caption(["cat.png"])

Importing this package imports nothing else; its names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opencoca import recipes
    from opencoca.infer.predictor import Predictor
    from opencoca.loading import load
    from opencoca.model.coca import CoCa

__all__ = ["CoCa", "Predictor", "load", "recipes"]

_HOMES = {
    "CoCa": "opencoca.model.coca",
    "Predictor": "opencoca.infer.predictor",
    "load": "opencoca.loading",
}


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return importlib.import_module("opencoca.recipes")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'opencoca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
