"""The only attention: self, cross and cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.model import attention_native
from opencoca.model.attention_native import Span, are_few
from opencoca.model.runs import Run, apart, joined, of_rows

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
        pictures = self.keys_BNSK.shape[0]
        if new.keys.shape[0] > pictures:
            new = KeysValues(*(part.unflatten(0, (pictures, -1)).transpose(1, 2).flatten(2, 3) for part in new))
        there = self.grow(new.keys.shape[2])
        end = self.length
        self.keys_BNSK[:, :, there:end] = new.keys
        self.values_BNSK[:, :, there:end] = new.values
        return KeysValues(self.keys_BNSK[:, :, :end], self.values_BNSK[:, :, :end])

    def grow(self, count: int) -> int:
        """Makes the next `count` positions part of the cache, to be written; returns where they begin.

        Raises: ValueError where they don't fit.
        """
        there, capacity = self.length, self.keys_BNSK.shape[2]
        if there + count > capacity:
            raise ValueError(f"the cache holds {capacity} positions, {there + count} were asked for")
        self.length += count
        return there


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
        return self._keys_values(self.kv(context_BSD))

    def _keys_values(self, projected_BSD: Tensor) -> KeysValues:
        keys_BSD, values_BSD = projected_BSD.chunk(2, dim=-1)
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
        return self.out(self._attended(self.q(x_BTD), context, causal, keep_BTS))

    def attend(
        self, x_BTD: Tensor, context_BSD: Tensor, causal: bool = False, keep_BTS: Tensor | None = None
    ) -> Tensor:
        """What `forward` gives for a context that is read once; a row of x that stands alone reads every row of it."""
        q_BTD, kv_BSE = self.q(x_BTD), self.kv(context_BSD)
        if keep_BTS is None and self._in_c(q_BTD, kv_BSE):
            span = Span(len(kv_BSE), q_BTD.shape[1], kv_BSE.shape[1])
            shared = len(q_BTD) == 1 < span.sequences
            if (shared or len(q_BTD) == span.sequences) and are_few([span], causal):
                q_XD = q_BTD.expand(span.sequences, -1, -1).flatten(0, 1)
                heads_XD = attention_native.attend(q_XD, kv_BSE.flatten(0, 1), self.num_heads, [span], causal)
                return self.out(heads_XD).unflatten(0, (span.sequences, span.queries))
        return self.out(self._attended(q_BTD, self._keys_values(kv_BSE), causal, keep_BTS))

    def within(self, x_XD: Tensor, runs: Sequence[Run], causal: bool) -> Tensor:
        """What `forward` gives where each row attends to itself; x [X,D] holds runs of rows one after another."""
        q_XD, kv_XE = self.q(x_XD), self.kv(x_XD)
        if all(run.keep is None for run in runs) and self._in_c(q_XD, kv_XE):
            spans = [Span(run.last - run.first, run.length, run.length) for run in runs]
            if are_few(spans, causal):
                return self.out(attention_native.attend(q_XD, kv_XE, self.num_heads, spans, causal))
        of_runs = zip(apart(q_XD, runs), apart(kv_XE, runs), runs, strict=True)
        heads = [self._attended(q_BTD, self._keys_values(kv), causal, run.keep) for q_BTD, kv, run in of_runs]
        return self.out(joined(heads))

    def _attended(
        self, q_BTD: Tensor, context: KeysValues, causal: bool = False, keep_BTS: Tensor | None = None
    ) -> Tensor:
        """What projected queries [B,T,D] see, all heads beside each other, before `out`."""
        rows = context.keys.shape[0]
        q_BNTK = self._split_heads(q_BTD)
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
            keep = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_BTD.device)
            keep = keep.tril(num_keys - num_queries)
        plainly_causal = False
        if causal and num_queries == num_keys > 1:  # not `bool(...)`: sizes may be symbols, to torch.export and compile
            plainly_causal = True
        heads_BNTK = F.scaled_dot_product_attention(
            q_BNTK, context.keys, context.values, attn_mask=keep, is_causal=plainly_causal
        )
        if sharing > 1:
            heads_BNTK = heads_BNTK.unflatten(2, (sharing, -1)).transpose(1, 2).flatten(0, 1)
        return heads_BNTK.transpose(1, 2).flatten(2)

    def read(self, x_BTD: Tensor, context_BSD: Tensor, runs: Sequence[Run] = ()) -> Tensor:
        """What `forward` gives for all keys and values of a context [B,S,D'] that no other call will ask for.

        With `runs`, x is [X,D], runs of rows one after another, and each row reads its own row of the context.

        In training on a CPU, where few queries read a long context, keys and values aren't made at all: a query is
        turned by its head's key matrix and compared with the context itself, and what it then reads there is turned
        by the head's value matrix. The same products in another order; the keys' bias moves no softmax.
        """
        if self._reads_directly(x_BTD, context_BSD):
            q = self.q(x_BTD)
            if runs:
                return self.out(self._read(q, context_BSD, runs))
            rows, length, _ = q.shape
            read_XD = self._read(q.flatten(0, 1), context_BSD, (Run(0, rows, length),))
            return self.out(read_XD.unflatten(0, (rows, length)))
        if not runs:
            return self.attend(x_BTD, context_BSD)
        q_XD, kv_BSE = self.q(x_BTD), self.kv(context_BSD)
        if self._in_c(q_XD, kv_BSE):
            spans = [Span(run.last - run.first, run.length, kv_BSE.shape[1]) for run in runs]
            if are_few(spans, causal=False):
                read_XD = attention_native.attend(q_XD, kv_BSE.flatten(0, 1), self.num_heads, spans, causal=False)
                return self.out(read_XD)
        parts = zip(apart(q_XD, runs), *(of_rows(part, runs) for part in self._keys_values(kv_BSE)), strict=True)
        heads = [self._attended(q_BTD, KeysValues(keys, values)) for q_BTD, keys, values in parts]
        return self.out(joined(heads))

    def _read(self, q_XD: Tensor, context_BSD: Tensor, runs: Sequence[Run]) -> Tensor:
        """What projected queries [X,D] read without keys and values, all heads beside each other, before `out`."""
        q_NXK = q_XD.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        keys_NKC, values_NKC = self.kv.weight.unflatten(0, (2, self.num_heads, -1)).unbind()
        asked_NXC = q_NXK @ (keys_NKC * q_NXK.shape[2] ** -0.5)
        reads = []
        for asked_NBTC, own_BSC in zip(apart(asked_NXC, runs, dim=1), of_rows(context_BSD, runs), strict=True):
            asked_BYC = asked_NBTC.transpose(0, 1).flatten(1, 2)  # Y: heads x queries
            seen_BYS = (asked_BYC @ own_BSC.transpose(1, 2)).softmax(dim=-1)
            read_BNTC = (seen_BYS @ own_BSC).unflatten(1, (self.num_heads, -1))
            reads.append(read_BNTC.transpose(0, 1).flatten(1, 2))
        heads_NXK = torch.cat(reads, dim=1) @ values_NKC.transpose(1, 2)
        heads_XD = heads_NXK.transpose(0, 1).flatten(1)
        return heads_XD + self.kv.bias[heads_XD.shape[1] :]

    def _in_c(self, q: Tensor, kv: Tensor) -> bool:
        """Whether `attention_native` computes this, if there are few enough positions."""
        return self.norm_q is None and attention_native.attends(q, kv, self.num_heads)

    def _reads_directly(self, x: Tensor, context_BSD: Tensor) -> bool:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if self.norm_k is not None or type(self.kv) is not nn.Linear:
            return False
        rows, keys, context_width = context_BSD.shape
        if x.dim() == 3 and len(x) != rows:  # texts that share a picture
            return False
        width = x.shape[-1]
        positions = x.numel() // width
        making = 2 * rows * keys * context_width * width
        directly = 2 * positions * context_width * (width + self.num_heads * keys)
        return making >= WORTH_IT * rows and directly < SAVES * (making + 2 * positions * keys * width)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
