"""What the tests of `model.text.parallel_share`, `token_drop` and `model.pooler.train_queries` share."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from opencoca import recipes
from opencoca.config import ModelConfig
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.types import Batch, CoCaOutput, DecoderDraws, TextBucket

EXACT = {"rtol": 0.0, "atol": 1e-12}
IDS = torch.tensor([[1, 7, 2, 0, 0, 0], [1, 4, 5, 6, 2, 0], [1, 4, 5, 8, 9, 2], [1, 9, 2, 0, 0, 0]])
VALID = IDS > 0
PARALLEL = torch.tensor([True, False, True, False])
ALL = {"text.parallel_share": 0.5, "text.token_drop": 0.4, "pooler.train_queries": 3}


def changed(config: ModelConfig | None = None, **fields: float) -> ModelConfig:
    """`recipes.tiny` with fields of its text and pooler, as in text_token_drop=0.5."""
    config = config or recipes.tiny.tiny().model
    for name, value in fields.items():
        part, _, field = name.partition("_")
        config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{field: value})})
    return config


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def model_of(**fields: float) -> CoCa:
    model = build(changed(**fields)).double().requires_grad_(False)
    if model.multimodal.mask_TD is not None:
        model.multimodal.mask_TD += random(*model.multimodal.mask_TD.shape)
    return model.eval()


PIXELS = random(4, 3, 16, 16)


def run(model: CoCa, drawn: DecoderDraws | None = None, ids: Tensor = IDS, valid: Tensor = VALID) -> CoCaOutput:
    return model(PIXELS, ids, valid) if drawn is None else model(PIXELS, ids, valid, (), None, drawn)


def fields_of(settings: dict[str, float]) -> dict[str, float]:
    return {name.replace(".", "_"): value for name, value in settings.items()}


def batch_of(drawn: DecoderDraws, buckets: tuple[TextBucket, ...] = ()) -> Batch:
    labels = torch.arange(8).view(4, 2)
    keys = ("a", "b", "c", "d")
    return Batch(PIXELS, IDS, VALID, labels, keys, buckets, None, *drawn)
