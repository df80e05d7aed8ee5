"""Questions about pictures: a head over the decoder's outputs, the decoder's own words, or both, trained and measured.

A question none of whose answers is in the head's vocabulary teaches the head nothing, and the decoder what it says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opencoca import recipes
from opencoca.config import Config, HeadConfig, LossConfig
from opencoca.data.loader import PairLoader
from opencoca.data.questions import Question, QuestionSource, open_questions
from opencoca.data.tokenizer import Tokenizer, train_tokenizer
from opencoca.errors import ConfigError, DataError
from opencoca.eval.questions import How, QuestionEvaluation, majority
from opencoca.eval.vqa import normalise_answer
from opencoca.jobs.pretrain import stored_tokenizer, with_vocabulary
from opencoca.jobs.task_runs import (
    Base,
    Outcome,
    Row,
    Say,
    TrainingOptions,
    Watched,
    begin,
    keep,
    line,
    opened_base,
    predictor_of,
    prepare_from,
    task_config,
    with_head,
)
from opencoca.train.loop import train
from opencoca.train.tasks.targets import Targets
from opencoca.train.tasks.vqa import QuestionAnswering, Words

Mode = Literal["classify", "generate", "both"]
MOST_ANSWERS = 3129  # of VQA v2 in the paper; it says no more of how they were chosen
MEASURED_ON_THE_WAY = 500
MOST_CHOICES = 20  # a vocabulary up to so large is ranked by log-likelihood, where questions have no choices
VAL_SHARE = 0.1
TITLES: dict[How, str] = {"classify": "classifier", "generate": "in its own words", "choose": "likeliest choice"}


@dataclass(frozen=True)
class Options(TrainingOptions):
    """What may be said of training on questions; 0 and None leave it to the defaults.

    mode: "classify" trains a head, "generate" the decoder's own words, "both" one with the other. name: the head's,
    which replaces one of that name and leaves others beside it.
    answers: the size of the head's vocabulary, and rare: answers that occur less often aren't in it.
    frozen: the encoder stays as it is. recipe: new weights in this recipe's shape, instead of a model's. paper: with
    the settings of the paper's runs on "vqa", "snli-ve" or "nlvr2". pictures: the folder that paths start from.
    splits: names of the splits to train on, to choose by and to test on; tests may be several.
    """

    mode: Mode = "both"
    name: str = "vqa"
    answers: int = MOST_ANSWERS
    rare: int = 1
    frozen: bool = False
    recipe: str | None = None
    paper: str | None = None
    pictures: str | None = None
    tests: tuple[str, ...] = ("test",)


class Vocabulary(NamedTuple):
    """The answers that a head chooses among, and what is right for each question, by its key.

    outside: (row, reason) of each question none of whose answers is among them; a head can't learn from it.
    """

    labels: tuple[str, ...]
    shares: dict[str, dict[int, float]]
    outside: list[tuple[str, str]]


def vqa(data: str, run: Path, base: str | None = None, options: Options | None = None, say: Say = print) -> Outcome:
    """Trains `base` on the questions of `data` in `run`, and measures all ways to answer beside the question alone.

    An interrupted run goes on where it was. Test questions are asked once, in the end.

    Raises: OpenCoCaError of each part, with the repair.
    """
    options = options or Options()
    asked, val, tests = _open(data, options)
    start = _base(base, options, asked, run)
    fits, skipped = _that_fit(asked, start)
    head, targets = None, None
    if options.mode != "generate":
        found = vocabulary(fits, options.answers, options.rare)
        head = HeadConfig(options.name, found.labels, "decoder", asked.pictures)
        targets = Targets(found.shares, len(found.labels))
        if options.mode == "classify":
            skipped += found.outside
            fits = fits.chosen(row for row, question in enumerate(fits.questions) if question.key in found.shares)
        say(f"answers: {len(found.labels)} in the head's vocabulary, {len(found.outside)} questions have none of them")
    elif asked.pictures > 1:
        raise ConfigError("questions about several pictures take a head; leave out --mode generate")
    config = _config(start, head, data, len(fits), options)
    say(f"data: {len(fits)} questions to train on, {len(val)} to choose by")
    begin(run, start)
    words: Words = {"classify": "none", "generate": "answer", "both": "all"}[options.mode]  # type: ignore[assignment]
    if asked.pictures > 1:
        words = "none"
    task = QuestionAnswering(
        {q.key: len(start.tokenizer.encode(q.prompt)) for q in fits.questions},
        None if head is None else head.name,
        targets,
        words,
        config.loss.captioning_weight,
        config.loss.label_smoothing,
    )
    loader = PairLoader.from_config(config, fits, start.tokenizer, pictures=asked.pictures)
    how: How = "generate" if head is None else "classify"
    watched = QuestionEvaluation("val", val.spread(MEASURED_ON_THE_WAY), how)
    prepare = prepare_from(start, None if head is None else head.name)
    state = train(config, run, task, loader, start.tokenizer, [Watched(watched, start.tokenizer, config)], prepare)
    trained = predictor_of(state, config, start.tokenizer)
    ways: list[How] = [*(["classify"] if head else []), *(["generate"] if words != "none" else [])]  # type: ignore
    offered = _choices(val, head)
    if words != "none" and offered is not None:
        ways.append("choose")
    measured: dict[str, dict[str, Any]] = {}
    for split, source in (("val", val), *tests.items()):
        alone = majority(asked, source)
        measured[split] = {"question only": {"figures": alone.figures}}
        for way in ways:
            result = QuestionEvaluation(split, source, way, choices=offered or ())(trained)
            measured[split][TITLES[way]] = {"figures": result.figures, "facts": result.facts}
    rows = _rows(measured)
    for row in rows:
        say(line(row))
    results = {
        "mode": options.mode,
        "rows": [row._asdict() for row in rows],
        "measured": measured,
        "pictures": asked.pictures,
        "told_split": next(iter(tests), "val" if "val" in val.splits else "train"),  # one that others can open, too
        "training_questions": len(fits),
        "outside_vocabulary": len(found.outside) if options.mode != "generate" else 0,
        "seconds": round(state.seconds, 1),
        "steps": state.step,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "config": config.to_dict(),
        "figures": {f"val/{name}": one["figures"]["accuracy"] for name, one in measured["val"].items()},
    }
    story = f"{start.name} trained on questions of {Path(data).name} with OpenCoCa"
    return Outcome(rows, keep(run, trained, story, state.step, results), skipped, results)


def vocabulary(source: QuestionSource, most: int = MOST_ANSWERS, rare: int = 1) -> Vocabulary:
    """The most frequent answers in their official form, and the share of each in what annotators said, by question.

    Raises: DataError where fewer than two answers are left.
    """
    given = {q.key: [normalise_answer(answer) or answer.lower() for answer in q.answers] for q in source.questions}
    counts = Counter(answer for answers in given.values() for answer in answers)
    frequent = sorted((answer for answer, count in counts.items() if count >= rare), key=lambda a: (-counts[a], a))
    labels = tuple(sorted(frequent[:most]))
    if len(labels) < 2:
        raise DataError(f"the questions to train on have {len(labels)} answer {list(labels)}; a head takes two or more")
    index = {label: number for number, label in enumerate(labels)}
    shares: dict[str, dict[int, float]] = {}
    outside: list[tuple[str, str]] = []
    for key, answers in given.items():
        known = Counter(index[answer] for answer in answers if answer in index)
        if known:
            shares[key] = {label: count / known.total() for label, count in known.items()}
        else:
            outside.append((key, f"its answer {answers[0]!r} is not among the {len(labels)} of the vocabulary"))
    return Vocabulary(labels, shares, outside)


def _open(data: str, options: Options) -> tuple[QuestionSource, QuestionSource, dict[str, QuestionSource]]:
    """The questions to train on, to choose by, and to test on by split; a tenth of the pictures is held out for want
    of a val split."""
    train_questions = open_questions(data, "train", options.pictures)
    tests = {}
    for split in options.tests:
        try:
            tests[split] = open_questions(data, split, options.pictures)
        except DataError:
            if split != "test":
                raise  # it was asked for
    try:
        return train_questions, open_questions(data, "val", options.pictures), tests
    except DataError:
        if "val" in train_questions.splits:
            raise
    out = [_share(question, train_questions.root) < VAL_SHARE for question in train_questions.questions]
    if len(set(out)) < 2:
        raise DataError(f"{data} has too few pictures to hold some out; give a split `val`, or more pictures")
    train_rows, val_rows = ([row for row, is_out in enumerate(out) if is_out == wanted] for wanted in (False, True))
    return train_questions.chosen(train_rows), train_questions.chosen(val_rows), tests


def _share(question: Question, root: str) -> float:
    """Where a question's first picture stands between 0 and 1, by its name below `root` alone, wherever that lies."""
    name = question.pictures[0]
    if os.path.isabs(name) and not (below := os.path.relpath(name, root)).startswith(".."):
        name = below
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64


def _base(base: str | None, options: Options, asked: QuestionSource, run: Path) -> Base:
    """The model to begin with: one that is named or the newest, or new weights in a recipe's shape."""
    if options.recipe is None:
        return opened_base(base)[0]
    if base is not None:
        raise ConfigError("--from and --recipe were given; begin with a model, or with new weights in a recipe's shape")
    config = recipes.get(options.recipe).with_values([c for c in options.changes if c.startswith("model.")])
    tokenizer = stored_tokenizer(config, run)
    if tokenizer is None:
        run.mkdir(parents=True, exist_ok=True)
        path = run / "tokenizer.json"
        texts = (f"{q.prompt} {answer}" for q in asked.questions for answer in dict.fromkeys(q.answers))
        train_tokenizer(texts, config.model.text.vocab_size).save(path)
        tokenizer = Tokenizer.load(path)
    return Base(options.recipe, with_vocabulary(config, tokenizer), tokenizer, None)


def _that_fit(source: QuestionSource, base: Base) -> tuple[QuestionSource, list[tuple[str, str]]]:
    """The questions that the context has room for with their answers, and (row, reason) of all others."""
    room = base.config.model.text.context_length - 2
    rows, skipped = [], list(source.skipped)
    for row, question in enumerate(source.questions):
        need = max(len(base.tokenizer.encode(f"{question.prompt} {answer}")) for answer in question.answers)
        if need <= room:
            rows.append(row)
        else:
            skipped.append((question.key, f"with its answer it has {need} tokens and the context has room for {room}"))
    if not rows:
        raise DataError(f"no question fits the context of {room} tokens; the first: {skipped[-1][1]}")
    return source.chosen(rows), skipped


def _config(base: Base, head: HeadConfig | None, data: str, samples: int, options: Options) -> Config:
    model = base.config.model if head is None else with_head(base.config.model, head)
    model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, train_patches=0))
    if options.recipe is not None:  # the model has its changes already
        options = dataclasses.replace(options, changes=tuple(c for c in options.changes if not c.startswith("model.")))
    return task_config(
        base,
        model,
        data,
        samples,
        options,
        frozen=("encoder",) if options.frozen else (),
        loss=LossConfig(contrastive_weight=0.0, captioning_weight=1.0),
        paper=options.paper,
    )


def _choices(val: QuestionSource, head: HeadConfig | None) -> tuple[str, ...] | None:
    """What questions without choices are to be answered by; None where multiple choice makes no sense."""
    if all(question.choices for question in val.questions):
        return ()
    return head.labels if head is not None and len(head.labels) <= MOST_CHOICES else None


def _rows(measured: dict[str, dict[str, Any]]) -> list[Row]:
    """One row for each way, with the first test split; more of them have rows of their own."""
    splits = list(measured)
    rows = []
    for way, of_val in measured["val"].items():
        first = measured[splits[1]][way]["figures"]["accuracy"] if len(splits) > 1 else None
        rows.append(Row(way, of_val["figures"]["accuracy"], first))
    for split in splits[2:]:
        rows += [Row(f"{way}, {split}", None, one["figures"]["accuracy"]) for way, one in measured[split].items()]
    return rows
