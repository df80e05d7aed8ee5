"""The layers of one decoding step in C (`native/decode_step.c`): how its weights lie, and how it is called.

Where that isn't compiled (`model.native`), `library()` is None and torch computes (`model.decode_torch`).
docs/decisions/0017 says why it is there.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, byref, c_double, c_int, c_int64, c_void_p
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import Activation
from opencoca.model import native
from opencoca.model.attention import Attention, KeysValues
from opencoca.model.blocks import Block, PictureBlock
from opencoca.model.coca import CoCa
from opencoca.model.decode_cache import DecodeCache

ACTIVATIONS: dict[Activation, int] = {"gelu": 0, "quick_gelu": 1, "gelu_tanh": 2}


INTERFACE = 1  # goes up with every change of what C is given


class CProduct(Structure):
    _fields_: ClassVar = [("weight", c_int64), ("bias", c_int64), ("inputs", c_int64), ("outputs", c_int64)]


class CNorm(Structure):
    _fields_: ClassVar = [("weight", c_int64), ("bias", c_int64), ("eps", c_double)]


class CAttending(Structure):
    _fields_: ClassVar = [
        *(("norm", CNorm), ("project", CProduct), ("out", CProduct)),
        *(("norm_q", CNorm), ("norm_k", CNorm)),
    ]


class CLayer(Structure):
    _fields_: ClassVar = [
        *(("past", CAttending), ("pictures", CAttending)),
        *(("norm_mlp", CNorm), ("up", CProduct), ("down", CProduct), ("activation", c_int64)),
    ]


class CView(Structure):
    _fields_: ClassVar = [("data", c_int64), ("picture", c_int64), ("head", c_int64), ("slot", c_int64)]


class CContext(Structure):
    _fields_: ClassVar = [("keys", CView), ("values", CView), ("slots", c_int64)]


class CStep(Structure):
    _fields_: ClassVar = [
        *((name, c_int64) for name in ("rows", "pictures", "width", "heads", "hidden", "there")),
        *(("seen", c_int64), ("x", c_int64)),
    ]


@functools.cache
def library() -> Any:
    """The library for this processor; None where it wasn't compiled, can't be loaded or is another version's.

    `OPENCOCA_PACK=0` in the environment does without it too, for the memory of its copy of the weights.
    """
    name = native.instructions()
    return None if name is None or os.environ.get("OPENCOCA_PACK") == "0" else load(name)


def load(name: str) -> Any:
    """The library for processors with these instructions, "avx2" or "avx512", or None."""
    size = 1_000_000 * INTERFACE + sum(map(ctypes.sizeof, (CLayer, CContext, CStep)))
    found = native.open_library(name, "opencoca_decode_interface", size)
    if found is None:
        return None
    found.opencoca_panel.restype = c_int64
    contexts = POINTER(CContext)
    found.opencoca_decode.argtypes = [POINTER(CStep), POINTER(CLayer), contexts, contexts, c_int64, c_int]
    found.opencoca_product.argtypes = [POINTER(CProduct), c_void_p, c_int64, c_void_p, c_int]
    return found


def computes(dtypes: set[torch.dtype]) -> bool:
    """Whether the library is there and weights of these types are what it computes with."""
    return library() is not None and dtypes == {torch.float32}


class NativeProduct:
    """A linear map of few rows; of several maps of the same input, their outputs side by side."""

    def __init__(self, first: nn.Linear, *others: nn.Linear) -> None:
        self.library = library()
        weight_OI, self.bias_O = first.weight, _held(first.bias)
        if others:
            weight_OI = torch.cat([weight_OI, *(one.weight for one in others)])
            self.bias_O = torch.cat([one.bias for one in (first, *others)])
        outputs, panel = len(weight_OI), self.library.opencoca_panel()
        padded_OI = F.pad(weight_OI, (0, 0, 0, -outputs % panel))
        self.weight_XIL = padded_OI.unflatten(0, (-1, panel)).transpose(1, 2).contiguous()
        bias = 0 if self.bias_O is None else self.bias_O.data_ptr()
        self.told = CProduct(self.weight_XIL.data_ptr(), bias, first.in_features, outputs)

    def __call__(self, x_RI: Tensor) -> Tensor:
        x_RI = x_RI.contiguous()
        y_RO = x_RI.new_empty(len(x_RI), self.told.outputs)
        _run(self.library.opencoca_product, byref(self.told), x_RI.data_ptr(), len(x_RI), y_RO.data_ptr())
        return y_RO


class NativeLayers:
    """The decoder's layers for one more position of each row, over a copy of their weights."""

    def __init__(self, model: CoCa) -> None:
        self.library = library()
        self.width, self.heads = model.config.text.width, model.config.text.num_heads
        self.products: list[NativeProduct] = []  # whose memory C reads, and that of
        self.norms: list[Tensor | None] = []
        blocks = [cast(Block, block) for block in model.unimodal.blocks]
        reading = model.multimodal.picture_blocks or [None] * len(model.multimodal.blocks)
        for pair in zip(model.multimodal.blocks, reading, strict=True):
            blocks += [cast(Block | PictureBlock, block) for block in pair if block is not None]
        layers = [self._layer(block) for block in blocks]
        self.layers = (CLayer * len(layers))(*layers)
        self.hidden = max(layer.up.outputs for layer in layers)
        self.has_past = [isinstance(block, Block) for block in blocks]
        self.has_pictures = [block.cross_attention is not None for block in blocks]
        self.head = NativeProduct(model.head)

    def __call__(self, x_RD: Tensor, cache: DecodeCache, keep_PST: Tensor | None) -> Tensor:
        """The outputs [R,D] of embedded ids [R,D]; the cache has been extended, `keep` says what the rows see in it.

        In its first step, a cache's keys and values of pictures are put in order of heads.
        """
        rows, pictures = len(x_RD), cache.unimodal[0].keys_BNSK.shape[0]
        if rows == 0:
            return x_RD
        if cache.told is None:
            for i, both in enumerate(cache.pictures):
                cache.pictures[i] = KeysValues(both.keys.contiguous(), both.values.contiguous())
            cache.told = self._contexts(cache)
        x_RD, keep = x_RD.contiguous(), None if keep_PST is None else keep_PST.contiguous()
        (there,) = {own.grow(rows // pictures) for own in (*cache.unimodal, *cache.multimodal)}
        seen = 0 if keep is None else keep.data_ptr()
        step = CStep(rows, pictures, self.width, self.heads, self.hidden, there, seen, x_RD.data_ptr())
        _run(self.library.opencoca_decode, byref(step), self.layers, *cache.told, len(self.layers))
        return x_RD

    def _contexts(self, cache: DecodeCache) -> tuple[Any, Any]:
        """Where C finds every layer's past and pictures; pictures that are done leave their places to others there."""
        own, seen = iter(cache.unimodal + cache.multimodal), iter(cache.pictures)
        pasts, pictures = (CContext * len(self.layers))(), (CContext * len(self.layers))()
        for i, (has_past, has_pictures) in enumerate(zip(self.has_past, self.has_pictures, strict=True)):
            if has_past:
                past = next(own)
                pasts[i] = _context(past.keys_BNSK, past.values_BNSK)
            if has_pictures:
                pictures[i] = _context(*next(seen))
        return pasts, pictures

    def _layer(self, block: Block | PictureBlock) -> CLayer:
        layer = CLayer(norm_mlp=self._norm(block.norm_mlp), activation=ACTIVATIONS[block.mlp.activation])
        if isinstance(block, Block):
            own = block.self_attention
            layer.past = self._attending(block.norm_self, own, own.q, own.kv)
        if block.cross_attention is not None:
            layer.pictures = self._attending(block.norm_cross, block.cross_attention, block.cross_attention.q)
        layer.up, layer.down = self._product(block.mlp.up), self._product(block.mlp.down)
        return layer

    def _attending(self, norm: nn.LayerNorm, attention: Attention, *projected: nn.Linear) -> CAttending:
        project, out = self._product(*projected), self._product(attention.out)
        return CAttending(self._norm(norm), project, out, self._norm(attention.norm_q), self._norm(attention.norm_k))

    def _product(self, *maps: nn.Linear) -> CProduct:
        self.products.append(NativeProduct(*maps))
        return self.products[-1].told

    def _norm(self, norm: nn.LayerNorm | None) -> CNorm:
        if norm is None:
            return CNorm()
        weight, bias = norm.weight.detach(), _held(norm.bias)
        self.norms += [weight, bias]
        return CNorm(weight.data_ptr(), 0 if bias is None else bias.data_ptr(), norm.eps)


def _held(weight: Tensor | None) -> Tensor | None:
    """The numbers themselves, which stay where they are even if the model is given others."""
    return None if weight is None else weight.detach()


def _context(keys_BNSK: Tensor, values_BNSK: Tensor) -> CContext:
    views = []
    for part in (keys_BNSK, values_BNSK):
        *strides, within = part.stride()
        assert within == 1, "a head's vector lies in one piece"
        views.append(CView(part.data_ptr(), *strides))
    return CContext(*views, keys_BNSK.shape[2])


def _run(function: Any, *arguments: Any) -> None:
    if function(*arguments, torch.get_num_threads()):
        raise MemoryError("no memory for a decoding step")
