"""The two decoder halves: unimodal (text alone) and multimodal (text that reads the picture)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import TextConfig
from opencoca.model.attention import KeysValues, KVCache
from opencoca.model.blocks import Block


class UnimodalDecoder(nn.Module):
    """Causal text layers; a learnable [CLS] after the last real token becomes the text embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions_TD = nn.Parameter(torch.empty(config.context_length + 1, config.width))
        self.cls_D = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_width, causal=True) for _ in range(config.unimodal_depth)
        )
        self.norm_cls = nn.LayerNorm(config.width)

    def forward(self, ids_BT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Reads ids [B,T], padded on the right, and returns [CLS] outputs [B,D] and token outputs [B,T,D].

        Everything is causal and padding stands on the right of [CLS], so nothing real ever sees it and no mask
        is needed. Token outputs at padding positions are meaningless.

        Raises: ValueError for more ids than the context has room for.
        """
        room = self.positions_TD.shape[0] - 1
        if ids_BT.shape[1] > room:
            raise ValueError(f"captions of {ids_BT.shape[1]} ids don't fit context_length {room}; cut them to it")
        lengths_B = valid_BT.sum(dim=1)
        at_cls_BT1 = torch.arange(ids_BT.shape[1] + 1, device=ids_BT.device) == lengths_B[:, None]
        embedded_BTD = self.tokens(F.pad(ids_BT, (0, 1)))
        x_BTD = torch.where(at_cls_BT1[..., None], self.cls_D, embedded_BTD)
        x_BTD = x_BTD + self.positions_TD[: x_BTD.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        cls_BD = x_BTD[torch.arange(len(lengths_B), device=ids_BT.device), lengths_B]
        return self.norm_cls(cls_BD), x_BTD[:, :-1]

    def step(self, ids_BT: Tensor, caches: list[KVCache]) -> Tensor:
        """Token outputs [B,T,D] of the next positions, without [CLS], which no token ever sees."""
        start = caches[0].length
        x_BTD = self.tokens(ids_BT) + self.positions_TD[start : start + ids_BT.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block(x_BTD, cache=cache)
        return x_BTD


class MultimodalDecoder(nn.Module):
    """Causal layers with cross-attention to the generative pooler's tokens, and the vocabulary head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_width, causal=True, context_width=config.width)
            for _ in range(config.multimodal_depth)
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, text_BTD: Tensor, picture_BQD: Tensor) -> Tensor:
        """Decodes unimodal token outputs [B,T,D] against picture tokens [B,Q,D] into [B,T,D], normed for the head."""
        for block, picture in zip(self.blocks, self.pictures(picture_BQD), strict=True):
            text_BTD = block(text_BTD, picture)
        return self.norm_out(text_BTD)

    def pictures(self, picture_BQD: Tensor) -> list[KeysValues]:
        """Every layer's keys and values of picture tokens [B,Q,D]."""
        return [cast(Block, block).picture_keys_values(picture_BQD) for block in self.blocks]

    def step(self, text_BTD: Tensor, pictures: list[KeysValues], caches: list[KVCache]) -> Tensor:
        """The same for the next positions only; the caches hold the past."""
        for block, picture, cache in zip(self.blocks, pictures, caches, strict=True):
            text_BTD = block(text_BTD, picture, cache)
        return self.norm_out(text_BTD)
