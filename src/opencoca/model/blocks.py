"""The transformer block that the encoder and both decoder halves share, and the one that only reads the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import Activation
from opencoca.model import gelu_native
from opencoca.model.attention import Attention, KeysValues, KVCache
from opencoca.model.runs import Run


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden_width: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.up = nn.Linear(width, hidden_width)
        self.down = nn.Linear(hidden_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.activation == "gelu" and gelu_native.computes(self.up, x_BTD):
            return self.down(gelu_native.linear_gelu(self.up, x_BTD))
        return self.down(activated(self.up(x_BTD), self.activation))


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation of each value.

    Source of "quick_gelu", x sigmoid(1.702 x): OpenAI's CLIP. "gelu_tanh" is GELU's approximation by tanh, which
    SigLIP's towers were trained with.
    """
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """Pre-norm residual block: self-attention, cross-attention to `context_width` tokens if given, MLP."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        causal: bool,
        context_width: int | None = None,
        qk_norm: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads, qk_norm=qk_norm)
        self.cross_attention = None
        if context_width is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.cross_attention = Attention(width, num_heads, context_width, qk_norm)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(
        self,
        x_BTD: Tensor,
        picture: KeysValues | Tensor | None = None,
        cache: KVCache | None = None,
        keep_BTS: Tensor | None = None,
        runs: Sequence[Run] = (),
    ) -> Tensor:
        """One layer over x [B,T,D], which holds only the next positions where there is a cache of those before.

        `keep_BTS` says which positions each one sees, where that isn't plainly causal. `picture` is tokens [B,Q,D], or
        what `picture_keys_values` made of them for many calls. With `runs`, x is [X,D], runs of rows one after another.
        """
        normed_BTD = self.norm_self(x_BTD)
        if runs:
            assert cache is None and keep_BTS is None
            x_BTD = x_BTD + self.self_attention.within(normed_BTD, runs, causal=self.causal)
        elif cache is None:
            x_BTD = x_BTD + self.self_attention.attend(normed_BTD, normed_BTD, self.causal, keep_BTS)
        else:
            own = cache.append(self.self_attention.keys_values(normed_BTD))
            x_BTD = x_BTD + self.self_attention(normed_BTD, own, causal=self.causal, keep_BTS=keep_BTS)
        if self.cross_attention is not None:
            assert picture is not None
            x_BTD = x_BTD + _read(self.cross_attention, self.norm_cross(x_BTD), picture, runs)
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))

    def picture_keys_values(self, picture_BQD: Tensor) -> KeysValues:
        """Projects a picture's tokens once, for all positions, steps and beams that read it."""
        assert self.cross_attention is not None
        return self.cross_attention.keys_values(picture_BQD)


class PictureBlock(nn.Module):
    """Pre-norm residual block that reads picture tokens through a norm of its own: cross-attention, MLP.

    Source: OpenCLIP's CoCa, whose multimodal layers are a text block and then one of these.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, qk_norm: bool = False, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.norm_cross = nn.LayerNorm(width)
        self.norm_picture = nn.LayerNorm(width)
        self.cross_attention = Attention(width, num_heads, qk_norm=qk_norm)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(self, x_BTD: Tensor, picture: KeysValues | Tensor, runs: Sequence[Run] = ()) -> Tensor:
        """One layer over x, as in `Block`; every position reads the picture, and none another position."""
        if isinstance(picture, Tensor):
            picture = self.norm_picture(picture)
        x_BTD = x_BTD + _read(self.cross_attention, self.norm_cross(x_BTD), picture, runs)
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))

    def picture_keys_values(self, picture_BQD: Tensor) -> KeysValues:
        """Projects a picture's tokens once, for all positions, steps and beams that read it."""
        return self.cross_attention.keys_values(self.norm_picture(picture_BQD))


def _read(attention: Attention, x_BTD: Tensor, picture: KeysValues | Tensor, runs: Sequence[Run]) -> Tensor:
    if isinstance(picture, Tensor):
        return attention.read(x_BTD, picture, runs)
    assert not runs, "keys and values are for captions of one length"
    return attention(x_BTD, picture)
