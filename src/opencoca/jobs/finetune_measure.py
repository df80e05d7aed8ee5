"""What a fine-tuning is judged by: figures before and after, the collapse of captions, and weights in between."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError
from opencoca.eval.metrics import bleu, cider
from opencoca.eval.suite import caption_all
from opencoca.infer.predictor import Predictor
from opencoca.jobs.finetune_data import Held
from opencoca.losses import contrastive_loss
from opencoca.model.coca import CoCa
from opencoca.ranking import ranks_of_targets, recall_at

RECALLS = ("i2t_recall@1", "i2t_recall@5", "t2i_recall@1", "t2i_recall@5")
UNLEARNT = 0.25  # share of the recall on untouched data whose loss is worth a warning
COLLAPSED = 0.5  # share of one caption from which captions say nothing of their pictures


class Measured(NamedTuple):
    """Figures by name, a caption for each picture (greedy), and the embeddings of pictures and of `Held.texts`.

    ranks: 0-based, of each picture's best right caption ("i2t") and of each caption's best right picture ("t2i").
    """

    figures: dict[str, float]
    captions: list[str]
    image_embeds: Tensor
    text_embeds: Tensor
    ranks: dict[str, Tensor]


def measure(predictor: Predictor, held: Held, captions: bool = True) -> Measured:
    """Retrieval among the held-out pictures and their different captions, CIDEr-D and BLEU-4 of greedy captions.

    Whatever caption a picture shares with others is right for each of them, and each of them for it.
    """
    features = predictor.encode_images(held.pictures)
    images, texts = features.embed.float().cpu(), predictor.embed_texts(held.texts)
    place = {text: i for i, text in enumerate(held.texts)}
    texts_of = [sorted({place[text] for text in own}) for own in held.captions]
    images_of: list[list[int]] = [[] for _ in place]
    for image, own in enumerate(texts_of):
        for text in own:
            images_of[text].append(image)
    ranks = {"i2t": ranks_of_targets(images, texts, texts_of), "t2i": ranks_of_targets(texts, images, images_of)}
    figures = {f"{way}_recall@{k}": recall_at(ranks[way], k) for way in ranks for k in (1, 5)}
    said: list[str] = []
    if captions:
        said = caption_all(predictor, features, beams=1)
        references = [list(own) for own in held.captions]
        figures |= {"cider_d": cider(said, references).total, "bleu_4": bleu(said, references)[3].total}
    return Measured(figures, said, images, texts, ranks)


def mean_recall(figures: Mapping[str, float]) -> float:
    """One figure of retrieval: the mean of R@1 and R@5, both ways."""
    return sum(figures[name] for name in RECALLS) / len(RECALLS)


def collapse(captions: Sequence[str], held: Held) -> str | None:
    """A warning where one caption stands under so many pictures that it can't be of them; None where all is well."""
    caption, count = Counter(captions).most_common(1)[0]
    usual = Counter(text for own in held.captions for text in own).most_common(1)[0][1]
    if count <= max(1, COLLAPSED * len(captions)) or count <= 2 * usual:
        return None
    return (
        f"{count} of {len(captions)} held-out pictures get the same caption, {caption!r}: the captioner has collapsed; "
        "lower the rate (--rate), train for fewer --epochs, or give captions that differ"
    )


class HeldOutEvaluation:
    """`measure` as the training loop runs it; says so when captions collapse."""

    name = "val"

    def __init__(self, held: Held, tokenizer: Tokenizer, config: Config, say: Callable[[str], None]) -> None:
        self._held, self._tokenizer, self._config, self._say = held, tokenizer, config, say

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        """Yields the figures."""
        measured = measure(Predictor(model, self._tokenizer, self._config), self._held)
        warning = collapse(measured.captions, self._held)
        if warning:
            self._say(f"warning: {warning}")
        yield from measured.figures.items()


def fitted_scale(predictor: Predictor, some: Held, most: float = 0.0) -> float:
    """The scale (1 / temperature) with the least contrastive loss on these pictures, at most `most` or the model's own.

    A model is sure of itself on pictures like those that it learnt from. On others, the loss at that scale is a
    multiple of what guessing costs, and the first steps unlearn more than all the later ones teach.
    """
    first = {captions[0]: i for i, captions in reversed(list(enumerate(some.captions)))}
    images = predictor.encode_images(some.pictures[list(first.values())]).embed.float().cpu()
    texts = predictor.embed_texts(list(first)).float().cpu()
    scales = torch.logspace(0.0, math.log10(max(most or predictor.scale, 1.0)), 50)
    losses = [contrastive_loss(images, texts, images, texts, scale[None]).item() for scale in scales]
    return scales[losses.index(min(losses))].item()


def interpolated(original: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """alpha * tuned + (1 - alpha) * original, name by name; at 0 and 1 exactly the one or the other.

    Source: WiSE-FT (Wortsman et al. 2022), equation 1.

    Raises: ConfigError for an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"--wise {alpha:g} must be from 0 (the original weights) to 1 (the fine-tuned ones)")
    with torch.no_grad():
        return {
            name: tensor.clone() if alpha == 1 else alpha * tensor + (1 - alpha) * original[name]
            for name, tensor in tuned.items()
        }


def best_alpha(before: Mapping[str, float], by_alpha: Mapping[float, Mapping[str, float]]) -> float:
    """Of several alphas the one whose captions are best (CIDEr-D) of those that find no less than the original did.

    Both on the held-out pictures, finding as `mean_recall`. Where each of them finds less, it is the one that loses
    least.
    """

    def order(alpha: float) -> tuple[float, float]:
        lost = min(0.0, mean_recall(by_alpha[alpha]) - mean_recall(before))
        return round(lost, 9), by_alpha[alpha]["cider_d"]

    return max(by_alpha, key=order)


def unlearnt(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """A warning where much of what was found of the untouched data no longer is; None where all is well."""
    if "keep" not in after or after["keep"] >= (1 - UNLEARNT) * before["keep"]:
        return None
    return (
        f"on untouched data the mean of R@1 and R@5 fell from {before['keep']:.1%} to {after['keep']:.1%}; "
        "a smaller --wise keeps more of it"
    )
