"""The two decoder halves: unimodal (text alone) and multimodal (text that reads the picture)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import TextConfig
from opencoca.model.attention import KeysValues, KVCache
from opencoca.model.blocks import Block, PictureBlock
from opencoca.model.runs import Run, apart, joined, packed, padded
from opencoca.types import TextBucket


class UnimodalDecoder(nn.Module):
    """Causal text layers; a learnable [CLS] after the last real token becomes the text embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.cls_at_end = config.cls_place == "at_end"
        # nn.Embedding would draw values, for `init_weights` to replace: on "meta" that imports a compiler for 2 s.
        self.tokens = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.positions_TD = nn.Parameter(torch.empty(config.context_length + 1, config.width))
        self.cls_D = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                config.mlp_width,
                causal=True,
                qk_norm=config.qk_norm,
                activation=config.activation,
            )
            for _ in range(config.unimodal_depth)
        )
        self.norm_cls = nn.LayerNorm(config.width)

    def forward(self, ids_BT: Tensor, valid_BT: Tensor, buckets: Sequence[TextBucket] = ()) -> tuple[Tensor, Tensor]:
        """Reads ids [B,T], padded on the right, and returns [CLS] outputs [B,D] and token outputs [B,T,D].

        Token outputs at padding positions are meaningless. With `buckets`, which cover all rows, each is read at its
        own length: the same values, without most of the padding.

        Raises: ValueError for more ids than the context has room for.
        """
        room = self.positions_TD.shape[0] - 1
        if ids_BT.shape[1] > room:
            raise ValueError(f"captions of {ids_BT.shape[1]} ids don't fit context_length {room}; cut them to it")
        ids_BT = F.pad(ids_BT, (0, 1))
        place = self._with_cls_at_end if self.cls_at_end else self._with_cls_behind
        if not buckets:
            x_BTD, cls_at_B, keep_BTS = place(self.tokens(ids_BT), valid_BT)
            for block in self.blocks:
                x_BTD = block(x_BTD, keep_BTS=keep_BTS)
            return self.norm_cls(_picked(x_BTD, cls_at_B)), x_BTD[:, : valid_BT.shape[1]]
        longer = [Run.of(bucket, 1) for bucket in buckets]
        words = apart(self.tokens(packed(ids_BT, longer)), longer)  # looked up at once: one gradient of the vocabulary
        entering, cls_at, runs = [], [], []
        for words_BTD, bucket in zip(words, buckets, strict=True):
            x_BTD, cls_at_B, keep_BTS = place(words_BTD, valid_BT[bucket.first : bucket.last, : bucket.length])
            entering.append(x_BTD)
            cls_at.append(cls_at_B)
            runs.append(Run.of(bucket, x_BTD.shape[1] - bucket.length, keep_BTS))
        x_XD = joined(entering)
        for block in self.blocks:
            x_XD = block(x_XD, runs=runs)
        outputs = apart(x_XD, runs)
        cls_BD = torch.cat([_picked(*of_run) for of_run in zip(outputs, cls_at, strict=True)])
        words = [out_BTD[:, : bucket.length] for out_BTD, bucket in zip(outputs, buckets, strict=True)]
        return self.norm_cls(cls_BD), padded(words, valid_BT.shape[1])

    def _with_cls_behind(self, words_BTD: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, None]:
        """What enters the blocks [B,T+1,D], with [CLS] behind the last real token; its place [B]; no mask.

        Everything is causal and padding stands on the right of [CLS]: nothing real sees it.
        """
        lengths_B = valid_BT.sum(dim=1)
        at_cls_BT1 = torch.arange(words_BTD.shape[1], device=words_BTD.device) == lengths_B[:, None]
        x_BTD = torch.where(at_cls_BT1[..., None], self.cls_D, words_BTD)
        return x_BTD + self.positions_TD[: x_BTD.shape[1]], lengths_B, None

    def _with_cls_at_end(self, words_BTD: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same [B,T+2,D] with [CLS] in the context's last position, whatever the caption's length.

        Its row of keys is shifted by one: it sees the first position and the one behind each real token; so do padding
        positions, whose outputs mean nothing but can be compared so. Padding is id 0.

        Source: the masks of open_clip 2, with which the published weights were trained.
        Differs: open_clip 3.3 hides the position behind a real token 0 (a "!" inside a word) from real tokens as well.
        """
        batch, beyond = words_BTD.shape[:2]
        room, device = self.positions_TD.shape[0] - 1, words_BTD.device
        # The position behind the last real token is read too; behind a text that fills the context that is [CLS]'s own.
        valid_BT = F.pad(valid_BT, (0, 1))
        beyond_T1 = torch.arange(beyond, device=device)[:, None] == room
        x_BTD = torch.where(beyond_T1, self.cls_D, words_BTD) + self.positions_TD[:beyond]
        cls_B1D = (self.cls_D + self.positions_TD[room]).expand(batch, 1, -1)
        x_BTD = torch.cat((x_BTD, cls_B1D), dim=1)
        positions_T = torch.arange(x_BTD.shape[1], device=device)
        lengths_B1 = (valid_BT * (positions_T[:-1] + 1)).amax(dim=1, keepdim=True)
        real_BT = positions_T < lengths_B1
        keep_BTS = (positions_T[:, None] >= positions_T) & (
            real_BT[..., None] | F.pad(valid_BT, (1, 0), value=True)[:, None]
        )
        return x_BTD, torch.full((batch,), beyond, dtype=torch.long, device=device), keep_BTS

    def step(
        self, ids_BT: Tensor, caches: Sequence[KVCache | None], start: int = 0, keep_BTS: Tensor | None = None
    ) -> Tensor:
        """Token outputs [B,T,D] of the positions from `start` on, without [CLS], which no token ever sees.

        The caches hold the positions before; `keep_BTS` says what each one sees, where that isn't plainly causal.
        """
        x_BTD = self.tokens(ids_BT) + self.positions_TD[start : start + ids_BT.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block(x_BTD, cache=cache, keep_BTS=keep_BTS)
        return x_BTD


class MultimodalDecoder(nn.Module):
    """Causal layers with cross-attention to the generative pooler's tokens, and the vocabulary head.

    mask_TD: what stands in the text's place where training predicts all tokens from the picture alone; None where it
        never does. Nothing else reads it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        sizes = config.width, config.num_heads, config.mlp_width
        options = {"qk_norm": config.qk_norm, "activation": config.activation}
        self.mask_TD = None
        if config.parallel_share:
            self.mask_TD = nn.Parameter(torch.empty(config.context_length - 1, config.width))
        inside = config.cross_attention == "inside"
        self.blocks = nn.ModuleList(
            Block(*sizes, causal=True, context_width=config.width if inside else None, **options)
            for _ in range(config.multimodal_depth)
        )
        self.picture_blocks = None
        if not inside:
            self.picture_blocks = nn.ModuleList(PictureBlock(*sizes, **options) for _ in range(config.multimodal_depth))
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, text_BTD: Tensor, picture_BQD: Tensor, buckets: Sequence[TextBucket] = ()) -> Tensor:
        """Decodes unimodal token outputs [B,T,D] against picture tokens [B,Q,D] into [B,T,D], normed for the head.

        Each layer makes its own keys and values of the picture, so that none outlives it where layers are recomputed.
        With `buckets`, which cover all rows, each is read at its own length, and zeros stand behind it.
        """
        if not buckets:
            return self.step(text_BTD, [picture_BQD] * len(self.blocks), [None] * len(self.blocks))
        runs = [Run.of(bucket) for bucket in buckets]
        x_XD = packed(text_BTD, runs)
        for i, block in enumerate(self.blocks):
            x_XD = block(x_XD, picture_BQD, runs=runs)
            if self.picture_blocks is not None:
                x_XD = self.picture_blocks[i](x_XD, picture_BQD, runs)
        return padded(apart(self.norm_out(x_XD), runs), text_BTD.shape[1])

    def pictures(self, picture_BQD: Tensor) -> list[KeysValues]:
        """Every layer's keys and values of picture tokens [B,Q,D]."""
        readers = self.blocks if self.picture_blocks is None else self.picture_blocks
        return [cast(PictureBlock | Block, reader).picture_keys_values(picture_BQD) for reader in readers]

    def step(
        self,
        text_BTD: Tensor,
        pictures: Sequence[KeysValues | Tensor],
        caches: Sequence[KVCache | None],
        keep_BTS: Tensor | None = None,
    ) -> Tensor:
        """The same for the next positions only, where the caches hold the past; `keep_BTS` as in `UnimodalDecoder`."""
        for i, (picture, cache) in enumerate(zip(pictures, caches, strict=True)):
            text_BTD = self.blocks[i](text_BTD, picture, cache, keep_BTS)
            if self.picture_blocks is not None:
                text_BTD = self.picture_blocks[i](text_BTD, picture)
        return self.norm_out(text_BTD)


def _picked(x_BTD: Tensor, at_B: Tensor) -> Tensor:
    """The output [B,D] at one position of each row."""
    return x_BTD[torch.arange(at_B.shape[0], device=x_BTD.device), at_B]
