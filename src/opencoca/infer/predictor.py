"""The Predictor: pictures and words in, captions, probabilities and embeddings out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from opencoca.config import Config
from opencoca.config_tree import not_default
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError, DataError
from opencoca.infer import captioning, groups, heads, likelihood, stream, zeroshot
from opencoca.infer.calibration import Calibration, fit
from opencoca.infer.captioning import Caption, Described, GenerationChanges
from opencoca.infer.probe import Probe
from opencoca.infer.search import OnStep
from opencoca.infer.stream import OnBad, Pictures, Squares, one_each
from opencoca.infer.zeroshot import ZeroShot, ZeroShotOptions
from opencoca.model.coca import CoCa
from opencoca.types import ImageFeatures


class Predictor:
    """A trained CoCa with its tokenizer and preprocessing.

    Pictures are paths, file contents or open files, `PIL.Image`s, uint8 arrays [H,W], [H,W,1], [H,W,3], [H,W,4] or
    uint8 tensors [C,H,W], one or many, in any iterable; results have one row per picture. At most `batch_size`
    pictures, texts or beams pass through the model at once (by default 64, and 256 on a GPU), so memory doesn't grow
    with their number. Several threads may use one Predictor: it keeps no state, and changes none of torch's.
    """

    def __init__(self, model: CoCa, tokenizer: Tokenizer, config: Config, batch_size: int | None = None) -> None:
        if tokenizer.vocab_size != model.config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model {model.config.text.vocab_size}: "
                "they belong to different models; restore tokenizer.json"
            )
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be at least 1")
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self.batch_size = batch_size or (64 if self.device.type == "cpu" else 256)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.log_scale.device

    @property
    def scale(self) -> float:
        """The trained 1/temperature of similarities."""
        return float(self.model.log_scale.detach().float().exp())

    def fingerprint(self) -> str:
        """sha256 of all that a result depends on besides the input: weights, tokenizer and configuration.

        Of the configuration, fields that have their default don't count: so a new one changes no older fingerprint.
        """
        settings = {"model": not_default(self.config.model), "pixels": not_default(self.config.pixels)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=dataclasses.asdict).encode())
        digest.update(self.tokenizer.fingerprint.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # --- captions and likelihoods -------------------------------------------------------------------------------

    def caption(
        self, images: Pictures, *, prompt: str | Sequence[str] = "", **changes: Unpack[GenerationChanges]
    ) -> list[str]:
        """One caption per picture, made as `config.generation` says where `changes` don't (see `GenerationConfig`).

        `prompt` is how the captions begin, the same for all or one each. The same picture, seed and options give the
        same caption whatever else is in the call.

        Raises: DataError for a picture that can't be read; ConfigError for an unknown option (with its repair), options
          that contradict each other, or a prompt that leaves no room for a caption.
        """
        described = captioning.describe(self, images, prompt, changes, want_match=False)
        return [one.captions[0].text for one in described]

    def captions(
        self,
        images: Pictures,
        *,
        prompt: str | Sequence[str] = "",
        num_captions: int = 1,
        **changes: Unpack[GenerationChanges],
    ) -> list[list[Caption]]:
        """Up to `num_captions` captions per picture, the best first, with log-probability and match; see `caption`."""
        return [one.captions for one in self.describe(images, prompt=prompt, num_captions=num_captions, **changes)]

    def describe(
        self,
        images: Pictures,
        *,
        prompt: str | Sequence[str] = "",
        num_captions: int = 1,
        on_bad: OnBad | None = None,
        **changes: Unpack[GenerationChanges],
    ) -> Iterator[Described]:
        """Each picture as it was given, its embedding and its captions, from one pass of the encoder.

        An iterator that works batch by batch, so that pictures may come without end. With `on_bad`, it is called with
        each picture that can't be read, which is left out. See `caption`.
        """
        return captioning.describe(self, images, prompt, changes, num_captions, on_bad)

    def caption_features(
        self,
        features: ImageFeatures,
        *,
        prompt: str | Sequence[str] = "",
        num_captions: int = 1,
        keys: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        **changes: Unpack[GenerationChanges],
    ) -> list[list[Caption]]:
        """`captions` of pictures that are encoded already; `keys` seed the sampling of each (by default 0, 1, ...).

        `on_step` is called after each step with the row of every picture that isn't done, and the ids of the caption
        that leads at the moment.
        """
        return captioning.of_features(self, features, prompt, changes, num_captions, keys, on_step)

    def answer(
        self, images: Pictures, questions: str | Sequence[str], **changes: Unpack[GenerationChanges]
    ) -> list[str]:
        """One answer per picture, to one question for all or to one each.

        A model with a head for questions (`coca vqa`) chooses among that head's answers. Any other goes on with the
        caption "question: ... answer:", as does every model where `changes` say how to generate: without training on
        questions that is no more than captioning with a prompt, a few words that are often not what was asked.
        """
        if not changes and any(head.reads == "decoder" and head.pictures == 1 for head in self.model.config.heads):
            head = heads.head_for(self, "decoder", pictures=1)
            return [head.labels[best] for best in self.judge(images, questions, head=head.name).argmax(dim=1).tolist()]
        return captioning.answer(self, images, questions, changes)

    def judge(
        self, images: Pictures | groups.Groups, questions: str | Sequence[str], *, head: str | None = None
    ) -> Tensor:
        """Probabilities float32 [I,L] of the answers that a head for questions knows (its `HeadConfig.labels`).

        A head for two pictures takes pairs, [(left, right), ...]. By default it is the last one that takes as many.

        Raises: ConfigError where the model has no such head; DataError where pairs and single pictures are mixed.
        """
        given = groups.counted(images)
        chosen = heads.head_for(self, "decoder", head, given.pictures)
        per = "groups of pictures" if given.grouped else "pictures"
        question_at = one_each(questions, given.images, "questions", lambda text: text, per)
        parts = [torch.empty(0, len(chosen.labels))]
        for places, tokens in groups.encoded(self, given):
            parts.append(heads.answer_logits(self, chosen, tokens, [question_at(place) for place in places]))
        return torch.cat(parts).softmax(dim=-1)

    def score(self, images: Pictures, texts: str | Sequence[str]) -> Tensor:
        """Exact log p(text | image) in nats, float64 [I], of one text for all pictures or one each.

        Raises: DataError for another number of texts, or a text that the context has no room for.
        """
        text_at = one_each(texts, images, "texts", lambda text: likelihood.encode_whole(self, text))
        scores: list[float] = []
        for batch in self.squares(images):
            ids = [text_at(place) for place in batch.places]
            scores += likelihood.likelihoods(self, self.encode_squares(batch.squares).tokens, ids)
        return torch.tensor(scores, dtype=torch.float64)

    def score_matrix(self, images: Pictures, texts: Sequence[str]) -> Tensor:
        """Exact log p(text | image) in nats, float64 [I,U], of every text for every picture, each encoded once."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [self.score_features(features, texts) for features in self._encoded(images)]
        return torch.cat(parts) if parts else torch.empty(0, len(texts), dtype=torch.float64)

    def score_features(self, features: ImageFeatures, texts: Sequence[str]) -> Tensor:
        """`score_matrix` of pictures that are encoded already."""
        return likelihood.likelihood_matrix(self, features.tokens, texts)

    # --- labels -------------------------------------------------------------------------------------------------

    def classify(self, images: Pictures, labels: Sequence[str], **options: Unpack[ZeroShotOptions]) -> Tensor:
        """Zero-shot probabilities float32 [I,L] of the labels, or [I,L+1] with the option `unknown`.

        They are the softmax over the labels' similarities at the trained temperature: the probability of each label if
        one of them is the picture's caption. `fit_calibration` makes them honest for the pictures at hand. For the
        options (templates, unknown, multi_label, method, calibration) see `ZeroShotOptions`.

        Raises: DataError for labels that are repeated or empty, or templates without {}.
        """
        zero_shot = self.zero_shot(labels, **options)
        parts = [zero_shot.probabilities(features) for features in self._encoded(images)]
        return torch.cat(parts) if parts else torch.empty(0, len(zero_shot.columns))

    def recognise(self, images: Pictures, *, head: str | None = None) -> Tensor:
        """Probabilities float32 [I,L] of the labels that the model's own head knows (its `HeadConfig.labels`).

        Raises: ConfigError where the model has no head for labels (`coca recognise` trains one).
        """
        chosen = heads.head_for(self, "encoder", head, pictures=1)
        parts = [heads.label_logits(self, chosen, batch.squares) for batch in self.squares(images)]
        return torch.cat([torch.empty(0, len(chosen.labels)), *parts]).softmax(dim=-1)

    def zero_shot(self, labels: Sequence[str], **options: Unpack[ZeroShotOptions]) -> ZeroShot:
        """The labels made ready once, to classify encoded pictures batch by batch; see `classify`."""
        return ZeroShot(self, labels, **options)

    def fit_calibration(
        self,
        images: Pictures,
        labels: Sequence[str],
        truths: Sequence[str | Sequence[str] | None],
        **options: Unpack[ZeroShotOptions],
    ) -> Calibration:
        """The temperature, and with a neutral text its bias, that fit a few labelled pictures best, for `classify`.

        It minimises the mean negative log-likelihood of the truths: a label, None for none of them, or with multi_label
        a list of labels. Use it with the labels, templates and options that it was fitted with.

        Raises: DataError for a truth that is no label.
        """
        zero_shot = self.zero_shot(labels, **options)
        targets = zero_shot.targets(truths)
        parts = [zero_shot.logits(features) for features in self._encoded(images)]
        if sum(map(len, parts)) != len(targets):
            raise DataError(f"there are {len(targets)} truths for {sum(map(len, parts))} pictures; give one each")
        return fit(
            torch.cat(parts) if parts else torch.empty(0, targets.shape[1]),
            targets,
            dataclasses.replace(zero_shot.uncalibrated, model=self.fingerprint()),
        )

    def fit_probe(
        self, images: Pictures, labels: Sequence[str], *, templates: str | Sequence[str] | None = ("{}",)
    ) -> Probe:
        """A probe fitted on a few pictures, one label each, with the labels' words as a prior; see `Probe.fit`.

        With templates None the words don't count: for labels that say nothing ("type A").
        """
        prior = None if templates is None else self.embed_labels(sorted(set(labels)), templates)
        return Probe.fit(self.embed_images(images), labels, prior=prior, scale=self.scale, model=self.fingerprint())

    def label_probabilities(self, images: Tensor, labels: Tensor) -> Tensor:
        """Zero-shot probabilities [I,L] of embedded labels [L,E] for embedded images [I,E], all on the CPU."""
        return (self.scale * images @ labels.T).softmax(dim=-1)

    def embed_labels(self, labels: Sequence[str], templates: str | Sequence[str] = ("{}",)) -> Tensor:
        """Unit-norm embeddings [L,E] of labels, averaged over templates."""
        sentences = zeroshot.sentences(zeroshot.checked_labels(labels), zeroshot.checked_templates(templates))
        return zeroshot.averaged(self, sentences)

    # --- embeddings ---------------------------------------------------------------------------------------------

    def embed_images(self, images: Pictures) -> Tensor:
        """Unit-norm embeddings, float32 [I,E], on the CPU."""
        parts = [features.embed.float().cpu() for features in self._encoded(images)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Unit-norm embeddings, float32 [U,E], on the CPU; a text beyond the context loses its end."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = []
        for first in range(0, len(texts), self.batch_size):
            some = texts[first : first + self.batch_size]
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
    def encode_squares(self, squares: np.ndarray) -> ImageFeatures:
        """Features of one batch of squares uint8 [B,H,W,3] at the model's size, as `squares` makes them."""
        pixels_BCHW = stream.to_input(squares, self.config.pixels, self.device)
        return self.model.encode_image(pixels_BCHW.to(next(self.model.parameters()).dtype))

    def squares(self, images: Pictures, on_bad: OnBad | None = None) -> Iterator[Squares]:
        """Batches of pictures made ready for `encode_squares`, the next one read while you work on this one."""
        size_px = self.config.model.vision.image_size_px
        return stream.squares(images, size_px, self.config.pixels, self.batch_size, on_bad)

    def _encoded(self, images: Pictures) -> Iterator[ImageFeatures]:
        return (self.encode_squares(batch.squares) for batch in self.squares(images))
