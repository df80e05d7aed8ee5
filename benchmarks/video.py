"""Clips with a model of pictures: what a pooler over all frames' tokens gains over the mean of the frames' embeddings.

    pip install "opencoca[demo,video]"
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/video.py

The clips are generated: OpenMoji drawings that move over white (data/sprite_clips.py), labelled as such. The encoder is
that of the shipped `drawings` model, frozen, which never saw this style. Each clip is encoded once.

decisive: one of 16 frames shows the class, the others something else. motion: to the left or to the right; each clip
is also there backwards. retrieval: clips by the names of what they show, concepts that the model knows in
other styles.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write_result
from torch import Tensor

from opencoca import loading
from opencoca.data import emoji_styles, sprite_clips
from opencoca.data.clips import ClipSource, Table, read_table
from opencoca.data.loader import PairLoader
from opencoca.eval.video import VideoRetrieval, linear_accuracy
from opencoca.infer.predictor import Predictor
from opencoca.infer.video import tokens_of
from opencoca.jobs.video import HEAD, Options, configured, loads_base
from opencoca.model.video import mean_of_frames, space_time
from opencoca.train.loop import train
from opencoca.train.tasks.targets import Targets
from opencoca.train.tasks.video import VideoRecognition

SPLITS = ("train", "val", "test")
KINDS = {"decisive": sprite_clips.decisive, "motion": sprite_clips.motion}


def main() -> None:
    """Measures one part after the other; the result is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drawings", help="whose encoder and poolers")
    parser.add_argument("--decisive", type=int, nargs=3, default=(800, 80, 320), metavar="CLIPS", help="of each split")
    parser.add_argument("--motion", type=int, nargs=3, default=(320, 40, 160), metavar="CLIPS", help="of each split")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--clips", type=int, default=150, help="of the retrieval")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    chosen = parser.parse_args()
    opened = loading.open_model(chosen.model)
    result: dict[str, Any] = {"model": chosen.model, "frames": sprite_clips.FRAMES, "clips": "generated"}
    with tempfile.TemporaryDirectory() as folder:
        for kind, counts in (("motion", chosen.motion), ("decisive", chosen.decisive)):
            result[kind] = recognition(opened, kind, counts, chosen.steps, chosen.seeds, Path(folder, kind))
            print(kind, result[kind], flush=True)
            write_result("video", result)
        result["retrieval"] = retrieval(loading.load(chosen.model), Path(folder, "named"), chosen.clips)
        write_result("video", result)


def recognition(
    opened: loading.Opened, kind: str, counts: tuple[int, ...], steps: int, seeds: list[int], folder: Path
) -> dict[str, Any]:
    """Accuracies on the test clips: of a linear classifier of mean embeddings, and of heads over space-time tokens."""
    made = {split: [KINDS[kind](split, i) for i in range(n)] for split, n in zip(SPLITS, counts, strict=True)}
    path = sprite_clips.write_table(folder, made, as_files=kind == "decisive")  # motion: backwards is to the bit
    tables = {split: read_table(path, split) for split in SPLITS}
    labels = tuple(sorted({clip.label for clip in tables["train"].clips}))
    predictor = Predictor(opened.model, opened.tokenizer, opened.config)
    began = time.perf_counter()
    tokens = {split: tokens_of(predictor, table.clips) for split, table in tables.items()}
    encoded_s = time.perf_counter() - began
    truths = {split: torch.tensor([labels.index(c.label) for c in table.clips]) for split, table in tables.items()}
    features = {split: (_mean(predictor, tokens[split]), truths[split]) for split in SPLITS}
    baseline, penalty = linear_accuracy(features["train"], features["val"], features["test"])
    result: dict[str, Any] = {
        "clips": dict(zip(SPLITS, counts, strict=True)),
        "labels": list(labels),
        "chance": 1 / len(labels),
        "mean_frame_linear": {"acc1": round(baseline, 4), "penalty": penalty},
        "encoding_s": round(encoded_s, 1),
    }
    for name, timed in (("pooler", False), ("pooler, time positions", True)):
        runs = [
            _trained(opened, tables["train"], labels, tokens, truths["test"], steps, seed, timed, folder)
            for seed in seeds
        ]
        mean = sum(run["acc1"] for run in runs) / len(runs)
        result[name] = {"acc1": round(mean, 4), "gain": round(mean - baseline, 4), "runs": runs}
    return result


def _trained(
    opened: loading.Opened,
    table: Table,
    labels: tuple[str, ...],
    tokens: dict[str, dict[str, Tensor]],
    truths: Tensor,
    steps: int,
    seed: int,
    timed: bool,
    folder: Path,
) -> dict[str, Any]:
    options = Options(steps=steps, seed=seed, time_positions=timed)
    config = configured(opened, str(table.path), labels, len(table.clips), options)
    source = ClipSource(table, config.model.vision.image_size_px, config.pixels, options.frames)
    targets = Targets.single({clip.key: labels.index(clip.label) for clip in table.clips}, len(labels))
    task = VideoRecognition(HEAD, targets, options.smoothing, dict(tokens["train"]))
    loader = PairLoader.from_config(config, source, opened.tokenizer, pictures=options.frames)
    run = folder / f"run-{timed}-{seed}"
    state = train(config, run, task, loader, opened.tokenizer, prepare=loads_base(opened))
    model = state.model.eval()
    with torch.no_grad():
        best = [model.tasks[HEAD](space_time(model, one)).argmax().item() for one in tokens["test"].values()]
    right = (torch.tensor(best) == truths).double()
    return {"seed": seed, "acc1": round(right.mean().item(), 4), "seconds": round(state.seconds, 1)}


@torch.no_grad()
def _mean(predictor: Predictor, tokens: dict[str, Tensor]) -> Tensor:
    """The mean of the frames' embeddings [B,E] of encoded clips."""
    return torch.cat([mean_of_frames(predictor.model.pool(one[0]).embed[None]) for one in tokens.values()])


def retrieval(predictor: Predictor, folder: Path, count: int) -> dict[str, Any]:
    """R@k both ways of clips by the names of what they show: mean of the frames, and the pretrained poolers."""
    seen = list({row.caption: row for row in emoji_styles.test_rows()["test_seen"]}.values())
    rows = [seen[i * len(seen) // count] for i in range(count)]
    result: dict[str, Any] = {"clips": len(rows)}
    for name, shown in (("drawing in all frames", sprite_clips.FRAMES), ("drawing in one frame of 16", 1)):
        clips = [sprite_clips.named(row.id, row.caption, shown) for row in rows]
        table = read_table(sprite_clips.write_table(folder / str(shown), {"test": clips}))
        both = {how: VideoRetrieval(f"sprites/{how}", table.clips, how=how)(predictor) for how in ("mean", "pooled")}
        result[name] = {how: {k: round(v, 4) for k, v in one.figures.items()} for how, one in both.items()}
        print(name, result[name], flush=True)
    return result


if __name__ == "__main__":
    main()
