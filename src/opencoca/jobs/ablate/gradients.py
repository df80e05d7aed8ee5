"""How far the gradients of the two objectives agree, on the parameters that both of them train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from opencoca.config import Config
from opencoca.data.pixels import normalised
from opencoca.model.coca import CoCa
from opencoca.train.task import Pretraining
from opencoca.types import Batch

TOWERS = {"encoder": "encoder.", "pooler": "generative_pooler.", "text": "unimodal."}


def agreement(of_one: Mapping[str, Tensor], of_other: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine and ratio of norms (other to one) of two losses' gradients by parameter name, per tower and over "all".

    Only parameters that both losses reach count; a gradient that is 0 all over, such as captioning's of [CLS], is none.
    """
    shared = {name for name in of_one.keys() & of_other.keys() if of_one[name].any() and of_other[name].any()}
    figures = {}
    for tower, prefix in {**TOWERS, "all": ""}.items():
        names = sorted(name for name in shared if name.startswith(prefix))
        if not names:
            continue
        one, other = (torch.cat([of[name].double().flatten() for name in names]) for of in (of_one, of_other))
        norms = one.norm() * other.norm()
        figures[f"{tower}_cosine"] = float(one @ other / norms) if norms > 0 else 0.0
        figures[f"{tower}_ratio"] = float(other.norm() / one.norm()) if one.norm() > 0 else 0.0
    return figures


class GradientAgreement:
    """An evaluation: the two losses' gradients on one batch that stays the same, each times its weight.

    The batch is the first that training sees, so its pairs are known to the model like any others of training.
    """

    name = "gradients"

    def __init__(self, batch: Batch, config: Config) -> None:
        self._batch = batch._replace(pixels=normalised(batch.pixels, config.pixels))
        self._task = Pretraining(config.model, config.loss)

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        yield from agreement(*self.gradients(model)).items()

    def gradients(self, model: CoCa) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the contrastive and of the captioning loss, by parameter; those that a loss doesn't reach are left out."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            sums, compared = self._task.forward(model, self._batch)
            assert compared is not None
            terms = self._task.means(sums, self._task.counts(self._batch), len(self._batch.keys))
            terms |= self._task.compare(compared.rows, compared.rows, compared.common, 0)
            losses = [self._task.weights[name] * terms[name] for name in ("contrastive", "captioning")]
            found = []
            for loss in losses:
                grads = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
                found.append({name: g for name, g in zip(trained, grads, strict=True) if g is not None})
        return found[0], found[1]
