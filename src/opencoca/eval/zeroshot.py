"""Zero-shot classification of an attribute by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Attribute(NamedTuple):
    """A question with a closed list of answers: labels, the words for each, and sentences ({}) to put them into.

    `field` is the sample attribute that holds the true label (a list counts where it has one entry).
    """

    name: str
    field: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    templates: tuple[str, ...]

    def prompts(self, label: int) -> list[str]:
        """One label's sentences."""
        return [template.replace("{}", self.words[label]) for template in self.templates]

    def truths(self, attributes: Sequence[dict]) -> list[int | None]:
        """Each sample's label index, None where the attribute doesn't apply."""
        truths = []
        for sample in attributes:
            value = sample.get(self.field)
            if isinstance(value, list):
                value = value[0] if len(value) == 1 else None
            truths.append(self.labels.index(value) if value in self.labels else None)
        return truths


class Confusion(NamedTuple):
    """counts [L][L], rows the truth and columns the prediction, and accuracy over all rows."""

    counts: list[list[int]]
    accuracy: float


def zero_shot(
    image_embeds: Tensor, prompt_embeds: Tensor, truths: Sequence[int | None], scale: Tensor | float
) -> Confusion:
    """The most probable label of each picture that has a truth.

    A label's probability is the sum of its prompts' probabilities, softmax over all prompts at the trained scale: the
    sentence that fits the rest of the picture decides. Unit-norm embeddings of pictures [I,E] and prompts [L,X,E].
    """
    rows = [row for row, truth in enumerate(truths) if truth is not None]
    similarities_ILX = torch.einsum("ie,lxe->ilx", image_embeds[rows], prompt_embeds)
    predicted = (scale * similarities_ILX).logsumexp(dim=-1).argmax(dim=-1).tolist()
    return confusion([truths[row] for row in rows], predicted, len(prompt_embeds))


def confusion(truths: Sequence[int | None], predicted: Sequence[int], labels: int) -> Confusion:
    """The confusion matrix of two aligned lists of label indices."""
    counts = torch.zeros(labels, labels, dtype=torch.long)
    for truth, guess in zip(truths, predicted, strict=True):
        counts[truth, guess] += 1
    return Confusion(counts.tolist(), counts.diag().sum().item() / max(1, counts.sum().item()))
