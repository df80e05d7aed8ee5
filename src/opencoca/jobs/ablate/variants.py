"""Changes of the model that its configuration has no field for, made by `prepare` before the first step."""

from __future__ import annotations

import hashlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.jobs.ablate.settings import Variant
from opencoca.model.coca import CoCa
from opencoca.model.pooler import AttentionalPooler
from opencoca.model.text import UnimodalDecoder

MANY = 8


def apply(variant: Variant, model: CoCa, seed: int) -> None:
    """Changes a new model in place; "" leaves it as it is."""
    if variant == "no_pooler":
        model.generative_pooler = cast(AttentionalPooler, NoPooler(model.config.vision.width))
    elif variant:
        unimodal = model.unimodal
        unimodal.__class__ = PooledText
        assert isinstance(unimodal, PooledText)
        unimodal.reads_tokens = variant.endswith("text_tokens")
        unimodal.more_cls = None
        if variant.startswith("many_cls"):
            unimodal.more_cls = nn.Parameter(_normal((MANY - 1, model.config.text.width), seed))


class NoPooler(nn.Module):
    """In the generative pooler's place: the encoder's tokens, normed. Its width must be the text's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_out = nn.LayerNorm(width)

    def forward(self, context_BSD: Tensor) -> Tensor:
        return self.norm_out(context_BSD)


class PooledText(UnimodalDecoder):
    """The unimodal half with another text embedding: the mean of several normed outputs.

    `more_cls` [X,D] stand behind the first [CLS], each at a position of its own (behind a caption that nearly fills the
    context, the last ones share the last position) and seeing those before it; with
    `reads_tokens`, the real text positions' outputs, start and end among them, belong to the mean too.
    """

    reads_tokens: bool
    more_cls: nn.Parameter | None

    def forward(self, ids_BT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
        """As in `UnimodalDecoder`; all is causal and [CLS] stand behind the text, so that no text position sees one."""
        cls_XD = self.cls_D[None] if self.more_cls is None else torch.cat((self.cls_D[None], self.more_cls))
        count, length = len(cls_XD), ids_BT.shape[1]
        lengths_B1 = valid_BT.sum(dim=1, keepdim=True)
        positions_T = torch.arange(length + count, device=ids_BT.device)
        behind_BT = positions_T - lengths_B1  # 0 at the first [CLS]
        is_cls_BT = (behind_BT >= 0) & (behind_BT < count)
        cls_BTD = F.embedding(behind_BT.clamp(0, count - 1), cls_XD)
        x_BTD = torch.where(is_cls_BT[..., None], cls_BTD, self.tokens(F.pad(ids_BT, (0, count))))
        x_BTD = x_BTD + self.positions_TD[positions_T.clamp(max=len(self.positions_TD) - 1)]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        read_BT = is_cls_BT | (behind_BT < 0) if self.reads_tokens else is_cls_BT
        normed_BTD = self.norm_cls(x_BTD) * read_BT[..., None]
        return normed_BTD.sum(dim=1) / read_BT.sum(dim=1, keepdim=True), x_BTD[:, :length]


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """normal(0, 0.02), as [CLS] itself is begun with."""
    digest = hashlib.sha256(f"{seed}/unimodal.more_cls".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)
