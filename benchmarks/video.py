"""Clips with a model of pictures: what a pooler over all frames' tokens gains over the mean of the frames' embeddings.

    pip install "opencoca[demo,video]"
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/video.py

The clips are generated: OpenMoji drawings that move over white (data/sprite_clips.py), labelled as such. The encoder is
that of the shipped `drawings` model, which never saw this style.

decisive: one of 16 frames shows the class, the others something else. motion: to the left or to the right; each clip
is also there backwards. retrieval and captions: clips by the names of what they show, concepts that the model knows in
other styles. Controls: the middle frame alone, and the test clips' frames in another order.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from torch import Tensor

from opencoca import checkpoint, loading
from opencoca.data import emoji_styles, sprite_clips
from opencoca.data.clips import Clip, ClipSource, Table, read_table
from opencoca.data.loader import PairLoader
from opencoca.data.sample import Sample
from opencoca.eval.metrics import cider
from opencoca.eval.results import read_json
from opencoca.eval.video import VideoRetrieval, linear_accuracy
from opencoca.infer.predictor import Predictor
from opencoca.infer.video import caption_videos, tokens_of
from opencoca.jobs.video import HEAD, Options, configured, loads_base
from opencoca.model.coca import CoCa
from opencoca.model.video import mean_of_frames, space_time
from opencoca.train.loop import train
from opencoca.train.state import Prepare
from opencoca.train.tasks.targets import Targets
from opencoca.train.tasks.video import VideoRecognition

PARTS = ("retrieval", "decisive", "motion", "tuned")
SPLITS = ("train", "val", "test")
KINDS = {"decisive": sprite_clips.decisive, "motion": sprite_clips.motion}
MIDDLE = sprite_clips.FRAMES // 2
TUNED = Options(tuned=True, steps=60, batch=16, rate=5e-4)


class Remembered(ClipSource):
    """Clips whose frames are decoded once."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._samples: dict[int, Sample] = {}

    def __getitem__(self, i: int) -> Sample:
        if i not in self._samples:
            self._samples[i] = super().__getitem__(i)
        return self._samples[i]


def main() -> None:
    """Measures what is named; parts that aren't keep their figures. A part that was interrupted goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="drawings", help="whose encoder and poolers")
    parser.add_argument("--run", type=Path, default=Path("runs/video-benchmark"), help="where clips and runs go")
    parser.add_argument("--decisive", type=int, nargs=3, default=(480, 80, 240), metavar="CLIPS", help="of each split")
    parser.add_argument("--motion", type=int, nargs=3, default=(160, 40, 160), metavar="CLIPS", help="of each split")
    parser.add_argument("--steps", type=int, default=300, help="of each training with a frozen encoder")
    parser.add_argument("--clips", type=int, default=100, help="of the retrieval")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)} is no part; there are: {', '.join(PARTS)}")
    torch.set_num_threads(chosen.threads)
    opened = loading.open_model(chosen.model)
    path = RESULTS / "video.json"
    result: dict[str, Any] = read_json(path)["figures"] if path.is_file() else {}

    def write(part: str, figures: dict[str, Any]) -> None:
        print(part, figures, flush=True)
        result[part] = figures
        if not chosen.dry:
            facts = {"model": chosen.model, "frames": sprite_clips.FRAMES, "clips": "generated"}
            write_result("video", facts | {"figures": result})

    if "retrieval" in chosen.parts:
        write("retrieval", retrieval(loading.load(chosen.model), chosen.run / "named", chosen.clips))
    for kind, counts in (("decisive", chosen.decisive), ("motion", chosen.motion)):
        if kind not in chosen.parts and not (kind == "decisive" and "tuned" in chosen.parts):
            continue
        part = Recognition(opened, kind, counts, chosen.run / kind)
        figures = result.get(kind, {})
        if kind in chosen.parts:
            figures = part.controls()
            for name, timed in (("pooler", False), ("pooler, time positions", True)):
                options = [Options(steps=chosen.steps, seed=seed, time_positions=timed) for seed in chosen.seeds]
                runs = [part.trained(one) for one in options]
                figures[name] = summary(runs, figures["mean_frame_linear"]["acc1"])
                write(kind, figures)
        if kind == "decisive" and "tuned" in chosen.parts:
            seed = chosen.seeds[0]
            part.trained(Options(steps=chosen.steps, seed=seed))  # where it begins
            runs = [part.trained(dataclasses.replace(TUNED, seed=seed))]
            figures["pooler, everything tuned"] = summary(runs, figures["mean_frame_linear"]["acc1"])
            write(kind, figures)


class Recognition:
    """One kind of clips, made and encoded once, and what is measured on them."""

    def __init__(self, opened: loading.Opened, kind: str, counts: tuple[int, ...], folder: Path) -> None:
        made: dict[str, Sequence[sprite_clips.SpriteClip]] = {
            split: [KINDS[kind](split, i) for i in range(n)] for split, n in zip(SPLITS, counts, strict=True)
        }
        path = sprite_clips.write_table(folder, made, as_files=kind == "decisive")  # motion: backwards is to the bit
        self.opened, self.folder, self.counts = opened, folder, dict(zip(SPLITS, counts, strict=True))
        self.tables = {split: read_table(path, split) for split in SPLITS}
        self.labels = tuple(sorted({clip.label for clip in self.tables["train"].clips}))
        self.predictor = Predictor(opened.model, opened.tokenizer, opened.config)
        began = time.process_time()
        self.tokens = {split: tokens_of(self.predictor, table.clips) for split, table in self.tables.items()}
        self.encoding_s = time.process_time() - began
        self.truths = {
            split: torch.tensor([self.labels.index(clip.label) for clip in table.clips])
            for split, table in self.tables.items()
        }
        self.source: ClipSource | None = None
        self.weights: dict[str, Tensor] = {}  # of the first frozen run without time positions

    def controls(self) -> dict[str, Any]:
        """Facts, and linear classifiers of the mean embedding and of the middle frame's."""
        result: dict[str, Any] = {
            "clips": self.counts,
            "labels": list(self.labels),
            "chance": 1 / len(self.labels),
            "encoding_cpu_s": round(self.encoding_s, 1),
        }
        for name, frames in (("mean_frame_linear", slice(None)), ("middle_frame_linear", slice(MIDDLE, MIDDLE + 1))):
            features = {split: (self._embeds(split, frames), self.truths[split]) for split in SPLITS}
            accuracy, penalty = linear_accuracy(features["train"], features["val"], features["test"])
            result[name] = {"acc1": round(accuracy, 4), "penalty": penalty}
        return result

    def trained(self, options: Options) -> dict[str, Any]:
        """Accuracies of a head that is trained on the clips; tuned, it goes on from the first frozen one."""
        table: Table = self.tables["train"]
        config = configured(self.opened, str(table.path), self.labels, len(table.clips), options)
        size_px = config.model.vision.image_size_px
        self.source = self.source or Remembered(table, size_px, config.pixels, options.frames)
        indices = {clip.key: self.labels.index(clip.label) for clip in table.clips}
        kept = None if options.tuned else dict(self.tokens["train"])
        task = VideoRecognition(HEAD, Targets.single(indices, len(self.labels)), options.smoothing, kept)
        loader = PairLoader.from_config(config, self.source, self.opened.tokenizer, pictures=options.frames)
        run = self.folder / f"run-{options.tuned}-{options.time_positions}-{options.seed}"
        prepare = _loads(self.weights) if options.tuned else loads_base(self.opened)
        state = train(config, run, task, loader, self.opened.tokenizer, prepare=prepare)
        model = state.model.eval()
        if not options.tuned and not options.time_positions and not self.weights:
            self.weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        tokens = self.tokens["test"]
        if options.tuned:
            tokens = tokens_of(Predictor(model, self.opened.tokenizer, config), self.tables["test"].clips)
        order = torch.randperm(options.frames, generator=torch.Generator().manual_seed(0))
        return {
            "seed": options.seed,
            "acc1": self._accuracy(model, list(tokens.values())),
            "acc1_frames_shuffled": self._accuracy(model, [one[:, order] for one in tokens.values()]),
            "steps": options.steps,
            "seconds": round(state.seconds, 1),
        }

    @torch.no_grad()
    def _accuracy(self, model: CoCa, tokens: list[Tensor]) -> float:
        best = [model.tasks[HEAD](space_time(model, one)).argmax().item() for one in tokens]
        return round((torch.tensor(best) == self.truths["test"]).double().mean().item(), 4)

    @torch.no_grad()
    def _embeds(self, split: str, frames: slice) -> Tensor:
        """The mean of some frames' embeddings [B,E] of the split's clips."""
        tokens = self.tokens[split].values()
        return torch.cat([mean_of_frames(self.predictor.model.pool(one[0, frames]).embed[None]) for one in tokens])


def _loads(weights: dict[str, Tensor]) -> Prepare:
    def prepare(model: CoCa) -> None:
        checkpoint.load_weights(model, weights, "the frozen run")

    return prepare


def summary(runs: list[dict[str, Any]], baseline: float) -> dict[str, Any]:
    """Mean and range over seeds, and what is gained over the mean frame."""
    values = [run["acc1"] for run in runs]
    mean = statistics.fmean(values)
    return {
        "acc1": round(mean, 4),
        "range": [min(values), max(values)],
        "acc1_frames_shuffled": round(statistics.fmean(run["acc1_frames_shuffled"] for run in runs), 4),
        "gain": round(mean - baseline, 4),
        "runs": runs,
    }


def retrieval(predictor: Predictor, folder: Path, count: int) -> dict[str, Any]:
    """R@k both ways of clips by the names of what they show, by the mean of the frames and the pretrained poolers.

    Captions of the same clips, against the name; the control captions the middle frame alone.
    """
    seen = list({row.caption: row for row in emoji_styles.test_rows()["test_seen"]}.values())
    rows = [seen[i * len(seen) // count] for i in range(count)]
    result: dict[str, Any] = {"clips": len(rows)}
    for name, shown in (("drawing in all frames", sprite_clips.FRAMES), ("drawing in one frame of 16", 1)):
        clips = [sprite_clips.named(row.id, row.caption, shown) for row in rows]
        table = read_table(sprite_clips.write_table(folder / str(shown), {"test": clips}))
        both = {how: VideoRetrieval(f"sprites/{how}", table.clips, how=how)(predictor) for how in ("mean", "pooled")}
        result[name] = {how: {k: round(v, 4) for k, v in one.figures.items()} for how, one in both.items()}
        result[name]["captions"] = {"all frames": captions(predictor, table.clips, sprite_clips.FRAMES)}
        if shown == sprite_clips.FRAMES:
            result[name]["captions"]["middle frame"] = captions(predictor, table.clips, 1)
        print(name, result[name], flush=True)
    return result


def captions(predictor: Predictor, clips: list[Clip], frames: int) -> dict[str, float]:
    """CIDEr-D against the clips' names, and the share of captions that are the name."""
    said = {clip.key: text for clip, text in caption_videos(predictor, clips, frames) if isinstance(clip, Clip)}
    names = [clip.label for clip in clips]
    texts = [said[clip.key] for clip in clips]
    right = [text.strip().lower() == name.lower() for text, name in zip(texts, names, strict=True)]
    return {
        "cider_d": round(cider(texts, [[name] for name in names]).total, 4),
        "exact": round(sum(right) / len(right), 4),
    }


if __name__ == "__main__":
    main()
