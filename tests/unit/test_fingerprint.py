"""A fingerprint tells models apart that give different results, and doesn't tell apart those that can't."""

from __future__ import annotations

import dataclasses
import json

import torch
from tests import tiny

from opencoca.config_tree import not_default
from opencoca.data.tokenizer import Tokenizer
from opencoca.infer.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    option: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = dataclasses.field(default_factory=tuple)
    bias: bool = False


def test_only_what_is_set_counts() -> None:
    assert not_default(Outer(Inner(3))) == {"inner": {"size": 3}}
    assert not_default(Outer(Inner(3, 1), ("a",), True)) == {
        "inner": {"size": 3, "option": 1},
        "names": ("a",),
        "bias": True,
    }


def test_weights_pixels_and_tokenizer_count_and_training_does_not() -> None:
    first = tiny.predictor()
    assert first.fingerprint() == tiny.predictor().fingerprint() != tiny.predictor(seed=1).fingerprint()
    config = first.config
    trained_longer = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=config.run.seed + 1))
    assert Predictor(first.model, first.tokenizer, trained_longer).fingerprint() == first.fingerprint()
    pixels = dataclasses.replace(config.pixels, mean=(0.1, 0.2, 0.3))
    assert Predictor(first.model, first.tokenizer, dataclasses.replace(config, pixels=pixels)).fingerprint() != (
        first.fingerprint()
    )
    facts = json.loads(first.tokenizer.to_json())
    ids = facts["model"]["vocab"]
    one, two = list(ids)[-2:]
    ids[one], ids[two] = ids[two], ids[one]
    other = Tokenizer.from_json(json.dumps(facts))
    assert Predictor(first.model, other, config).fingerprint() != first.fingerprint()
    with torch.no_grad():
        first.model.log_scale.add_(1e-6)
    assert first.fingerprint() != tiny.predictor().fingerprint()
