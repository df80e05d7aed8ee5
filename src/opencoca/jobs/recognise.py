"""Recognition: a head for labels on a model's encoder, frozen and tuned, beside what the frozen features are worth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opencoca.config import Config, HeadConfig, LossConfig
from opencoca.data.loader import PairLoader
from opencoca.eval import frozen
from opencoca.eval.recognition import RecognitionEvaluation
from opencoca.infer.predictor import Predictor
from opencoca.jobs.recognise_data import Labelled, Pictures, open_labels
from opencoca.jobs.task_runs import (
    Base,
    Outcome,
    Row,
    Say,
    TrainingOptions,
    Watched,
    begin,
    changes_pictures,
    keep,
    line,
    opened_base,
    predictor_of,
    prepare_from,
    task_config,
    with_head,
)
from opencoca.model.coca import CoCa
from opencoca.train.loop import train
from opencoca.train.machine import placement
from opencoca.train.tasks.recognition import Recognition, unread_parts
from opencoca.train.tasks.targets import Targets

MEASURED_ON_THE_WAY = 1000  # pictures
SMOOTHING = 0.1
KEPT_BYTES = 2**30  # of tokens of a frozen encoder
WAYS = ("frozen", "tuned")
TITLES = {"frozen": "frozen encoder, new pooler", "tuned": "everything tuned"}


@dataclass(frozen=True)
class Options(TrainingOptions):
    """What may be said of recognition; 0 and None leave it to the defaults.

    ways: "frozen" trains a new pooler and classifier over the encoder as it is, "tuned" the encoder too.
    name: the head's, which replaces one of that name and leaves others beside it.
    field: the attribute of prepared samples that is the label. val: the share that is held out where the data have no
    val. most: pictures to train on at most. paper: with the settings of the paper's ImageNet runs.
    """

    ways: tuple[str, ...] = WAYS
    name: str = "recognition"
    field: str | None = None
    val: float = 0.1
    most: int = 0
    paper: bool = False


def recognise(
    data: str, run: Path, base: str | None = None, options: Options | None = None, say: Say = print
) -> Outcome:
    """Trains a head for the labels of `data` on `base`, in `run`/frozen and `run`/tuned; the better one is kept.

    Beside them stand a linear probe and nearest neighbours on the same encoder, with settings chosen on val. An
    interrupted run goes on where it was.

    Raises: OpenCoCaError of each part, with the repair.
    """
    options = options or Options()
    pictures = open_labels(data, options.field, options.val, options.most)
    head = HeadConfig(options.name, pictures.labels)  # before anything is measured, for its check of the name
    start, module = opened_base(base)
    shown = len(pictures.test.labels) if pictures.test is not None else 0
    say(
        f"data: {len(pictures.train.labels)} pictures to train on, {len(pictures.val.labels)} to choose by, {shown} to "
        f"test on; {len(pictures.labels)} labels"
    )
    device = placement(start.config.run)[0]
    plain = Predictor(module.to(device).requires_grad_(False), start.tokenizer, start.config)
    rows, frozen_facts = probes(plain, pictures)
    for row in rows:
        say(line(row))
    best: tuple[float, Predictor, str, int] | None = None
    results: dict[str, Any] = {"labels": len(pictures.labels), "frozen_features": frozen_facts, "trained": {}}
    for way in options.ways:
        config = _config(way, start, head, data, len(pictures.train.labels), options)
        begin(run / way, start)
        kept = KEPT_BYTES if way == "frozen" and not changes_pictures(config.data) else 0
        task = Recognition(head.name, _targets(pictures), config.loss.label_smoothing, kept)
        loader = PairLoader.from_config(config, pictures.train.source, start.tokenizer)
        watched = pictures.val.spread(MEASURED_ON_THE_WAY)
        evaluation = Watched(RecognitionEvaluation("val", watched.source, watched.labels), start.tokenizer, config)
        state = train(config, run / way, task, loader, start.tokenizer, [evaluation], prepare_from(start, head.name))
        trained = predictor_of(state, config, start.tokenizer)
        val = RecognitionEvaluation("val", pictures.val.source, pictures.val.labels)(trained)
        test = None
        if pictures.test is not None:
            test = RecognitionEvaluation("test", pictures.test.source, pictures.test.labels)(trained)
        row = Row(TITLES[way], val.figures["acc1"], test.figures["acc1"] if test else None)
        rows.append(row)
        say(line(row))
        results["trained"][way] = {
            "val": val.figures,
            "test": test.figures if test else None,
            "seconds": round(state.seconds, 1),
            "steps": state.step,
            "config": config.to_dict(),
        }
        if best is None or val.figures["acc1"] > best[0]:
            best = val.figures["acc1"], trained, way, state.step
    assert best is not None
    results |= {"rows": [row._asdict() for row in rows], "kept": best[2], "figures": {"val/acc1": best[0]}}
    story = f"{start.name} with a head for {len(pictures.labels)} labels of {Path(data).name}, by OpenCoCa"
    model = keep(run, best[1], story, best[3], results)
    return Outcome(rows, model, pictures.skipped, results)


def probes(predictor: Predictor, pictures: Pictures) -> tuple[list[Row], dict[str, Any]]:
    """What the frozen features are worth by themselves, and the settings that val chose."""
    index = {label: number for number, label in enumerate(pictures.labels)}

    def split(part: Labelled) -> tuple[frozen.Split, frozen.Split]:
        found = frozen.features(predictor, part.source)
        targets = torch.tensor([index[part.labels[row]] for row in found.rows])
        return frozen.Split(found.embeds, targets), frozen.Split(found.means, targets)

    train, val = split(pictures.train), split(pictures.val)
    test = split(pictures.test) if pictures.test is not None else val
    rows, facts = [], {}
    for title, method, kind in (
        ("linear probe, image embedding", frozen.linear_probe, 0),
        ("linear probe, mean of the encoder's tokens", frozen.linear_probe, 1),
        ("nearest neighbours, image embedding", frozen.neighbours, 0),
    ):
        measured = method(train[kind], val[kind], test[kind], len(index))
        rows.append(Row(title, measured.val, measured.test if pictures.test is not None else None))
        facts[title] = {"val": measured.val, "test": rows[-1].test, "chosen_on_val": measured.chosen}
    return rows, facts


def _config(way: str, base: Base, head: HeadConfig, data: str, samples: int, options: Options) -> Config:
    model = with_head(base.config.model, head)
    model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, train_patches=0))
    with torch.device("meta"):
        unread = unread_parts(CoCa(base.config.model))
    return task_config(
        base,
        model,
        data,
        samples,
        options,
        frozen=(*unread, *(("encoder",) if way == "frozen" else ())),
        loss=LossConfig(label_smoothing=SMOOTHING),
        paper=f"imagenet-{way}" if options.paper else None,
    )


def _targets(pictures: Pictures) -> Targets:
    index = {label: number for number, label in enumerate(pictures.labels)}
    keys = zip(pictures.train.source.keys, pictures.train.labels, strict=True)
    return Targets.single({key: index[label] for key, label in keys}, len(index))
