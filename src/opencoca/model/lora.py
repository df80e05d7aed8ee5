"""Low-rank updates of the attention and MLP matrices (LoRA), and the way back to plain matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.model.attention import Attention
from opencoca.model.blocks import Mlp
from opencoca.model.coca import CoCa

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(nn.Linear):
    """A linear map whose matrix is `weight + scale * lora_up @ lora_down`, of which only the product is trained.

    `weight` and `bias` are those of the map it replaces and keep their names, so a checkpoint holds the original
    matrices and, beside them, the two factors: `lora_down` [rank, inputs] and `lora_up` [outputs, rank].
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would make, and draw, a second matrix
        self.in_features, self.out_features, self.scale = linear.in_features, linear.out_features, scale
        self.weight, self.bias = linear.weight, linear.bias
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_down = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, **like))

    def forward(self, input: Tensor) -> Tensor:
        """The map of inputs [..., inputs] to [..., outputs]."""
        update = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return F.linear(input, self.weight, self.bias) + self.scale * update


def add_lora(model: CoCa, rank: int, alpha: float, seed: int = 0) -> None:
    """Freezes the model and puts trainable updates beside every matrix of its attentions and MLPs, in place.

    They begin at nothing: `lora_up` is 0, `lora_down` normal with variance 1 / inputs, from (seed, name) alone. The
    model's outputs stay, bit for bit, until the first step.

    Args: the update is `alpha / rank` times the product, so that the same rate suits every rank.
    Source: LoRA (Hu et al. 2021), Section 4.
    """
    model.requires_grad_(False)
    for owner, name, path in _targets(model):
        linear = LoraLinear(getattr(owner, name), rank, alpha / rank)
        digest = hashlib.sha256(f"{seed}/{path}.{DOWN}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
        values = torch.empty(linear.lora_down.shape).normal_(0.0, linear.in_features**-0.5, generator=generator)
        with torch.no_grad():
            linear.lora_down.copy_(values)
        setattr(owner, name, linear)


def merge(model: CoCa) -> CoCa:
    """The same model with every update added to its matrix, in place: plain linear maps again, all of them trainable.

    Outputs change by rounding only. A model without updates comes back as it is.
    """
    for owner, name, _ in _targets(model):
        lora = getattr(owner, name)
        if not isinstance(lora, LoraLinear):
            continue
        with torch.device("meta"):
            linear = nn.Linear(lora.in_features, lora.out_features, bias=lora.bias is not None)
        merged = merged_matrix(lora.weight, lora.lora_down, lora.lora_up, lora.scale)
        linear.weight, linear.bias = nn.Parameter(merged), lora.bias
        setattr(owner, name, linear)
    return model.requires_grad_()


def merged_weights(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights of a model with updates as those of a plain one, under the plain names; others pass unchanged."""
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((DOWN, UP))}
    for name, down in weights.items():
        if name.endswith(DOWN):
            prefix = name.removesuffix(DOWN)
            matrix, up = merged[f"{prefix}weight"], weights[f"{prefix}{UP}"]
            merged[f"{prefix}weight"] = merged_matrix(matrix, down, up, alpha / len(down))
    return merged


def merged_matrix(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """weight [outputs, inputs] + scale * up @ down, computed in float64 and rounded once."""
    with torch.no_grad():
        return (weight.double() + scale * (up.double() @ down.double())).to(weight.dtype)


def _targets(model: CoCa) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, attribute, full name) of each linear map inside an attention or MLP, poolers included."""
    owners = [(path, module) for path, module in model.named_modules() if isinstance(module, Attention | Mlp)]
    for path, owner in owners:
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                yield owner, name, f"{path}.{name}"
