"""Prepared shards of OpenMoji, as `coca quickstart` makes them, as evaluations of a suite."""

from __future__ import annotations

import time

import torch

from opencoca.eval.captioned import Captioned, Captions, Retrieval
from opencoca.eval.embed import embed_pictures
from opencoca.eval.openmoji import attributes
from opencoca.eval.registry import Data, Options, Place
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.statistics import digest
from opencoca.eval.zeroshot import Attribute
from opencoca.infer.predictor import Predictor

SPLIT = "test_pictures"


class AttributeEvaluation:
    """An attribute of each picture that has one label of it, told by prompts whose probabilities are summed."""

    def __init__(self, name: str, pictures: Captioned, attribute: Attribute, options: Options) -> None:
        self.name, self._pictures, self._attribute, self._options = name, pictures, attribute, options
        self.key = digest([name, pictures.stamp, attribute])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, pictures, attribute = time.perf_counter(), self._pictures, self._attribute
        cache = self._options.cache
        embedded = embed_pictures(predictor, pictures.read, pictures.keys, cache, pictures.stamp)
        truths = attribute.truths([pictures.read(place).attributes for place in embedded.places])
        rows = [row for row, truth in enumerate(truths) if truth is not None]
        sentences = [prompt for label in range(len(attribute.labels)) for prompt in attribute.prompts(label)]
        prompts_LXE = predictor.embed_texts(sentences).unflatten(0, (len(attribute.labels), -1))
        similarities_ILX = torch.einsum("ie,lxe->ilx", embedded.embeds[rows], prompts_LXE)
        predicted = (predictor.scale * similarities_ILX).logsumexp(dim=-1).argmax(dim=-1)
        right = (predicted == torch.tensor([truths[row] for row in rows])).double()
        keys = [pictures.keys[embedded.places[row]] for row in rows]
        facts = {
            "split": pictures.split,
            "split_digest": digest([f"{key} {truths[row]}" for key, row in zip(keys, rows, strict=True)]),
            "samples": len(rows),
            "classes": len(attribute.labels),
            "chance": 1 / len(attribute.labels),
            "templates": list(attribute.templates),
            "not_of_this_kind": len(truths) - len(rows),
            "skipped": skipped_facts([*pictures.skipped, *embedded.skipped]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        return EvaluationResult(self.name, {"acc1": float(right.mean())}, "acc1", {"acc1": right}, keys, facts)


def make(name: str, data: Data, options: Options) -> Retrieval | Captions | AttributeEvaluation:
    """openmoji/retrieval, openmoji/captions, openmoji/skin_tone or openmoji/gender, on `--data openmoji=PATH#SPLIT`."""
    path, split = data["openmoji"]
    pictures = Captioned(Place(path, split or SPLIT), options)
    task = name.rpartition("/")[2]
    if task == "retrieval":
        return Retrieval(name, pictures, options)
    if task == "captions":
        return Captions(name, pictures, options)
    attribute = next(one for one in attributes() if one.name == task)
    return AttributeEvaluation(name, pictures, attribute, options)
