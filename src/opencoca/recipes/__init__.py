"""Recipes: Python functions that return a whole configuration, by name.

`get("openmoji")` for the command line; `recipes.paper.base()` from Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from opencoca.config import Config
from opencoca.errors import ConfigError
from opencoca.recipes import drawings, easy_vqa, open_clip, openmoji, paper, tiny

__all__ = ["RECIPES", "drawings", "easy_vqa", "get", "open_clip", "openmoji", "paper", "tiny"]

RECIPES: dict[str, Callable[[], Config]] = {
    "drawings": drawings.drawings,
    "easy_vqa": easy_vqa.easy_vqa,
    "openmoji": openmoji.quickstart,
    "open_clip.vit_b_32": open_clip.vit_b_32,
    "open_clip.vit_l_14": open_clip.vit_l_14,
    "paper.base": paper.base,
    "paper.large": paper.large,
    "paper.coca": paper.coca,
    "tiny": tiny.tiny,
}


def get(name: str) -> Config:
    """The recipe called `name`.

    Raises: ConfigError with the nearest name where there is none.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no recipe is called {name!r}; {hint}there are: {', '.join(RECIPES)}")
    return RECIPES[name]()
