"""The order of a matrix's numbers in memory: decoding multiplies few rows by every matrix; one order is the faster."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from opencoca.model.blocks import Block
from opencoca.model.coca import CoCa


def lay_out_for_decoding(model: CoCa) -> None:
    """Stores the decoder's matrices by input instead of by output, in place; shapes and values stay as they are.

    On a CPU, products of up to 48 rows with them become 1.0 to 1.9 times as fast, products of hundreds of rows stay as
    fast as they were (docs/decisions/0008). Nothing happens on other devices, where it was done before, and in a model
    that requires gradients anywhere: fused optimizers want their state in the order of the parameters. A matrix that
    is the embedding too stays as well.
    """
    first = cast(Block, model.unimodal.blocks[0]).mlp.up.weight
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if first.device.type != "cpu" or trains or not first.is_contiguous():
        return
    with torch.inference_mode(False), torch.no_grad():  # weights must not become inference tensors
        for part in (model.unimodal.blocks, model.multimodal, model.head):
            for module in part.modules():
                if isinstance(module, nn.Linear) and module.weight is not model.unimodal.tokens.weight:
                    module.weight.data = module.weight.data.T.contiguous().T
