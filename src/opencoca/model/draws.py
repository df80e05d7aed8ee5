"""What training draws for the multimodal decoder: captions that it predicts in parallel, and what it leaves out.

All of it is drawn per pair (`types.DecoderDraws`) and concerns no other pair. The unimodal half reads every caption
whole, so that the text embeddings are what they always are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opencoca.config import TextConfig, trained_positions
from opencoca.model.runs import padded
from opencoca.types import DecoderDraws, TextBucket, caption_lengths

if TYPE_CHECKING:
    from opencoca.model.coca import CoCa


def decode(
    model: CoCa,
    picture_BQD: Tensor,
    text_BTD: Tensor,
    valid_BT: Tensor,
    drawn: DecoderDraws,
    buckets: Sequence[TextBucket] = (),
) -> Tensor:
    """`CoCa.decode` [B,T-1,D] as training draws it; text [B,T-1,D], without the last of the T positions of `valid`.

    Where positions are left out, the buckets are read one by one: how many depends on each one's length.

    A caption that is predicted in parallel is read as learned masks, one per position. Differs from CapPa: a mask sees
    those in front of it alone. All of them are constants, so there is nothing to hide from it and nothing to learn from
    the others; but attention to all of them would tell how long the caption is, or how it was padded, unless every
    caption were read as long as the context.
    """
    length = text_BTD.shape[1]
    if drawn.queries is not None:
        read_BK = drawn.queries.topk(model.config.pooler.train_queries, dim=1).indices
        picture_BQD = _picked(picture_BQD, read_BK)
    if drawn.parallel is not None and model.multimodal.mask_TD is not None:
        mask_TD = model.multimodal.mask_TD[:length].to(text_BTD.dtype)
        text_BTD = torch.where(drawn.parallel[:, None, None], mask_TD, text_BTD)
    if drawn.words is None:
        return model.decode(picture_BQD, text_BTD, buckets)
    decoded = [
        _with_words_left_out(model, picture_BQD[a:z], text_BTD[a:z, :n], valid_BT[a:z, : n + 1], drawn.words[a:z])
        for a, z, n in buckets or ((0, *text_BTD.shape[:2]),)
    ]
    return padded(decoded, length)


def _with_words_left_out(
    model: CoCa, picture_BQD: Tensor, text_BTD: Tensor, valid_BT: Tensor, noise_BT: Tensor
) -> Tensor:
    text, length = model.config.text, text_BTD.shape[1]
    # the kept positions in their order, and behind them, where no kept one sees them, some of the others
    order_BT = torch.argsort((~kept(text, valid_BT, noise_BT)).to(torch.uint8), dim=1, stable=True)
    at_BK = order_BT[:, : trained_positions(length, text.token_drop)]
    decoded_BKD = model.decode(picture_BQD, _picked(text_BTD, at_BK))
    decoded_BTD = decoded_BKD.new_zeros(len(decoded_BKD), length, decoded_BKD.shape[2])
    return decoded_BTD.scatter(1, at_BK[..., None].expand_as(decoded_BKD), decoded_BKD)


def kept(config: TextConfig, valid_BT: Tensor, noise_BT: Tensor) -> Tensor:
    """Which of the positions [B,T-1] before each caption's last token are read in training: those with most noise.

    Their number depends on the caption's length alone, so neither padding nor the other captions change anything.
    """
    predicted_B1 = (caption_lengths(valid_BT) - 1).clamp(min=0)[:, None]
    positions_T = torch.arange(valid_BT.shape[1] - 1, device=valid_BT.device)
    noise_BT = noise_BT[:, : len(positions_T)].masked_fill(positions_T >= predicted_B1, -1.0)
    order_BT = torch.argsort(noise_BT, dim=1, descending=True, stable=True)  # stable: ties fall alike everywhere
    rank_BT = torch.empty_like(order_BT).scatter_(1, order_BT, positions_T.expand_as(order_BT))
    return rank_BT < predicted_B1 - (predicted_B1.double() * config.token_drop).floor().long()


def _picked(tokens_BSD: Tensor, at_BK: Tensor) -> Tensor:
    """Some tokens [B,K,D] of each row, each once."""
    return tokens_BSD.gather(1, at_BK[..., None].expand(-1, -1, tokens_BSD.shape[2]))
