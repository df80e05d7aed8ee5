"""A training step against open_clip's, and a CoCa step against a contrastive-only one.

    benchmarks/peer_environment.sh /tmp/peer
    /tmp/peer/bin/python benchmarks/training.py            # B/32 against the peer, L/14 CoCa against contrastive-only

Both train the same random weights on the same pictures and captions with the same loss (open_clip averages the two
directions of the contrastive loss, so ours weighs it by a half) and AdamW with gradient clipping, in fp32. The peer
reads every caption at its full context, as in its own training; ours at the lengths that captions have. The loss of
the first step stands beside the ratio. Runs alternate. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import open_clip
import torch
from common import alternating_medians, result_path, write_result
from torch import Tensor

from opencoca import recipes
from opencoca.config import Config, LossConfig, ModelConfig
from opencoca.data.loader import bucket_by_length
from opencoca.interop.open_clip import from_open_clip
from opencoca.jobs.quickstart import commit
from opencoca.losses import contrastive_loss
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.train.machine import keep_freed_memory
from opencoca.train.optim import make_optimizers
from opencoca.train.state import TrainState
from opencoca.train.step import update
from opencoca.train.task import Outcome, Pretraining, Task
from opencoca.types import Batch

CONTEXT, START, END = 76, 49406, 49407
PLAIN = torch.autocast("cpu", enabled=False)


def captions(count: int, generator: torch.Generator) -> Tensor:
    """Random ids [B,76] of captions with 12 to 28 ids, start and end counted, 20 on average, as COCO has."""
    ids = torch.zeros(count, CONTEXT, dtype=torch.long)
    for row, length in enumerate(torch.randint(12, 29, (count,), generator=generator).tolist()):
        ids[row, :length] = torch.randint(1, START, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = START, END
    return ids


def batch_of(pixels: Tensor, ids: Tensor) -> Batch:
    """What our loader makes of these pairs: in order of length, cut to the longest, in the recipe's buckets."""
    data = recipes.get("open_clip.vit_b_32").data
    lengths = (ids > 0).sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    ids = ids[order][:, : int(lengths.max())]
    labels = torch.arange(2 * len(ids)).view(-1, 2)
    keys = tuple(map(str, range(len(ids))))
    buckets = bucket_by_length(lengths[order].tolist(), data.text_buckets, data.bucket_gain)
    return Batch(pixels[order], ids, ids > 0, labels, keys, buckets)


class OurRun:
    """Our model with its optimizer; `step` trains on a batch and returns the loss."""

    def __init__(self, model: CoCa, config: Config, task: Task) -> None:
        self.config, self.task = config, task
        self.state = TrainState(model.train().requires_grad_(True), make_optimizers(model, config.optim), {})

    def step(self, batch: Batch) -> float:
        return float(update(self.state, self.task, batch, self.config, PLAIN)["loss"])


def config_of(model: ModelConfig, loss: LossConfig) -> Config:
    """The tiny recipe's training with this model: AdamW, no moving average."""
    tiny = recipes.tiny.tiny()
    optim = dataclasses.replace(tiny.optim, optimizer="adamw", steps=100_000, warmup_steps=0, peak_lr=1e-4, ema_decay=0)
    return dataclasses.replace(tiny, model=model, loss=loss, optim=optim)


def against_peer(name: str, count: int, repeats: int) -> dict[str, Any]:
    """C5: samples per second of one step, ours over the peer's."""
    torch.manual_seed(0)
    peer = open_clip.create_model(name, pretrained=None).train()
    torch.nn.init.normal_(peer.text_decoder.text_projection, std=0.05)  # open_clip leaves it uninitialised
    ours = from_open_clip(open_clip.get_model_config(name), {n: x.clone() for n, x in peer.state_dict().items()})
    size = peer.visual.image_size[0]
    generator = torch.Generator().manual_seed(1)
    pixels, ids = torch.randn(count, 3, size, size, generator=generator), captions(count, generator)
    loss_of = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)
    losses: dict[str, list[float]] = {"peer": [], "ours": []}
    run = OurRun(ours, config_of(ours.config, LossConfig(0.5, 2.0)), Pretraining(ours.config, LossConfig(0.5, 2.0)))
    batch = batch_of(pixels, ids)

    def peer_step() -> None:
        optimizer.zero_grad()
        loss = sum(loss_of(**peer(pixels, ids)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        losses["peer"].append(float(loss.detach()))

    seconds = alternating_medians(
        {"peer": peer_step, "ours": lambda: losses["ours"].append(run.step(batch))}, repeats, warmup=2
    )
    return {
        "model": name,
        "peer": f"open_clip_torch {open_clip.__version__}",
        "batch": count,
        "mean_caption_ids": float((ids > 0).sum(dim=1).float().mean()),
        "first_loss": {who: values[0] for who, values in losses.items()},
        "seconds": seconds,
        "samples_per_s": {who: round(count / taken["median_s"], 2) for who, taken in seconds.items()},
        "ratio": round(seconds["peer"]["median_s"] / seconds["ours"]["median_s"], 2),
    }


class ContrastiveOnly(Task):
    """The same model without decoder and head: what CLIP trains."""

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        image, text = model.embed_pairs(batch.pixels, batch.ids, batch.valid, batch.buckets, batch.patch_noise)
        nats = contrastive_loss(image, text, image, text, model.log_scale.exp())
        return Outcome({"contrastive": nats * len(batch.keys)})


def coca_over_contrastive(name: str, count: int, repeats: int) -> dict[str, Any]:
    """C6: a CoCa step over a contrastive-only step of one model, whose other half lies idle meanwhile."""
    model = recipes.get(f"open_clip.{name}").model
    generator = torch.Generator().manual_seed(1)
    size = model.vision.image_size_px
    batch = batch_of(torch.randn(count, 3, size, size, generator=generator), captions(count, generator))
    loss = LossConfig()
    run = OurRun(build(model), config_of(model, loss), Pretraining(model, loss))  # one, for its 10 GB
    tasks: dict[str, Task] = {"coca": run.task, "contrastive": ContrastiveOnly()}

    def step(who: str) -> None:
        run.task = tasks[who]
        run.step(batch)

    # the first steps of either clear gigabytes of new pages, seconds each; after three of both none does
    times = alternating_medians({who: lambda who=who: step(who) for who in tasks}, repeats, warmup=3)
    return {
        "model": name,
        "batch": count,
        "mean_caption_ids": float(batch.valid.sum(dim=1).float().mean()),
        "seconds": times,
        "ratio": {
            f"coca_over_{who}": {
                statistic: round(times["coca"][statistic] / taken[statistic], 3) for statistic in ("median_s", "min_s")
            }
            for who, taken in times.items()
            if who != "coca"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="pairs of a step against the peer")
    parser.add_argument("--large-batch", type=int, default=16, help="pairs of an L/14 step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", nargs="*", choices=["peer", "contrastive"], default=[])
    args = parser.parse_args()
    keep_freed_memory()
    path = result_path("training")
    known = json.loads(path.read_text()) if path.is_file() else {}
    figures: dict[str, Any] = {"precision": "fp32", "repeats": args.repeats}
    for part, skipped, measure in (
        ("against_peer", "peer", lambda: against_peer("coca_ViT-B-32", args.batch, args.repeats)),
        (
            "coca_over_contrastive",
            "contrastive",
            lambda: coca_over_contrastive("vit_l_14", args.large_batch, args.repeats),
        ),
    ):
        if skipped not in args.skip:
            figures[part] = measure() | {"commit": commit()}
        elif part in known:
            figures[part] = known[part]
    write_result("training", figures)


if __name__ == "__main__":
    main()
