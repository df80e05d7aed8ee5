"""CoCa: wiring only. One encoder, two poolers, two decoder halves, one head, one temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import ModelConfig
from opencoca.model import draws
from opencoca.model.attention import KVCache
from opencoca.model.decode_cache import DecodeCache
from opencoca.model.heads import task_heads
from opencoca.model.pooler import AttentionalPooler
from opencoca.model.text import MultimodalDecoder, UnimodalDecoder
from opencoca.model.vit import VisionTransformer
from opencoca.types import CoCaOutput, DecoderDraws, ImageFeatures, TextBucket, TextFeatures

NOTHING_DRAWN = DecoderDraws()


class CoCa(nn.Module):
    """Contrastive Captioner (arXiv 2205.01917, section 3.2).

    Source: Figure 2. [CLS] is stripped before the multimodal half; the poolers map to the text width, so there is
    no further projection into the joint space (the parameter counts of Table 1 leave no room for one), unless the
    configuration wants one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vision, text, pooler = config.vision, config.text, config.pooler
        self.encoder = VisionTransformer(vision)
        heads, shared = pooler.num_heads or text.num_heads, pooler.arrangement == "shared"
        self.generative_pooler = AttentionalPooler(pooler.num_queries + shared, text.width, heads, vision.width)
        self.contrastive_pooler = None
        if not shared:
            contrastive_context = text.width if pooler.arrangement == "cascade" else vision.width
            self.contrastive_pooler = AttentionalPooler(1, text.width, heads, contrastive_context)
        self.unimodal = UnimodalDecoder(text)
        self.multimodal = MultimodalDecoder(text)
        self.head = nn.Linear(text.width, text.vocab_size, bias=False)
        if text.tie_output:
            self.head.weight = self.unimodal.tokens.weight
        self.image_projection = self.text_projection = None
        if config.project_embeds:
            self.image_projection = nn.Linear(text.width, config.embed_dim, bias=False)
            self.text_projection = nn.Linear(text.width, config.embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))
        self.pair_bias = nn.Parameter(torch.empty(1)) if config.pair_bias else None
        self.time_positions_FD = None
        if config.time_positions:
            self.time_positions_FD = nn.Parameter(torch.empty(config.time_positions, vision.width))
        self.tasks = task_heads(config)

    def forward(
        self,
        pixels_BCHW: Tensor,
        ids_BT: Tensor,
        valid_BT: Tensor,
        buckets: Sequence[TextBucket] = (),
        patch_noise_BP: Tensor | None = None,
        drawn: DecoderDraws = NOTHING_DRAWN,
    ) -> CoCaOutput:
        """One pass for both losses; `decoded` [B,T-1,D] stands where the next token is predicted.

        With `buckets`, each run of rows is read at its own length: the same values, without most of the padding,
        where `decoded` holds zeros. `patch_noise` draws the patches that training reads, `drawn` what the multimodal
        half reads; `decoded` means nothing in the positions that are left out (`model.draws.kept`).
        """
        image = self.encode_image(pixels_BCHW, patch_noise_BP)
        text = self.encode_text(ids_BT, valid_BT, buckets)
        words_BTD, predict = text.tokens[:, :-1], [bucket._replace(length=bucket.length - 1) for bucket in buckets]
        if drawn:
            decoded = draws.decode(self, image.tokens, words_BTD, valid_BT, drawn, predict)
        else:
            decoded = self.decode(image.tokens, words_BTD, predict)
        return CoCaOutput(image.embed, text.embed, decoded, self.log_scale.exp())

    def embed_pairs(
        self,
        pixels_BCHW: Tensor,
        ids_BT: Tensor,
        valid_BT: Tensor,
        buckets: Sequence[TextBucket] = (),
        patch_noise_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of pictures and captions, [B,E] each, just as `forward` gives them, without decoding."""
        text_BE = self.encode_text(ids_BT, valid_BT, buckets).embed
        return self.encode_image(pixels_BCHW, patch_noise_BP).embed, text_BE

    def encode_image(self, pixels_BCHW: Tensor, patch_noise_BP: Tensor | None = None) -> ImageFeatures:
        """Embeddings [B,E], unit-norm, and generative tokens [B,Q,D] of normalised pixels [B,C,H,W]."""
        return self.pool(self.encoder(pixels_BCHW, patch_noise_BP))

    def pool(self, patches_BPD: Tensor) -> ImageFeatures:
        """What `encode_image` gives of the encoder's tokens [B,P,D], however many there are (`model.video` has F P)."""
        tokens_BQD = self.generative_pooler(patches_BPD)
        if self.contrastive_pooler is None:
            pooled_BD, tokens_BQD = tokens_BQD[:, 0], tokens_BQD[:, 1:]
        else:
            cascade = self.config.pooler.arrangement == "cascade"
            pooled_BD = self.contrastive_pooler(tokens_BQD if cascade else patches_BPD)[:, 0]
        if self.image_projection is not None:
            pooled_BD = self.image_projection(pooled_BD)
        return ImageFeatures(F.normalize(pooled_BD, dim=-1), tokens_BQD)

    def encode_text(self, ids_BT: Tensor, valid_BT: Tensor, buckets: Sequence[TextBucket] = ()) -> TextFeatures:
        """Embeddings [B,E], unit-norm, and unimodal tokens [B,T,D] of ids [B,T] (start .. end, then padding)."""
        cls_BD, tokens_BTD = self.unimodal(ids_BT, valid_BT, buckets)
        if self.text_projection is not None:
            cls_BD = self.text_projection(cls_BD)
        return TextFeatures(F.normalize(cls_BD, dim=-1), tokens_BTD)

    def decode(self, image_tokens_BQD: Tensor, text_tokens_BTD: Tensor, buckets: Sequence[TextBucket] = ()) -> Tensor:
        """Multimodal outputs [B,T,D], before the head; position t sees text up to t and the whole picture."""
        return self.multimodal(text_tokens_BTD, image_tokens_BQD, buckets)

    def caption_logits(self, decoded_BTD: Tensor) -> Tensor:
        """Next-token logits [B,T,V]; call it only where logits are wanted."""
        return self.head(decoded_BTD)

    def start_decoding(self, image_tokens_BQD: Tensor, capacity: int, beams: int = 1) -> DecodeCache:
        """An empty cache for B * `beams` sequences of up to `capacity` tokens; those of one picture stand together.

        Each picture's keys and values are projected once, and its sequences share them. Sequences that begin alike may
        be one row per picture at first, until `DecodeCache.select_beams` branches them.

        Raises: ValueError for more tokens than there are positions.
        """
        text = self.config.text
        if capacity > text.context_length:
            raise ValueError(f"a capacity of {capacity} tokens is beyond context_length {text.context_length}")
        pictures, head_width = len(image_tokens_BQD), text.width // text.num_heads

        def empty() -> KVCache:
            return KVCache(pictures, text.num_heads, capacity * beams, head_width, like=image_tokens_BQD)

        unimodal = [empty() for _ in self.unimodal.blocks]
        multimodal = [empty() for _ in self.multimodal.blocks]
        return DecodeCache(unimodal, multimodal, self.multimodal.pictures(image_tokens_BQD), pictures)

    def decode_next(self, ids_BT: Tensor, cache: DecodeCache) -> Tensor:
        """Multimodal outputs [B,T,D], before the head, of the next ids [B,T]; the cache moves on by T."""
        if cache.step is not None and ids_BT.shape[1] == 1:
            return cache.step(ids_BT, cache)
        start, keep_BTS = cache.length, cache.extend(*ids_BT.shape)
        text_BTD = self.unimodal.step(ids_BT, cache.unimodal, start, keep_BTS)
        return self.multimodal.step(text_BTD, cache.pictures, cache.multimodal, keep_BTS)

    def decode_step(self, ids_BT: Tensor, cache: DecodeCache) -> Tensor:
        """Logits [B,V] after the last of the next ids [B,T]; the cache moves on by T."""
        return self.head(self.decode_next(ids_BT, cache)[:, -1])

    def decode_ids(self, image_tokens_BQD: Tensor, ids_BT: Tensor) -> Tensor:
        """Multimodal outputs [B,T,D] of ids [B,T], all at once: `decode` where no text embedding is wanted.

        Where there are fewer pictures than texts, each is shared by as many consecutive texts.
        """
        text_BTD = self.unimodal.step(ids_BT, [None] * len(self.unimodal.blocks))
        return self.decode(image_tokens_BQD, text_BTD)
