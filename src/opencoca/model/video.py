"""Clips through a model of pictures: the encoder reads each frame alone, the poolers read all of a clip's tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.model.coca import CoCa
from opencoca.types import ImageFeatures


def encode_video(model: CoCa, pixels_BFCHW: Tensor) -> ImageFeatures:
    """Embeddings [B,E], unit-norm, and decoder tokens [B,Q,D] of clips, normalised pixels [B,F,C,H,W].

    The pretrained generative and contrastive poolers read the tokens of all frames as one long picture. No weight is
    new, so any CoCa does it untrained, and a clip of one frame is a picture. The poolers see a set: the order of the
    frames changes nothing, unless the model has time positions.

    Source: VideoCoCa (arXiv 2212.04979), "attentional poolers".
    """
    return model.pool(space_time(model, frame_tokens(model, pixels_BFCHW)))


def frame_tokens(model: CoCa, pixels_BFCHW: Tensor, patch_noise_BP: Tensor | None = None) -> Tensor:
    """The encoder's tokens [B,F,P,D] of each frame; with `patch_noise`, the same places of all frames are read."""
    frames = pixels_BFCHW.shape[1]
    noise_XP = None if patch_noise_BP is None else patch_noise_BP.repeat_interleave(frames, dim=0)
    return model.encoder(pixels_BFCHW.flatten(0, 1), noise_XP).unflatten(0, (-1, frames))


def space_time(model: CoCa, tokens_BFPD: Tensor) -> Tensor:
    """The tokens [B,S,D], S = F P, of all frames in turn, with the model's time positions if it has any.

    A position is added in units of the token's root mean square: encoders' outputs are 1 in some models and over 10 in
    others, and what is learnt of time must not depend on that.
    """
    if model.time_positions_FD is not None:
        scale_BFP1 = tokens_BFPD.detach().square().mean(dim=-1, keepdim=True).sqrt()
        times_FD = time_positions(model.time_positions_FD, tokens_BFPD.shape[1])
        tokens_BFPD = tokens_BFPD + scale_BFP1 * times_FD[:, None]
    return tokens_BFPD.flatten(1, 2)


def time_positions(trained_FD: Tensor, frames: int) -> Tensor:
    """Positions [F,D] in time for so many frames; another number than the trained one is interpolated."""
    if len(trained_FD) == frames:
        return trained_FD
    wanted_1DF = F.interpolate(trained_FD.T[None].float(), frames, mode="linear", align_corners=False)
    return wanted_1DF[0].T.to(trained_FD.dtype)


def mean_of_frames(embeds_BFE: Tensor) -> Tensor:
    """The unit-norm mean [B,E] of frames' embeddings, which is how the paper finds videos without training."""
    return F.normalize(embeds_BFE.mean(dim=1), dim=-1)


def as_frames(pixels_BXHW: Tensor) -> Tensor:
    """Pixels [B,F,3,H,W] of a batch whose channels are those of all frames in turn, [B,F*3,H,W]."""
    return torch.unflatten(pixels_BXHW, 1, (-1, 3))
