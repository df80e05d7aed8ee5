"""The layers of one decoding step in torch's operations: what the modules compute, in as few as it takes.

Where weights have swept everything else out of the processor's caches, a small operation costs several times what it
costs alone. So query, key and value of a layer are one product here, activation and residual are part of a packed
product, and no module is called. `model.decode_native` does the same in one call, where it can. Figures in
docs/decisions/0013.
"""

from __future__ import annotations

import functools
import math
import os
import platform
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import Activation
from opencoca.model.attention import Attention, KeysValues, KVCache
from opencoca.model.blocks import Block, Mlp, PictureBlock, activated
from opencoca.model.coca import CoCa
from opencoca.model.decode_cache import DecodeCache

PACKED_FROM = 4  # rows: below, packed products are slower than plain ones


class Product:
    """A linear map of few rows; of several maps of the same input, their outputs side by side."""

    def __init__(self, *maps: nn.Linear) -> None:
        self.packed: Tensor | None = None
        if len(maps) == 1:
            self.weight_IO, self.bias_O = maps[0].weight.detach().T, maps[0].bias
        else:
            self.weight_IO = torch.cat([one.weight.T for one in maps], dim=1)
            self.bias_O = torch.cat([one.bias for one in maps])

    def pack(self) -> None:
        """Makes the copy that a product of several rows reads, where this torch and processor have such products."""
        if self.packed is None and self.weight_IO.dtype == torch.float32:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight_IO.T.contiguous(), 64)

    def __call__(self, x_RI: Tensor) -> Tensor:
        if self.packed is not None and x_RI.shape[0] >= PACKED_FROM:
            return torch.ops.mkldnn._linear_pointwise.default(x_RI, self.packed, self.bias_O, "none", [], "")
        if self.bias_O is None:
            return torch.mm(x_RI, self.weight_IO)
        return torch.addmm(self.bias_O, x_RI, self.weight_IO)

    def onto(self, x_RI: Tensor, residual_RO: Tensor) -> Tensor:
        """The outputs, added to what there is."""
        if self.packed is not None and x_RI.shape[0] >= PACKED_FROM:
            return torch.ops.mkldnn._linear_pointwise.binary(x_RI, residual_RO, self.packed, self.bias_O, "add")
        return torch.addmm(self.bias_O, x_RI, self.weight_IO).add_(residual_RO)

    def gelu(self, x_RI: Tensor) -> Tensor:
        """The exact GELU of the outputs."""
        if self.packed is not None and x_RI.shape[0] >= PACKED_FROM:
            return torch.ops.mkldnn._linear_pointwise.default(x_RI, self.packed, self.bias_O, "gelu", [], "none")
        half_RO = torch.addmm(self.bias_O, x_RI, self.weight_IO, beta=0.5, alpha=0.5)
        return torch.addcmul(half_RO, half_RO, (half_RO * math.sqrt(2)).erf_())  # half as long as F.gelu, caches swept


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.arguments = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return torch.native_layer_norm(x, *self.arguments)[0]


class _Attending:
    """Attention with the norm before it and the residual behind it: to the rows' own past, or to their pictures."""

    def __init__(self, norm: nn.LayerNorm, attention: Attention, to_itself: bool) -> None:
        self.heads = attention.num_heads
        self.norm = _Norm(norm)
        self.project = Product(attention.q, attention.kv) if to_itself else Product(attention.q)
        self.out = Product(attention.out)
        self.norm_q = self.norm_k = None
        if attention.norm_q is not None and attention.norm_k is not None:
            self.norm_q, self.norm_k = _Norm(attention.norm_q), _Norm(attention.norm_k)

    def to_past(self, x_RD: Tensor, cache: KVCache, keep_P1ST: Tensor | None) -> Tensor:
        pictures = cache.keys_BNSK.shape[0]
        projected = self.project(self.norm(x_RD)).view(pictures, -1, 3, self.heads, cache.keys_BNSK.shape[3])
        q_PNSK, keys_PNSK, values_PNSK = projected.permute(2, 0, 3, 1, 4).unbind()
        if self.norm_q is not None and self.norm_k is not None:
            q_PNSK, keys_PNSK = self.norm_q(q_PNSK), self.norm_k(keys_PNSK)
        return self._attend(q_PNSK, cache.append(KeysValues(keys_PNSK, values_PNSK)), keep_P1ST, x_RD)

    def to_pictures(self, x_RD: Tensor, pictures: KeysValues) -> Tensor:
        projected = self.project(self.norm(x_RD)).view(pictures.keys.shape[0], -1, self.heads, pictures.keys.shape[3])
        q_PNSK = projected.transpose(1, 2)
        if self.norm_q is not None:
            q_PNSK = self.norm_q(q_PNSK)
        return self._attend(q_PNSK, pictures, None, x_RD)

    def _attend(self, q_PNSK: Tensor, context: KeysValues, keep_P1ST: Tensor | None, residual_RD: Tensor) -> Tensor:
        heads_PNSK = F.scaled_dot_product_attention(q_PNSK, *context, attn_mask=keep_P1ST)
        return self.out.onto(heads_PNSK.transpose(1, 2).reshape(residual_RD.shape), residual_RD)


class _Mlp:
    def __init__(self, norm: nn.LayerNorm, mlp: Mlp) -> None:
        self.norm = _Norm(norm)
        self.activation: Activation = mlp.activation
        self.up, self.down = Product(mlp.up), Product(mlp.down)

    def __call__(self, x_RD: Tensor) -> Tensor:
        normed_RD = self.norm(x_RD)
        if self.activation == "gelu":
            return self.down.onto(self.up.gelu(normed_RD), x_RD)
        return self.down.onto(activated(self.up(normed_RD), self.activation), x_RD)


class _Layer:
    """What a block, or a part of one, adds in its order: the past, the pictures, the MLP."""

    def __init__(self, block: Block | PictureBlock) -> None:
        self.past = self.pictures = None
        if isinstance(block, Block):
            self.past = _Attending(block.norm_self, block.self_attention, to_itself=True)
        if block.cross_attention is not None:
            self.pictures = _Attending(block.norm_cross, block.cross_attention, to_itself=False)
        self.mlp = _Mlp(block.norm_mlp, block.mlp)

    def __call__(self, x_RD: Tensor, cache: KVCache, pictures: KeysValues | None, keep_P1ST: Tensor | None) -> Tensor:
        if self.past is not None:
            x_RD = self.past.to_past(x_RD, cache, keep_P1ST)
        if self.pictures is not None and pictures is not None:
            x_RD = self.pictures.to_pictures(x_RD, pictures)
        return self.mlp(x_RD)


class TorchLayers:
    """The decoder's layers for one more position of each row, over weights that lie by input or are packed."""

    def __init__(self, model: CoCa) -> None:
        self.unimodal = [_Layer(cast(Block, block)) for block in model.unimodal.blocks]
        text_half = model.multimodal
        reading = text_half.picture_blocks or [None] * len(text_half.blocks)
        self.multimodal = [
            [_Layer(cast(Block | PictureBlock, block)) for block in blocks if block is not None]
            for blocks in zip(text_half.blocks, reading, strict=True)
        ]
        self.head = Product(model.head)

    def pack(self) -> None:
        """Packs every matrix."""
        if not can_pack():
            return
        for layer in [*self.unimodal, *(part for parts in self.multimodal for part in parts)]:
            for attending in (layer.past, layer.pictures):
                if attending is not None:
                    attending.project.pack()
                    attending.out.pack()
            layer.mlp.up.pack()
            layer.mlp.down.pack()
        self.head.pack()

    def __call__(self, x_RD: Tensor, cache: DecodeCache, keep_PST: Tensor | None) -> Tensor:
        """The outputs [R,D] of embedded ids [R,D]; the cache has been extended, `keep` says what the rows see in it."""
        keep_P1ST = None
        if keep_PST is not None:  # once for all layers: a mask of booleans would be turned into numbers in each
            keep_P1ST = torch.zeros_like(keep_PST, dtype=x_RD.dtype).masked_fill_(~keep_PST, -math.inf)[:, None]
        for layer, own in zip(self.unimodal, cache.unimodal, strict=True):
            x_RD = layer(x_RD, own, None, keep_P1ST)
        for layers, own, pictures in zip(self.multimodal, cache.multimodal, cache.pictures, strict=True):
            for layer in layers:
                x_RD = layer(x_RD, own, pictures, keep_P1ST)
        return x_RD


@functools.cache
def can_pack() -> bool:
    """Whether this torch, on this processor, has packed products that give what plain ones give, and may use them.

    `OPENCOCA_PACK=0` in the environment forbids it, for the memory that the copies take.
    """
    if (
        os.environ.get("OPENCOCA_PACK") == "0"
        or not torch.backends.mkldnn.is_available()
        or platform.machine().lower() not in ("x86_64", "amd64")
    ):
        return False
    one = Product(nn.Linear(16, 32))
    x_RI, there_RO = torch.linspace(-1, 1, 80).view(5, 16), torch.ones(5, 32)
    plain = one(x_RI), one.onto(x_RI, there_RO), one.gelu(x_RI)
    try:
        one.pack()
        packed = one(x_RI), one.onto(x_RI, there_RO), one.gelu(x_RI)
    except (AttributeError, RuntimeError, TypeError):  # these operators are torch's own business, and may change
        return False
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, packed, strict=True))
