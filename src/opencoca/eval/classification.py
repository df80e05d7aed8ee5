"""Zero-shot classification of labelled pictures, with the measures that CLIP_benchmark reports."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.eval.embed import embed_labels, embed_pictures
from opencoca.eval.labelled import Labelled, open_labelled
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.statistics import digest
from opencoca.infer.predictor import Predictor
from opencoca.ranking import top_k

HARDEST = 10  # classes that are named because fewest of their pictures are found


class ZeroShotClassification:
    """Every picture among all classes: the class whose sentences, averaged, are nearest to it.

    Source: CLIP_benchmark's zeroshot_classification: unit-norm embeddings of all templates are averaged and made
    unit-norm again; mean_per_class_recall is the mean over the classes that have pictures.
    """

    def __init__(self, name: str, pictures: Labelled, options: Options) -> None:
        self.name, self._pictures, self._options = name, pictures.spread(options.limit), options
        self.key = digest([name, self._pictures.stamp, self._pictures.digest, self._pictures.templates])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, cache = time.perf_counter(), self._pictures, self._options.cache
        embedded = embed_pictures(predictor, pictures.read, pictures.ids, cache, pictures.stamp)
        skipped = [*pictures.skipped, *embedded.skipped]
        if not embedded.places:
            raise DataError(f"{self.name}: none of {len(pictures)} pictures can be read; {embedded.skipped[0][1]}")
        labels = embed_labels(predictor, pictures.names, pictures.templates, cache)
        _, best = top_k(embedded.embeds, labels, k=min(5, len(labels)))
        truths = torch.tensor([pictures.truths[place] for place in embedded.places])
        figures, per_sample = figures_of(best, truths)
        facts = {
            "split_digest": pictures.digest,
            "samples": len(embedded.places),
            "classes": len(pictures.names),
            "chance": 1 / len(pictures.names),
            "templates": list(pictures.templates),
            "template_source": pictures.template_source,
            "hardest_classes": _hardest(best[:, 0], truths, pictures),
            "skipped": skipped_facts(skipped),
            "seconds": round(time.perf_counter() - began, 2),
        }
        ids = [pictures.ids[place] for place in embedded.places]
        return EvaluationResult(self.name, figures, "acc1", per_sample, ids, facts)


def figures_of(best: Tensor, truths: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
    """acc1, acc5 (with more than 5 classes) and mean_per_class_recall, and what each sample gives to them.

    best [I,k] are the classes of each picture, the best first. A sample's part in mean_per_class_recall is weighed by
    how rare its class is, so that the mean over samples is the figure.
    """
    right = best == truths[:, None]
    first = right[:, 0].double()
    per_sample = {"acc1": first}
    if best.shape[1] >= 5:
        per_sample["acc5"] = right[:, :5].any(dim=1).double()
    present, of_class, counts = truths.unique(return_inverse=True, return_counts=True)
    per_sample["mean_per_class_recall"] = first * len(truths) / (len(present) * counts[of_class])
    return {name: float(values.mean()) for name, values in per_sample.items()}, per_sample


def clip_benchmark(result: EvaluationResult, model: str) -> dict[str, Any]:
    """The result as CLIP_benchmark writes its JSON files."""
    names = {"i2t_recall": "text_retrieval_recall", "t2i_recall": "image_retrieval_recall"}
    metrics = {}
    for key, value in result.figures.items():
        base, at, k = key.partition("@")
        metrics[f"{names[base]}@{k}" if at and base in names else key] = value
    dataset, _, task = result.name.partition("/")
    tasks = {"zeroshot": "zeroshot_classification", "retrieval": "zeroshot_retrieval", "captions": "captioning"}
    return {"dataset": dataset, "model": model, "task": tasks.get(task, task), "metrics": metrics, "language": "en"}


def make(name: str, data: Data, options: Options) -> ZeroShotClassification:
    """The evaluation of labelled pictures at `--data DATASET=PATH`."""
    return ZeroShotClassification(name, open_labelled(data[name.partition("/")[0]].path), options)


def make_variant(name: str, data: Data, options: Options) -> ZeroShotClassification:
    """ImageNet or a variant: its classes are those with a folder; names and templates may come from `--data imagenet`.

    Differs: classes of ObjectNet that mean several of ImageNet's have all their names averaged; others take the best.
    """
    like = data["imagenet"].path if "imagenet" in data else None
    return ZeroShotClassification(name, open_labelled(data[name.partition("/")[0]].path, like), options)


def _hardest(predicted: Tensor, truths: Tensor, pictures: Labelled) -> list[dict[str, Any]]:
    present, of_class, counts = truths.unique(return_inverse=True, return_counts=True)
    found = torch.zeros(len(present)).index_add_(0, of_class, (predicted == truths).float()) / counts
    rows = []
    for i in found.argsort(stable=True)[:HARDEST].tolist():
        wrong = predicted[(truths == present[i]) & (predicted != truths)]
        taken_for = pictures.names[int(wrong.mode().values)][0] if len(wrong) else None
        name = pictures.names[int(present[i])][0]
        rows.append({"class": name, "recall": float(found[i]), "pictures": int(counts[i]), "taken_for": taken_for})
    return rows
