"""Controls: what simpler means reach on the same pictures, so that a figure can be judged.

- pixel nearest neighbour: the training picture with the least squared difference lends its caption;
- colour histogram: logistic regression on colour counts, trained on the training split;
- no image: the model captions a blank white picture;
- shuffled images: every caption belongs to another picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from opencoca.eval.held_out import HeldOut
from opencoca.eval.retrieval import retrieval
from opencoca.eval.suite import caption_figures
from opencoca.eval.zeroshot import Attribute, Confusion, confusion
from opencoca.infer.predictor import Predictor


def nearest_neighbours(held_out: HeldOut, train: HeldOut) -> list[int]:
    """For each held-out picture the index of the training picture nearest in pixels."""
    queries, candidates = (torch.from_numpy(h.pictures).flatten(1).float() for h in (held_out, train))
    return torch.cat([torch.cdist(some, candidates).argmin(dim=1) for some in queries.split(64)]).tolist()


def nearest_neighbour_figures(
    held_out: HeldOut, train: HeldOut, attributes: Sequence[Attribute] = ()
) -> dict[str, float]:
    """Captions copied from the nearest training picture; retrieval ranks the split's captions by shared words.

    Words are weighed by how rare they are among the training captions (tf-idf, cosine).
    """
    copied = [train.captions[i] for i in nearest_neighbours(held_out, train)]
    figures = caption_figures(copied, held_out, attributes)
    vectors = tf_idf([*copied, *held_out.captions], train.captions)
    return figures | dict(retrieval(vectors[: len(copied)], vectors[len(copied) :]))


def tf_idf(texts: Sequence[str], corpus: Sequence[str]) -> torch.Tensor:
    """Unit-norm tf-idf vectors of texts, with word rarity from a corpus."""
    seen_in = Counter(word for text in corpus for word in set(_words(text)))
    columns = {word: i for i, word in enumerate(sorted({word for text in texts for word in _words(text)}))}
    vectors = torch.zeros(len(texts), len(columns))
    for row, text in enumerate(texts):
        for word in _words(text):
            vectors[row, columns[word]] += float(np.log((1 + len(corpus)) / (1 + seen_in[word])))
    return F.normalize(vectors, dim=1)


def blank_picture_figures(
    predictor: Predictor, held_out: HeldOut, attributes: Sequence[Attribute] = ()
) -> dict[str, float]:
    """The caption of a blank white picture, for every picture."""
    caption = predictor.caption(np.full_like(held_out.pictures[0], 255))[0]
    return caption_figures([caption] * len(held_out), held_out, attributes)


def shuffled_figures(
    captions: Sequence[str],
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    held_out: HeldOut,
    attributes: Sequence[Attribute] = (),
    seed: int = 0,
) -> dict[str, float]:
    """The model's own captions and embeddings, each handed to another picture of the split."""
    other = another(len(held_out), seed)
    figures = caption_figures([captions[i] for i in other], held_out, attributes)
    return figures | dict(retrieval(image_embeds[other], text_embeds))


def another(count: int, seed: int) -> list[int]:
    """A permutation of range(count) that leaves nothing in place (for count of at least 2): one random cycle."""
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty(count, dtype=int)
    moved[order] = np.roll(order, 1)
    return moved.tolist()


def colour_histogram(held_out: HeldOut, train: HeldOut, attribute: Attribute, bins: int = 8) -> Confusion:
    """Logistic regression on colour counts ([bins]^3 cells, square root), fitted on the training split."""
    labels = len(attribute.labels)

    def labelled(split: HeldOut) -> tuple[torch.Tensor, list[int]]:
        truths = attribute.truths(split.attributes)
        rows = [i for i, truth in enumerate(truths) if truth is not None]
        return _histograms(split.pictures[rows], bins), [truth for truth in truths if truth is not None]

    inputs, targets = labelled(train)
    weights = torch.zeros(inputs.shape[1], labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    truth = torch.tensor(targets)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, truth) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    inputs, targets = labelled(held_out)
    return confusion(targets, (inputs @ weights.detach()).argmax(dim=1).tolist(), labels)


def _histograms(pictures_IHWC: np.ndarray, bins: int) -> torch.Tensor:
    cells = (pictures_IHWC // (256 // bins)).astype(int)
    cells = (cells[..., 0] * bins + cells[..., 1]) * bins + cells[..., 2]
    counts = np.stack([np.bincount(one.ravel(), minlength=bins**3) for one in cells])
    return torch.from_numpy(np.sqrt(counts / cells[0].size)).float()


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()
