"""A tiny float64 model with every parameter random, captions for it, and attention as its formula reads.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

import dataclasses
import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from opencoca import recipes
from opencoca.config import ModelConfig
from opencoca.model.attention import Attention
from opencoca.model.coca import CoCa
from opencoca.model.init import build

Module = TypeVar("Module", bound=nn.Module)
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}  # worst measured: 4e-15, by the order of sums


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_random(module: Module) -> Module:
    """The module in float64 with every parameter random, so that no bias is 0 and no norm is 1."""
    module = module.double()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(module.named_parameters()):
            if name != "log_scale":
                spread = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.3
                parameter.copy_(spread * random(*parameter.shape, seed=seed) + ("norm" in name and "weight" in name))
    return module.eval()


def tiny(**pooler: object) -> ModelConfig:
    config = recipes.tiny.tiny().model
    return dataclasses.replace(config, pooler=dataclasses.replace(config.pooler, **pooler))


@pytest.fixture(scope="module")
def model() -> CoCa:
    return all_random(build(tiny())).requires_grad_(False)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return random(3, 3, 16, 16, seed=100)


IDS = torch.tensor([[1, 40, 50, 60, 2, 0, 0], [1, 7, 2, 0, 0, 0, 0], [1, 9, 40, 9, 300, 301, 2]])
LENGTHS = (5, 3, 7)
VALID = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def naive_attention(module: Attention, x_BTD: Tensor, context_BSD: Tensor, causal: bool) -> Tensor:
    """One query, one head at a time, with softmax written out; the queries are the last positions of the context."""
    width = x_BTD.shape[-1]
    head_width = width // module.num_heads
    q_BTD = x_BTD @ module.q.weight.T + module.q.bias
    k_BSD = context_BSD @ module.kv.weight[:width].T + module.kv.bias[:width]
    v_BSD = context_BSD @ module.kv.weight[width:].T + module.kv.bias[width:]
    heads_BTD = torch.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            seen = context_BSD.shape[1] - x_BTD.shape[1] + t + 1 if causal else context_BSD.shape[1]
            for n in range(module.num_heads):
                part = slice(n * head_width, (n + 1) * head_width)
                scores_S = k_BSD[b, :seen, part] @ q_BTD[b, t, part] / math.sqrt(head_width)
                weights_S = scores_S.exp() / scores_S.exp().sum()
                heads_BTD[b, t, part] = weights_S @ v_BSD[b, :seen, part]
    return heads_BTD @ module.out.weight.T + module.out.bias
