"""The only attention: self, cross and cached."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAVES = 0.75  # of the products with keys and values: where it takes fewer without, they aren't made
WORTH_IT = 50_000_000  # multiplications that keys and values of one context take; below, more calls cost what is saved


class KeysValues(NamedTuple):
    """What a sequence offers to be attended to: keys and values, each [B,N,S,K]."""

    keys: Tensor
    values: Tensor


class KVCache:
    """A static self-attention cache: room for `capacity` positions of each picture's rows, filled from the left.

    The rows of one picture (its beams) write beside each other and read all that was written; which positions are a
    row's own past is for a mask to say, so that reordering beams moves nothing.
    """

    def __init__(self, pictures: int, num_heads: int, capacity: int, head_width: int, like: Tensor) -> None:
        self.keys_BNSK = like.new_empty(pictures, num_heads, capacity, head_width)
        self.values_BNSK = like.new_empty(pictures, num_heads, capacity, head_width)
        self.length = 0

    def append(self, new: KeysValues) -> KeysValues:
        """Stores the next positions, row by row, and returns all so far.

        Raises: ValueError where the positions don't fit.
        """
        pictures, _, capacity, _ = self.keys_BNSK.shape
        if new.keys.shape[0] > pictures:
            new = KeysValues(*(part.unflatten(0, (pictures, -1)).transpose(1, 2).flatten(2, 3) for part in new))
        end = self.length + new.keys.shape[2]
        if end > capacity:
            raise ValueError(f"the cache holds {capacity} positions, {end} were asked for")
        self.keys_BNSK[:, :, self.length : end] = new.keys
        self.values_BNSK[:, :, self.length : end] = new.values
        self.length = end
        return KeysValues(self.keys_BNSK[:, :, :end], self.values_BNSK[:, :, :end])


class Attention(nn.Module):
    """Multi-head attention with biases; queries from one sequence, keys and values from itself or another.

    With `qk_norm`, queries and keys are normed in each head, which bounds what the softmax sees.

    Source of `qk_norm`: ViT-22B (arXiv 2302.05442), section 2.
    """

    def __init__(self, width: int, num_heads: int, context_width: int | None = None, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_q = self.norm_k = None
        if qk_norm:  # without biases: one of all keys would move no softmax
            self.norm_q, self.norm_k = (nn.LayerNorm(width // num_heads, bias=False) for _ in range(2))

    def keys_values(self, context_BSD: Tensor) -> KeysValues:
        """Projects a context [B,S,D'] once, so that many queries (steps, beams) can share it."""
        keys_BSD, values_BSD = self.kv(context_BSD).chunk(2, dim=-1)
        keys_BNSK = self._split_heads(keys_BSD)
        if self.norm_k is not None:
            keys_BNSK = self.norm_k(keys_BNSK)
        return KeysValues(keys_BNSK, self._split_heads(values_BSD))

    def forward(
        self, x_BTD: Tensor, context: KeysValues, causal: bool = False, keep_BTS: Tensor | None = None
    ) -> Tensor:
        """Attends from x [B,T,D] to `context` and returns [B,T,D].

        `keep_BTS` says which positions each query sees, instead of `causal`.

        With `causal`, the T queries are the last T of the S positions (lower-right alignment), so the same call
        serves training (T = S) and cached decoding (T < S). Padding needs no mask: it stands on the right of
        causal sequences, where no real token sees it. Where the context has fewer rows, each is shared by as many
        consecutive rows of x (the beams of one picture) without being copied; a single row of x (a pooler's
        queries) is projected once and reads every row of the context.
        """
        rows = context.keys.shape[0]
        q_BNTK = self._split_heads(self.q(x_BTD))
        if self.norm_q is not None:
            q_BNTK = self.norm_q(q_BNTK)
        if q_BNTK.shape[0] == 1:
            q_BNTK = q_BNTK.expand(rows, -1, -1, -1)
        sharing = q_BNTK.shape[0] // max(1, rows)  # no pictures: nothing to share
        if sharing > 1:
            q_BNTK = q_BNTK.unflatten(0, (-1, sharing)).transpose(1, 2).flatten(2, 3)
        num_queries, num_keys = q_BNTK.shape[2], context.keys.shape[2]
        keep = None
        if keep_BTS is not None:
            keep, causal = keep_BTS[:, None], False
        elif causal and 1 < num_queries < num_keys:
            keep = torch.ones(num_queries, num_keys, dtype=torch.bool, device=x_BTD.device)
            keep = keep.tril(num_keys - num_queries)
        plainly_causal = False
        if causal and num_queries == num_keys > 1:  # not `bool(...)`: sizes may be symbols, to torch.export and compile
            plainly_causal = True
        heads_BNTK = F.scaled_dot_product_attention(
            q_BNTK, context.keys, context.values, attn_mask=keep, is_causal=plainly_causal
        )
        if sharing > 1:
            heads_BNTK = heads_BNTK.unflatten(2, (sharing, -1)).transpose(1, 2).flatten(0, 1)
        return self.out(heads_BNTK.transpose(1, 2).flatten(2))

    def read(self, x_BTD: Tensor, context_BSD: Tensor) -> Tensor:
        """What `forward` gives for all keys and values of a context [B,S,D'] that no other call will ask for.

        In training on a CPU, where few queries read a long context, keys and values aren't made at all: a query is
        turned by its head's key matrix and compared with the context itself, and what it then reads there is turned
        by the head's value matrix. The same products in another order; the keys' bias moves no softmax.
        """
        if not self._reads_directly(x_BTD, context_BSD):
            return self(x_BTD, self.keys_values(context_BSD))
        rows, num_queries = x_BTD.shape[:2]
        q_BNTK = self._split_heads(self.q(x_BTD))
        scale = q_BNTK.shape[3] ** -0.5
        keys_NKC, values_NKC = self.kv.weight.unflatten(0, (2, self.num_heads, -1)).unbind()
        asked_NXC = q_BNTK.transpose(0, 1).flatten(1, 2) @ (keys_NKC * scale)  # X: rows x queries
        asked_BYC = asked_NXC.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)  # Y: heads x queries
        seen_BYS = (asked_BYC @ context_BSD.transpose(1, 2)).softmax(dim=-1)
        read_NXC = (seen_BYS @ context_BSD).unflatten(1, (-1, num_queries)).transpose(0, 1).flatten(1, 2)
        heads_NXK = read_NXC @ values_NKC.transpose(1, 2)
        heads_BTD = heads_NXK.unflatten(1, (rows, -1)).permute(1, 2, 0, 3).flatten(2)
        return self.out(heads_BTD + self.kv.bias[heads_BTD.shape[2] :])

    def _reads_directly(self, x_BTD: Tensor, context_BSD: Tensor) -> bool:
        if x_BTD.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if self.norm_k is not None or type(self.kv) is not nn.Linear or len(x_BTD) != len(context_BSD):
            return False
        queries, width, keys, context_width = x_BTD.shape[1], x_BTD.shape[2], *context_BSD.shape[1:]
        making = 2 * keys * context_width * width
        directly = 2 * queries * context_width * (width + self.num_heads * keys)
        return making >= WORTH_IT and directly < SAVES * (making + 2 * queries * keys * width)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
