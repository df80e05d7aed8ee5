"""Every weight's initialisation, in one place.

Each parameter draws from its own generator, seeded by (seed, name): the values depend neither on the order in
which modules are built nor on how many ranks share them.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from opencoca.config import ModelConfig
from opencoca.model.coca import CoCa

PAIR_BIAS = -10.0
_RESIDUAL_OUTPUTS = ("self_attention.out.weight", "cross_attention.out.weight", "mlp.down.weight")


def build(config: ModelConfig, seed: int = 0, device: str | torch.device = "cpu") -> CoCa:
    """A freshly initialised CoCa on `device`."""
    with torch.device("meta"):
        model = CoCa(config)
    model = model.to_empty(device=device)
    if config.text.tie_output:
        model.head.weight = model.unimodal.tokens.weight
    init_weights(model, seed)
    return model


@torch.no_grad()
def init_weights(model: CoCa, seed: int = 0) -> None:
    """Fills every parameter in place.

    Matrices: normal with variance 1 / fan-in; those that write into the residual stream are scaled down by the
    square root of the number of writers. Embeddings, positions, masks, class token, registers and [CLS]:
    normal(0, 0.02). Queries: normal(0, 1), since a norm follows. Norms 1, biases and time positions 0. Temperature:
    `config.init_temperature`; the pairs' bias, where there is one: -10, since nearly all pairs of a batch don't belong
    together (SigLIP).
    """
    writers = {"encoder": 2 * len(model.encoder.blocks), "unimodal": 2 * len(model.unimodal.blocks)}
    in_a_layer = 3 if model.multimodal.picture_blocks is None else 4
    writers["multimodal"] = writers["unimodal"] + in_a_layer * len(model.multimodal.blocks)
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        if part == "tasks":
            rest = rest.partition(".")[2]  # a head's own name says nothing of its parameters
        if name == "log_scale":
            parameter.fill_(-math.log(model.config.init_temperature))
        elif name == "pair_bias":
            parameter.fill_(PAIR_BIAS)
        elif name.endswith("bias") or name == "time_positions_FD":
            parameter.zero_()
        elif "norm" in rest:
            parameter.fill_(1.0)
        elif name.endswith("queries_QD"):
            _normal(parameter, 1.0, seed, name)
        elif name.endswith(
            ("positions_PD", "positions_TD", "class_D", "registers_PD", "cls_D", "mask_TD", "tokens.weight")
        ):
            _normal(parameter, 0.02, seed, name)
        else:
            std = parameter.shape[1] ** -0.5
            if rest.endswith(_RESIDUAL_OUTPUTS):
                std *= writers[part] ** -0.5
            _normal(parameter, std, seed, name)


def _normal(parameter: nn.Parameter, std: float, seed: int, name: str) -> None:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=False) % 2**63)
    values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
    parameter.copy_(values)
