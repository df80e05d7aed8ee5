"""Image-text retrieval: R@1, 5 and 10, both ways."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from opencoca.ranking import ranks_of_targets, recall_at


def retrieval(image_embeds: Tensor, text_embeds: Tensor, targets: Tensor | None = None) -> Iterator[tuple[str, float]]:
    """Yields i2t_recall@k and t2i_recall@k as fractions; ties count against the model.

    image_embeds [I,E], text_embeds [U,E]; targets [U] is the picture that each text describes, text i by default.
    """
    if targets is None:
        targets = torch.arange(len(text_embeds))
    texts_of: list[list[int]] = [[] for _ in range(len(image_embeds))]
    for text, image in enumerate(targets.tolist()):
        texts_of[image].append(text)
    i2t = ranks_of_targets(image_embeds, text_embeds, texts_of)
    t2i = ranks_of_targets(text_embeds, image_embeds, targets)
    for direction, ranks in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            yield f"{direction}_recall@{k}", recall_at(ranks, k)
