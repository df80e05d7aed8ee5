"""The evaluations put together: everything that is measured on one held-out split from one pass of the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.eval.held_out import HeldOut
from opencoca.eval.metrics import cider, exact_match
from opencoca.eval.retrieval import retrieval
from opencoca.eval.zeroshot import Attribute, Confusion, zero_shot
from opencoca.infer.predictor import Predictor
from opencoca.model.coca import CoCa
from opencoca.types import ImageFeatures


@dataclass
class SplitResult:
    """What was measured on one split: named figures, the captions, zero-shot confusions, and the embeddings."""

    figures: dict[str, float]
    captions: list[str]
    confusions: dict[str, Confusion]
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor


def evaluate_split(
    predictor: Predictor,
    held_out: HeldOut,
    attributes: Sequence[Attribute] = (),
    beams: int = 8,
    features: ImageFeatures | None = None,
) -> SplitResult:
    """Retrieval both ways, captions against their references, and every zero-shot attribute.

    Candidates are the split's own captions and pictures. `features` spares the encoder pass where it was run before.
    """
    features = features or predictor.encode_images(held_out.pictures)
    images = features.embed.float().cpu()
    texts = predictor.embed_texts(held_out.captions)
    figures = dict(retrieval(images, texts))
    captions = caption_all(predictor, features, beams)
    figures |= caption_figures(captions, held_out, attributes)
    confusions = {}
    for attribute in attributes:
        truths = attribute.truths(held_out.attributes)
        if any(truth is not None for truth in truths):
            prompts = [prompt for label in range(len(attribute.labels)) for prompt in attribute.prompts(label)]
            prompt_embeds = predictor.embed_texts(prompts).unflatten(0, (len(attribute.labels), -1))
            scale = predictor.model.log_scale.detach().exp().cpu()
            confusions[attribute.name] = zero_shot(images, prompt_embeds, truths, scale)
            figures[f"zeroshot_{attribute.name}"] = confusions[attribute.name].accuracy
    return SplitResult(figures, captions, confusions, images, texts)


def caption_all(predictor: Predictor, features: ImageFeatures, beams: int) -> list[str]:
    """Captions of encoded pictures, a batch at a time."""
    captions = []
    size = predictor.batch_size
    for some in zip(features.embed.split(size), features.tokens.split(size), strict=True):
        captions += [best.text for best, *_ in predictor.caption_features(ImageFeatures(*some), beams=beams)]
    return captions


def caption_figures(
    captions: Sequence[str], held_out: HeldOut, attributes: Sequence[Attribute] = ()
) -> dict[str, float]:
    """CIDEr-D, exact match, and for each attribute that applies, how often the caption names the right label's words.

    An attribute counts in captions where its words contain each other's only as longer forms ("medium skin tone" in
    "medium-light skin tone" doesn't), so the longest words found in a caption decide.
    """
    references = [[caption] for caption in held_out.captions]
    figures = {
        "cider_d": cider(captions, references, variant="cider_d").total,
        "exact_match": exact_match(captions, references).total,
    }
    any_truth = [False] * len(captions)
    for attribute in attributes:
        truths = attribute.truths(held_out.attributes)
        named = [
            named_label(caption, attribute.words) == truth
            for caption, truth in zip(captions, truths, strict=True)
            if truth is not None
        ]
        if named:
            figures[f"caption_{attribute.name}"] = sum(named) / len(named)
            any_truth = [one or truth is not None for one, truth in zip(any_truth, truths, strict=True)]
    if any(any_truth):
        bare = [
            says_only(caption, attributes) and not says_only(reference, attributes)
            for caption, reference, counts in zip(captions, held_out.captions, any_truth, strict=True)
            if counts
        ]
        figures["caption_attributes_alone"] = sum(bare) / len(bare)
    return figures


def says_only(caption: str, attributes: Sequence[Attribute]) -> bool:
    """Whether a caption holds words of the attributes' labels and no other word."""
    words = [word.lower() for attribute in attributes for word in attribute.words]
    return all(part.strip() in words for part in caption.lower().split(","))


def named_label(caption: str, words: Sequence[str]) -> int | None:
    """The index of the one label whose words stand in the caption as whole words, None for none or several."""
    spaced = f" {caption.lower().replace(',', ' ,')} "
    found = [i for i, word in enumerate(words) if f" {word.lower()} " in spaced]
    return found[0] if len(found) == 1 else None


class SplitEvaluation:
    """`evaluate_split` as an evaluation that the training loop can run; yields the figures."""

    def __init__(
        self, held_out: HeldOut, tokenizer: Tokenizer, config: Config, attributes: Sequence[Attribute] = ()
    ) -> None:
        self.name = held_out.name
        self._held_out, self._tokenizer, self._config, self._attributes = held_out, tokenizer, config, attributes

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        """Measures the model, with greedy captions."""
        predictor = Predictor(model, self._tokenizer, self._config)
        yield from evaluate_split(predictor, self._held_out, self._attributes, beams=1).figures.items()
