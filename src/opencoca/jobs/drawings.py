"""The model that ships, from its drawings to its folder: measure, export.

coca data get drawings                                   # packages of npm and Debian, as shards in data/drawings
coca train drawings --run runs/drawings                  # about an hour on one core
python benchmarks/drawings.py --export runs/drawings     # measures, writes the result and the folder that ships
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch.nn import functional as F

from opencoca import checkpoint, recipes
from opencoca.errors import CheckpointError
from opencoca.eval.controls import nearest_neighbour_figures
from opencoca.eval.held_out import HeldOut, load_held_out
from opencoca.eval.suite import evaluate_split
from opencoca.infer.predictor import Predictor
from opencoca.jobs.drawings_card import card
from opencoca.model_card import Origin
from opencoca.ranking import ranks_of_targets, recall_at
from opencoca.weights import stored_as

LISTS = ("test_seen", "test_unseen")
LARGEST_BYTES = 25_000_000
ORIGIN = Origin("OpenCoCa's recipe `drawings`", licence="apache-2.0")


def measure(predictor: Predictor, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of the held-out style, by list and by who reached them: "model", "chance" or "nearest_pixels".

    Retrieval ranks the list's own pictures and names. Zero-shot classification ranks the names of both lists, so that
    an unseen emoji competes with all that training showed. The control copies the name of the training drawing with
    the least squared difference of pixels, at a third of the size, which makes it 9 times as fast and a
    little stronger (on val: 14.5 instead of 12.0% of names right).
    """
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels
    lists = {name: load_held_out(folder, name, size_px, pixels) for name in LISTS}
    known = thumbnails(_first_copies(load_held_out(folder, "train", size_px, pixels)))
    names = [caption for held_out in lists.values() for caption in held_out.captions]
    labels = predictor.embed_texts(names)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, held_out in lists.items():
        result = evaluate_split(predictor, held_out, beams=predictor.config.generation.beams)
        small = thumbnails(held_out)
        truths = torch.tensor([names.index(caption) for caption in held_out.captions])
        ranks = ranks_of_targets(result.image_embeds, labels, truths)
        chance = {f"{way}_recall@{k}": k / len(held_out) for way in ("i2t", "t2i") for k in (1, 5, 10)}
        figures[name] = {
            "model": result.figures | {f"zeroshot_top{k}": recall_at(ranks, k) for k in (1, 5)},
            "chance": chance | {f"zeroshot_top{k}": k / len(names) for k in (1, 5)},
            "nearest_pixels": nearest_neighbour_figures(small, known) | nearest_names(small, known),
        }
    return figures


def nearest_names(held_out: HeldOut, known: HeldOut) -> dict[str, float]:
    """Zero-shot top-1 and top-5 of the nearest training drawings' different names."""
    queries, candidates = (torch.from_numpy(one.pictures).flatten(1).float() for one in (held_out, known))
    hits = {1: 0, 5: 0}
    for first in range(0, len(queries), 64):
        order = torch.cdist(queries[first : first + 64], candidates).topk(min(25, len(known)), largest=False).indices
        for truth, row in zip(held_out.captions[first : first + 64], order.tolist(), strict=True):
            names = list(dict.fromkeys(known.captions[i] for i in row))
            for k in hits:
                hits[k] += truth in names[:k]
    return {f"zeroshot_top{k}": count / len(held_out) for k, count in hits.items()}


def thumbnails(pictures: HeldOut, factor: int = 3) -> HeldOut:
    """The same pictures, each `factor` x `factor` pixels averaged into one."""
    large_ICHW = torch.from_numpy(pictures.pictures).permute(0, 3, 1, 2)
    small_ICHW = torch.cat([F.avg_pool2d(some.float(), factor).round().byte() for some in large_ICHW.split(256)])
    return dataclasses.replace(pictures, pictures=small_ICHW.permute(0, 2, 3, 1).contiguous().numpy())


def _first_copies(train: HeldOut) -> HeldOut:
    """Each training drawing once: plain on white, with its name."""
    rows = [i for i, key in enumerate(train.keys) if key.endswith("-0")]
    return HeldOut(
        train.name,
        tuple(train.keys[i] for i in rows),
        train.pictures[rows],
        tuple(train.captions[i] for i in rows),
        tuple(train.attributes[i] for i in rows),
    )


def halved(run: Path, folder: Path, text: str = "") -> None:
    """Writes the run's weights, matrices in half precision, as the model folder `folder`, with `text` as its card.

    Captions are made as the recipe says now, whatever it said when the run began.

    Raises: CheckpointError where the run has no model, or the folder would be larger than what may ship.
    """
    saved = checkpoint.load(run)
    weights = stored_as(saved.weights, torch.float16)
    worst = max(float(tensor.abs().max()) for tensor in weights.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if worst == float("inf") or size > LARGEST_BYTES:
        raise CheckpointError(
            f"{run} has weights up to {worst} and {size} bytes in half precision; {LARGEST_BYTES} bytes may ship"
        )
    config = dataclasses.replace(saved.config, generation=recipes.get(saved.config.recipe).generation)
    checkpoint.save(folder, config, saved.tokenizer, weights, origin=ORIGIN, card=text or card(None))
