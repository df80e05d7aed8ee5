"""Attentional pooling: learnable queries read a sequence through one attention layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opencoca.model.attention import Attention


class AttentionalPooler(nn.Module):
    """One multi-head attention layer with learnable queries (CoCa section 3.2), norms before and after it."""

    def __init__(self, num_queries: int, width: int, num_heads: int, context_width: int) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(torch.empty(num_queries, width))
        self.norm_queries = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(context_width)
        self.attention = Attention(width, num_heads, context_width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, context_BSD: Tensor, keep_BS: Tensor | None = None) -> Tensor:
        """Pools a context [B,S,D'] of any length into [B,Q,D]; `keep` says which positions are read, where not all."""
        queries_1QD = self.norm_queries(self.queries_QD)[None]
        keep_BQS = None if keep_BS is None else keep_BS[:, None]
        return self.norm_out(self.attention.attend(queries_1QD, self.norm_context(context_BSD), keep_BTS=keep_BQS))
