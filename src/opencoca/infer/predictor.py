"""The Predictor: pictures and words in, captions, probabilities and embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opencoca.config import Config
from opencoca.data.pixels import normalise, open_picture, to_square
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError, DataError
from opencoca.infer.generate import Generated, greedy, n_best
from opencoca.model.coca import CoCa
from opencoca.types import ImageFeatures

MATCH_WEIGHT = 0.1  # chosen on OpenMoji's val list (docs/LOG.md)

Picture = str | Path | bytes | Image.Image | np.ndarray
Pictures = Picture | Sequence[Picture]


class Predictor:
    """A trained CoCa with its tokenizer and preprocessing.

    Pictures are paths, file contents, `PIL.Image`s or uint8 arrays [H,W,3], one or many; results have one row per
    picture. They pass through the model `batch_size` at a time, so memory doesn't grow with their number.
    """

    def __init__(self, model: CoCa, tokenizer: Tokenizer, config: Config, batch_size: int = 64) -> None:
        if tokenizer.vocab_size != model.config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model {model.config.text.vocab_size}: "
                "they belong to different models; restore tokenizer.json"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be at least 1")
        self.model, self.tokenizer, self.config, self.batch_size = model.eval(), tokenizer, config, batch_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.log_scale.device

    def caption(
        self,
        images: Pictures,
        *,
        beams: int = 8,
        max_tokens: int = 32,
        length_penalty: float = 1.0,
        match_weight: float = MATCH_WEIGHT,
    ) -> list[str]:
        """One caption per picture; see `caption_features` for the options.

        Raises: DataError for a picture that can't be read; ConfigError for beams or max_tokens below 1.
        """
        captions: list[str] = []
        for features in self._encoded(images):
            generated = self.caption_features(
                features,
                beams=beams,
                max_tokens=max_tokens,
                length_penalty=length_penalty,
                match_weight=match_weight,
            )
            captions += [caption for caption, _ in generated]
        return captions

    def caption_features(
        self,
        features: ImageFeatures,
        *,
        beams: int = 8,
        max_tokens: int = 32,
        length_penalty: float = 1.0,
        match_weight: float = MATCH_WEIGHT,
    ) -> list[tuple[str, Generated]]:
        """Captions of pictures that are encoded already: (text, ids with log-probability) each.

        Beam search proposes `beams` captions (1 is greedy) of up to `max_tokens` tokens, start and end not counted,
        and ranks them by log-probability / length ** length_penalty. To this, `match_weight` times the similarity of
        picture and caption at the trained temperature is added, so that both halves of the model have their say; with
        0 the captioner decides alone.
        """
        if beams < 1 or max_tokens < 1:
            raise ConfigError(f"beams {beams} and max_tokens {max_tokens} must be at least 1")
        if beams > self.tokenizer.vocab_size // 2:
            raise ConfigError(
                f"beams {beams} is more than half the vocabulary of {self.tokenizer.vocab_size}; take fewer"
            )
        special = self.tokenizer.special
        if beams == 1:
            proposed = [[one] for one in greedy(self.model, features.tokens, special, max_tokens)]
        else:
            proposed = n_best(self.model, features.tokens, special, max_tokens, beams, length_penalty)
        texts = [[self.tokenizer.decode(one.ids).strip() for one in captions] for captions in proposed]
        if match_weight == 0 or beams == 1:
            return [(some[0], captions[0]) for some, captions in zip(texts, proposed, strict=True)]
        embeds = self.embed_texts([text for some in texts for text in some])
        scale = self.model.log_scale.detach().exp().cpu()
        chosen, first = [], 0
        for some, captions, image in zip(texts, proposed, features.embed.float().cpu(), strict=True):
            matches = scale * embeds[first : first + len(some)] @ image
            first += len(some)
            fluent = torch.tensor([one.log_prob / (len(one.ids) + 1) ** length_penalty for one in captions])
            best = int((fluent + match_weight * matches).argmax())
            chosen.append((some[best], captions[best]))
        return chosen

    def classify(self, images: Pictures, labels: Sequence[str], *, templates: Sequence[str] = ("{}",)) -> Tensor:
        """Zero-shot probabilities [I,L] of the labels, softmax over labels at the trained temperature.

        `templates` are sentences with {} for the label; a label's embeddings over all of them are averaged.
        """
        labels_LE = self.embed_labels(labels, templates)
        return self.label_probabilities(self.embed_images(images), labels_LE)

    def label_probabilities(self, images: Tensor, labels: Tensor) -> Tensor:
        """Zero-shot probabilities [I,L] of embedded labels [L,E] for embedded images [I,E], all on the CPU."""
        return (self.model.log_scale.detach().exp().cpu() * images @ labels.T).softmax(dim=-1)

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Unit-norm embeddings [L,E] of labels, averaged over templates."""
        if isinstance(labels, str) or len(labels) < 1:
            raise DataError("labels must be a list of at least one label, as in ['cat', 'dog']")
        if not all(isinstance(label, str) for label in labels):
            raise DataError(f"labels must be strings, got {list(labels)}")
        repeated = sorted({label for label in labels if list(labels).count(label) > 1})
        if repeated or any(not label.strip() for label in labels):
            raise DataError(f"labels must differ and not be empty; repeated: {repeated}, all: {list(labels)}")
        if isinstance(templates, str):
            raise DataError(f"templates must be a list, as in [{templates!r}]")
        if not templates or any("{}" not in template for template in templates):
            raise DataError(f"every template needs {{}} where the label goes, got {list(templates)}")
        texts = [template.replace("{}", label) for label in labels for template in templates]
        return F.normalize(self.embed_texts(texts).unflatten(0, (len(labels), -1)).mean(dim=1), dim=-1)

    def embed_images(self, images: Pictures) -> Tensor:
        """Unit-norm embeddings, float32 [I,E], on the CPU."""
        parts = [features.embed.float().cpu() for features in self._encoded(images)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Unit-norm embeddings, float32 [U,E], on the CPU; a text beyond the context loses its end."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = []
        for some in _chunks(texts, self.batch_size):
            ids, valid = self.tokenizer.encode_batch(some, self.model.config.text.context_length)
            parts.append(self.model.encode_text(ids.to(self.device), valid.to(self.device)).embed.float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embed_dim)

    def encode_images(self, images: Pictures) -> ImageFeatures:
        """Embeddings [I,E] and decoder tokens [I,Q,D] from one pass of the encoder, on the model's device."""
        parts = list(self._encoded(images))
        if not parts:
            width, queries = self.model.config.embed_dim, self.model.config.pooler.num_queries
            empty = torch.empty(0, queries, width, device=self.device)
            return ImageFeatures(empty[:, 0], empty)
        return ImageFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def _encoded(self, images: Pictures) -> Iterator[ImageFeatures]:
        size_px, pixels = self.config.model.vision.image_size_px, self.config.pixels
        for some in _chunks(_as_list(images), self.batch_size):
            squares = np.stack([to_square(open_picture(image), size_px, pixels.fit) for image in some])
            inputs = torch.from_numpy(normalise(squares, pixels.mean, pixels.std)).to(self.device)
            yield self.model.encode_image(inputs)


def _as_list(images: Pictures) -> list[Picture]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray):
        return [images]
    return list(images)


def _chunks(items: list, size: int) -> Iterable[list]:
    return (items[first : first + size] for first in range(0, len(items), size))
