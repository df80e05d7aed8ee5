"""An untrained model of `recipes.tiny` and a few pictures, for tests of what is built on top of a model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image
from tests.support import tiny_tokenizer

from opencoca import checkpoint, recipes
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

CONFIG = recipes.tiny.tiny()
tokenizer = functools.cache(tiny_tokenizer)


def predictor(seed: int = 0, batch_size: int = 64) -> Predictor:
    return Predictor(build(CONFIG.model, seed), tokenizer(), CONFIG, batch_size)


def save_model(folder: Path, seed: int = 0, state: dict | None = None) -> Path:
    """A model folder as `coca` reads it."""
    weights = dict(build(CONFIG.model, seed).named_parameters())
    checkpoint.save(folder, CONFIG, tokenizer(), weights, state=state)
    return folder


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 18)) -> Path:
    """A picture of noise, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path
