"""Recognition of clips, trained and measured: a model of pictures learns the labels of a table of clips."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from opencoca import checkpoint
from opencoca.config import Config, DataConfig, HeadConfig, OptimConfig, RunConfig
from opencoca.data.clips import ClipSource, read_table
from opencoca.data.loader import PairLoader
from opencoca.data.video import FRAMES
from opencoca.errors import ConfigError, DataError
from opencoca.eval.video import recognise
from opencoca.jobs.task_runs import RESULTS, Say, changes_pictures
from opencoca.loading import Opened, load, open_model
from opencoca.model.coca import CoCa
from opencoca.train.loop import train
from opencoca.train.state import Prepare
from opencoca.train.tasks.targets import Targets
from opencoca.train.tasks.video import VideoRecognition, unread_parts

HEAD = "video"
TIME_RATE = 10.0  # times as high a rate for time positions, which begin at nothing


@dataclass(frozen=True)
class Options:
    """What may be said of a training.

    tuned: the encoder is trained too, at a fifth of the head's rate (CoCa, Table 8: 1e-4 and 5e-4); else it is frozen.
    time_positions: frames have learned positions in time; else their order changes nothing, as in the paper.
    changes: "section.field=value", as `Config.with_values` takes them.
    """

    frames: int = FRAMES
    tuned: bool = False
    time_positions: bool = False
    steps: int = 300
    rate: float = 1e-3
    batch: int = 32
    smoothing: float = 0.1
    seed: int = 0
    changes: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What a training leaves: figures on the held-out clips, the model, and what was skipped."""

    figures: dict[str, float]
    model: Path
    skipped: list[tuple[str, str]]


def train_videos(
    table: str | Path, run: Path, base: str | Path | None = None, options: Options | None = None, say: Say = print
) -> Outcome:
    """Trains a head over all frames of the clips in a table's rows `train`, in the folder `run`; measures on `val`.

    An interrupted run goes on where it was. Clips that can't be read are replaced while training, and left out of the
    measurement; both are counted and named.

    Raises: DataError where the table has no usable rows of a split, or a label of val isn't in train; and as `train`.
    """
    options = options or Options()
    training, held = read_table(table, "train"), read_table(table, "val")
    labels = tuple(sorted({clip.label for clip in training.clips}))
    if len(labels) < 2:
        raise DataError(f"{table} has one label in its rows of the split train; it takes two to choose among")
    unknown = sorted({clip.label for clip in held.clips} - set(labels))
    if unknown:
        raise DataError(f"{table} has the label {unknown[0]!r} in val and not in train; move a clip of it there")
    opened = open_model(base)
    config = configured(opened, str(table), labels, len(training.clips), options)
    say(f"base: {opened.path}; {'everything' if options.tuned else 'a frozen encoder'}, {options.frames} frames a clip")
    say(f"data: {len(training.clips)} clips to train on, {len(held.clips)} held out, {len(labels)} labels")
    source = ClipSource(training, config.model.vision.image_size_px, config.pixels, options.frames)
    targets = Targets.single({clip.key: labels.index(clip.label) for clip in training.clips}, len(labels))
    kept = None if options.tuned or changes_pictures(config.data) else {}
    task = VideoRecognition(HEAD, targets, options.smoothing, kept)
    loader = PairLoader.from_config(config, source, opened.tokenizer, pictures=options.frames)
    state = train(config, run, task, loader, opened.tokenizer, prepare=loads_base(opened))
    measured = recognise(load(run), held.clips, options.frames)
    skipped = [*training.skipped, *loader.skipped, *held.skipped, *measured.skipped]
    say(f"held out: {', '.join(f'{name} {value:.1%}' for name, value in measured.figures.items())}")
    results: dict[str, Any] = {
        "table": str(table),
        "options": dataclasses.asdict(options),
        "labels": list(labels),
        "clips": {"train": len(training.clips), "val": len(measured.clips)},
        "figures": measured.figures,
        "seconds": round(state.seconds, 1),
        "skipped": {"count": len(skipped), "first": [f"{key}: {reason}" for key, reason in skipped[:20]]},
    }
    checkpoint.write_atomically(run / RESULTS, json.dumps(results, indent=2) + "\n")
    return Outcome(measured.figures, run, skipped)


def configured(opened: Opened, table: str, labels: tuple[str, ...], clips: int, options: Options) -> Config:
    """The base's configuration with a head for the labels, and the training of it.

    Raises: ConfigError for options that contradict each other.
    """
    if options.frames < 1:
        raise ConfigError(f"{options.frames} frames were asked for; take 1 or more")
    before, steps = opened.config, options.steps
    heads = (*(head for head in before.model.heads if head.name != HEAD), HeadConfig(HEAD, labels))
    times = options.frames if options.time_positions else before.model.time_positions
    frozen = [*unread_parts(opened.model), *(f"tasks.{head.name}" for head in heads[:-1])]
    rates = ["encoder=0.2"] if options.tuned else []
    if times:
        rates.append(f"time_positions_FD={TIME_RATE:g}")
    config = dataclasses.replace(
        before,
        model=dataclasses.replace(before.model, heads=heads, time_positions=times),
        optim=OptimConfig(
            steps=steps,
            peak_lr=options.rate,
            warmup_steps=min(1000, steps // 10),
            schedule="cosine",
            weight_decay=0.0,
            part_rates=tuple(rates),
            frozen=tuple(frozen if options.tuned else [*frozen, "encoder"]),
        ),
        data=DataConfig(folder=table, batch_size=max(1, min(options.batch, clips))),
        run=RunConfig(
            seed=options.seed,
            log_every_steps=max(1, min(20, steps // 10)),
            checkpoint_every_steps=max(1, steps // 2),
            tensorboard=False,
        ),
    )
    return config.with_values(options.changes)


def loads_base(opened: Opened) -> Prepare:
    """Loads the base's weights; the new head, and time positions of another number, stay as they were made."""
    known = {name: value.detach() for name, value in opened.model.named_parameters()}

    def prepare(model: CoCa) -> None:
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        fitting = {n: w for n, w in known.items() if n in weights and weights[n].shape == w.shape}
        new = (f"tasks.{HEAD}.",)
        weights |= {name: weight for name, weight in fitting.items() if not name.startswith(new)}
        checkpoint.load_weights(model, weights, "the base model")

    return prepare
