"""One decoding step of few rows on a CPU: what the decoder's modules compute for one more position, without them.

Such a step reads all weights once, 529 MB in the published B/32, so it is bound by reading memory and whatever lies
between the products is computed with cold caches. `model.decode_native` computes all layers in one call of C;
`model.decode_torch` in torch's operations, where that can't be had. Weights, caches, masks and order are those of
`model.blocks`; tests hold the three together. Figures in docs/decisions/0013 and 0017.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.model import decode_native
from opencoca.model.attention import Attention
from opencoca.model.blocks import Block, Mlp, PictureBlock
from opencoca.model.coca import CoCa
from opencoca.model.decode_cache import DecodeCache
from opencoca.model.decode_native import NativeLayers
from opencoca.model.decode_torch import PACKED_FROM, TorchLayers
from opencoca.model.layout import lay_out_for_decoding
from opencoca.model.text import MultimodalDecoder, UnimodalDecoder

_OURS = {
    *(UnimodalDecoder, MultimodalDecoder, Block, PictureBlock, Attention, Mlp),
    *(nn.ModuleList, nn.Linear, nn.LayerNorm, nn.Embedding),
}

Seen = tuple[int, int, torch.dtype]  # of a weight

_prepared: weakref.WeakKeyDictionary[CoCa, DecodeStep] = weakref.WeakKeyDictionary()
_preparing = threading.Lock()


def prepare_to_decode(model: CoCa, rows: int) -> DecodeStep | None:
    """What computes steps of up to `rows` rows in the modules' place; None where the modules have to.

    They have to on other devices, under autocast, in a model that requires gradients anywhere, and where a module of
    the decoder is none of ours (LoRA's, say) or somebody hooked into it. What is made of the weights is kept beside
    them as long as the model lives and its weights are the same: a copy of all in the order in which C reads them; or,
    where torch computes, a copy of self-attention's query, key and value matrices, and from `PACKED_FROM` rows on a
    packed copy of all. There the decoder's matrices are laid out by input, too, in place.
    """
    with _preparing, torch.inference_mode(False), torch.no_grad():
        state = _state(model)
        native = state is not None and decode_native.computes({dtype for *_, dtype in state})
        if not native:
            lay_out_for_decoding(model)
            state = state and _state(model)
        found = _prepared.get(model)
        if state is None or found is None or found.state != state or isinstance(found.layers, NativeLayers) != native:
            _prepared.pop(model, None)
            if state is None:
                return None
            found = _prepared[model] = DecodeStep(model, state, NativeLayers(model) if native else TorchLayers(model))
        if rows >= PACKED_FROM and isinstance(found.layers, TorchLayers):
            found.layers.pack()
        return found


def _state(model: CoCa) -> list[Seen] | None:
    """Where the decoder's weights lie, how often they were written to and of what type they are.

    None if the modules have to compute.
    """
    state = []
    if torch.is_autocast_enabled("cpu"):
        return None
    for part in (model.unimodal, model.multimodal, model.head):
        for module in part.modules():
            if type(module) not in _OURS or module._forward_hooks or module._forward_pre_hooks:
                return None
            for weight in module._parameters.values():  # `parameters()` takes six times as long, at every search
                if weight is None:
                    continue
                if not weight.is_cpu or weight.requires_grad or weight.is_inference():
                    return None
                state.append((weight.data_ptr(), weight._version, weight.dtype))
    return state


class DecodeStep:
    """The decoder for one more position of each row (see `prepare_to_decode`); `head` gives logits of its outputs."""

    def __init__(self, model: CoCa, state: list[Seen], layers: NativeLayers | TorchLayers) -> None:
        self.state, self.layers, self.head = state, layers, layers.head
        self.tokens_VD, self.positions_TD = model.unimodal.tokens.weight, model.unimodal.positions_TD
        norm = model.multimodal.norm_out
        self.norm_out = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps

    def __call__(self, ids_R1: Tensor, cache: DecodeCache) -> Tensor:
        """`CoCa.decode_next` of one id per row, [R,1,D]."""
        start, keep_PST = cache.length, cache.extend(len(ids_R1), 1)
        x_RD = F.embedding(ids_R1[:, 0], self.tokens_VD) + self.positions_TD[start]
        return torch.native_layer_norm(self.layers(x_RD, cache, keep_PST), *self.norm_out)[0][:, None]
