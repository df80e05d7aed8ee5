"""The axis legend, and the named tuples that pass between the parts.

Axis legend (no letter has two meanings; tensors carry their shape as a suffix, as in `tokens_BPD`):

    B pairs on this rank      G global pairs            F frames            C channels
    H W pixels                P patches                 Q pooler queries    T text positions
    S attended positions      D width                   E joint embedding   N heads
    K head width              M MLP width               V vocabulary        L classes (labels)
    I images in evaluation    U captions in evaluation

Masks are boolean and True means keep: `valid_BT`, `keep_BTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class TextBucket(NamedTuple):
    """Rows first .. last - 1 of a batch, whose captions have at most `length` ids, start and end counted."""

    first: int
    last: int
    length: int


class DecoderDraws(NamedTuple):
    """What training draws for the multimodal decoder, each part None where the configuration draws nothing.

    parallel [B] bool: all tokens of these captions are predicted from the picture alone (`TextConfig.parallel_share`).
    words [B,T-1], uniform: of each caption's positions those with most are read (`TextConfig.token_drop`).
    queries [B,Q], uniform: of a picture's tokens those with most are read (`PoolerConfig.train_queries`).
    """

    parallel: Tensor | None = None
    words: Tensor | None = None
    queries: Tensor | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in self)

    def rows(self, first: int, last: int) -> DecoderDraws:
        """The draws of some rows."""
        return DecoderDraws(*(None if part is None else part[first:last] for part in self))


class Batch(NamedTuple):
    """One batch of image-text pairs, as the loader yields it.

    Shapes: pixels [B,C,H,W] uint8 (`data.pixels.normalised` makes them the model's input) or normalised float;
    ids [B,T] int64, start .. end, padded on the right; valid [B,T] bool, True on real tokens;
    labels [B,2] int64, hashes of the caption and of the picture: pairs that share one are not each other's negatives
    (`losses.group_ids`); keys are the sample ids, for logs and quarantine; buckets cut the rows, which stand in order
    of caption length, so that short ones carry little padding; patch_noise [B,P] float, uniform and drawn from
    (seed, epoch, sample), where training reads only some patches; parallel, word_noise and query_noise, drawn alike,
    are `decoder_draws`; texts [B,K] int64, hashes of the caption and of the picture's other captions, where those count
    (`LossConfig.every_caption`).
    """

    pixels: Tensor
    ids: Tensor
    valid: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    buckets: tuple[TextBucket, ...] = ()
    patch_noise: Tensor | None = None
    parallel: Tensor | None = None
    word_noise: Tensor | None = None
    query_noise: Tensor | None = None
    texts: Tensor | None = None

    @property
    def decoder_draws(self) -> DecoderDraws:
        """What training draws for the multimodal decoder."""
        return DecoderDraws(self.parallel, self.word_noise, self.query_noise)


class ImageFeatures(NamedTuple):
    """What the image encoder and its poolers give: embed [B,E] unit-norm, tokens [B,Q,D] for the decoder."""

    embed: Tensor
    tokens: Tensor


class TextFeatures(NamedTuple):
    """What the unimodal decoder gives: embed [B,E] unit-norm from [CLS], tokens [B,T,D] for the multimodal half."""

    embed: Tensor
    tokens: Tensor


class CoCaOutput(NamedTuple):
    """One forward pass for both losses: unit-norm embeddings [B,E], decoded [B,T-1,D] before the head, scale [1]."""

    image_embed: Tensor
    text_embed: Tensor
    decoded: Tensor
    scale: Tensor


def caption_lengths(valid: Tensor) -> Tensor:
    """Ids of each caption [B], up to the last valid one: CLIP's vocabulary has a word that counts as padding inside."""
    seen = valid.cumsum(1)
    return (valid.shape[1] + 1 - (seen == seen[:, -1:]).sum(1)) * valid.any(1)
