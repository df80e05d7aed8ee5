"""What a trained model reaches on the held-out lists, in what its objectives trained it for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opencoca.data.pixels import open_picture, to_square
from opencoca.data.sources.protocol import Source
from opencoca.errors import DataError
from opencoca.eval.frozen import Split, linear_probe
from opencoca.eval.held_out import HeldOut
from opencoca.eval.openmoji import TONES
from opencoca.eval.retrieval import retrieval
from opencoca.eval.suite import caption_all, caption_figures
from opencoca.eval.zeroshot import Attribute, zero_shot
from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import to_input
from opencoca.jobs.ablate.settings import Setting
from opencoca.losses import contrastive_loss
from opencoca.types import ImageFeatures

BATCH = 100  # pairs that a held-out pair is told apart from in the contrastive loss
GENDERS = ("man", "woman")
STRENGTHS = (1e-4, 1e-3, 1e-2)  # of the probes' penalty, chosen on val


@torch.no_grad()
def measure(
    predictor: Predictor, setting: Setting, lists: Sequence[HeldOut], attributes: Sequence[Attribute]
) -> dict[str, float]:
    """Every figure of every list as LIST/FIGURE, and the summary of each measure as its mean over the lists.

    Captions are greedy. Retrieval is R@1, zero-shot accuracy the mean over the attributes that a list has.
    """
    prompts = {}
    if setting.has_embeddings:
        for attribute in attributes:
            sentences = [text for label in range(len(attribute.labels)) for text in attribute.prompts(label)]
            prompts[attribute.name] = predictor.embed_texts(sentences).unflatten(0, (len(attribute.labels), -1))
    figures: dict[str, float] = {}
    for held_out in lists:
        features = predictor.encode_images(held_out.pictures)
        found: dict[str, float] = {}
        if setting.has_embeddings:
            found |= _matching(predictor, features, held_out, attributes, prompts)
        if setting.has_captions:
            captions = caption_all(predictor, features, beams=1)
            found |= caption_figures(captions, held_out, attributes)
            found["captioning_nats"] = captioning_nats(predictor, features, held_out.captions)
        figures |= {f"{held_out.name}/{name}": value for name, value in found.items()}
    return figures | _summary(figures, [held_out.name for held_out in lists])


def _matching(
    predictor: Predictor,
    features: ImageFeatures,
    held_out: HeldOut,
    attributes: Sequence[Attribute],
    prompts: dict[str, Tensor],
) -> dict[str, float]:
    images, texts = features.embed.float().cpu(), predictor.embed_texts(held_out.captions)
    found = dict(retrieval(images, texts))
    found["retrieval"] = (found["i2t_recall@1"] + found["t2i_recall@1"]) / 2
    scale = predictor.model.log_scale.detach().exp().cpu()
    accuracies = []
    for attribute in attributes:
        truths = attribute.truths(held_out.attributes)
        if any(truth is not None for truth in truths):
            accuracies.append(zero_shot(images, prompts[attribute.name], truths, scale).accuracy)
            found[f"zeroshot_{attribute.name}"] = accuracies[-1]
    if accuracies:
        found["zero_shot"] = sum(accuracies) / len(accuracies)
    found["contrastive_nats"] = contrastive_nats(images, texts, scale)
    return found


def contrastive_nats(images: Tensor, texts: Tensor, scale: Tensor) -> float:
    """The softmax contrastive loss per pair (both directions summed) in batches of up to `BATCH`, as the list stands.

    Whatever loss trained the model: a sigmoid loss's temperature is made for another purpose.
    """
    count = len(images)
    parts = max(1, round(count / BATCH))
    edges = [count * i // parts for i in range(parts + 1)]
    total = 0.0
    for a, b in itertools.pairwise(edges):
        own = images[a:b], texts[a:b]
        total += float(contrastive_loss(*own, *own, scale)) * (b - a)
    return total / count


def captioning_nats(predictor: Predictor, features: ImageFeatures, captions: Sequence[str]) -> float:
    """Mean -log p of the captions' tokens, the end among them, in nats."""
    model, tokenizer = predictor.model, predictor.tokenizer
    nats, count = 0.0, 0
    for first in range(0, len(captions), predictor.batch_size):
        ids, valid = tokenizer.encode_batch(
            list(captions[first : first + predictor.batch_size]), model.config.text.context_length
        )
        ids, predicts = ids.to(predictor.device), valid[:, 1:].to(predictor.device)
        decoded = model.decode_ids(features.tokens[first : first + len(ids)], ids[:, :-1])
        log_p = model.caption_logits(decoded[predicts]).float().log_softmax(dim=-1)
        nats -= float(log_p.gather(1, ids[:, 1:][predicts][:, None]).sum())
        count += int(predicts.sum())
    return nats / max(1, count)


def _summary(figures: dict[str, float], lists: Sequence[str]) -> dict[str, float]:
    summary = {}
    for name in ("retrieval", "zero_shot", "cider_d", "exact_match", "contrastive_nats", "captioning_nats"):
        values = [figures[f"{of}/{name}"] for of in lists if f"{of}/{name}" in figures]
        if values:
            summary[name] = sum(values) / len(values)
    return summary


@torch.no_grad()
def probes(
    predictor: Predictor, train: Source, val: HeldOut, lists: Sequence[HeldOut], concepts: dict[str, int]
) -> dict[str, float]:
    """Linear probes of the frozen encoder's mean token: the labels themselves, skin tones, and man or woman.

    All are fitted on training pictures, their penalty is chosen on val, and they are measured on the test lists.
    """
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels
    samples = [train[i] for i in range(len(train))]
    squares = np.stack([to_square(open_picture(s.picture, name=s.key), size_px, pixels) for s in samples])
    shown = {
        "train": (squares, [s.attributes for s in samples]),
        "val": (val.pictures, list(val.attributes)),
    }
    shown |= {held_out.name: (held_out.pictures, list(held_out.attributes)) for held_out in lists}
    means = {name: _means(predictor, pictures) for name, (pictures, _) in shown.items()}

    def concept(of: dict) -> int | None:
        return concepts.get(of.get("concept", ""))

    def tone(of: dict) -> int | None:
        tones = of.get("tones") or []
        return TONES.index(tones[0]) if len(tones) == 1 and tones[0] in TONES else None

    def gender(of: dict) -> int | None:
        return GENDERS.index(of["gender"]) if of.get("gender") in GENDERS else None

    figures = {}
    probed = (
        ("probe_concept", concept, len(concepts)),
        ("probe_tone", tone, len(TONES)),
        ("probe_gender", gender, len(GENDERS)),
    )
    for name, number, classes in probed:
        splits = {}
        for of, (_, attributes) in shown.items():
            known = [(i, n) for i, each in enumerate(attributes) if (n := number(each)) is not None]
            if known:
                rows, targets = zip(*known, strict=True)
                splits[of] = Split(means[of][list(rows)], torch.tensor(targets))
        tests = [splits[held_out.name] for held_out in lists if held_out.name in splits]
        if "train" not in splits or "val" not in splits or not tests:
            raise DataError(
                f"no held-out pictures for the linear probe {name}; prepare OpenMoji with `coca quickstart`"
            )
        test = Split(torch.cat([split.inputs for split in tests]), torch.cat([split.targets for split in tests]))
        measured = linear_probe(splits["train"], splits["val"], test, classes, STRENGTHS)
        figures[name] = measured.test
        figures[f"{name}/pictures"] = float(len(test.targets))
    return figures


def _means(predictor: Predictor, pictures) -> Tensor:
    """The mean [I,D] of the encoder's tokens of pictures uint8 [I,H,W,3]."""
    parts = []
    for first in range(0, len(pictures), predictor.batch_size):
        pixels = to_input(pictures[first : first + predictor.batch_size], predictor.config.pixels, predictor.device)
        parts.append(predictor.model.encoder(pixels).mean(dim=1).float().cpu())
    return torch.cat(parts)
