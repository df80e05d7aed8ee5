"""What training a task's head takes, whichever the task: a base model with a new head, rates, and what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config, DataConfig, HeadConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.infer.predictor import Predictor
from opencoca.loading import FINETUNED, open_model
from opencoca.model.coca import CoCa
from opencoca.model_card import Origin
from opencoca.train.machine import placement
from opencoca.train.state import Prepare, TrainState

FACTS, RESULTS = "task.json", "results.json"
SMALL = 50_000_000  # parameters, below which a model stands, and wants, a higher rate
HEAD_RATES = {"small": 1e-3, "large": 5e-4}
BODY_FACTORS = {"small": 0.2, "large": 0.04}  # of the head's rate, for what is trained already
FEWEST_STEPS = 20
LONGEST_AVERAGE = 0.9999  # the paper's; a short run takes a shorter one

# The paper's settings (CoCa, appendix B), by command and by what is trained: for `Config.with_values`.
_SHARED = ("optim.optimizer=adafactor", "optim.clip_norm=1.0", "optim.ema_decay=0.9999", "optim.schedule=cosine")
_VISUAL = (*_SHARED, "optim.peak_lr=5e-4", 'optim.part_rates=["encoder=0.2"]')
_QUESTIONS = (*_SHARED, "optim.warmup_steps=1000", "optim.weight_decay=0.1", "loss.label_smoothing=0.0")
PAPER: dict[str, tuple[str, ...]] = {
    "imagenet-frozen": (
        *_SHARED, "optim.peak_lr=5e-4", "optim.steps=200000", "optim.warmup_steps=0", "optim.weight_decay=0.01",
        "data.batch_size=512", "data.randaugment=[2,20]", "loss.label_smoothing=0.2",
    ),
    "imagenet-tuned": (
        *_VISUAL, "optim.steps=200000", "optim.warmup_steps=0", "optim.weight_decay=0.01", "data.batch_size=512",
        "data.randaugment=[2,20]", "loss.label_smoothing=0.5",
    ),
    "vqa": (*_QUESTIONS, "optim.peak_lr=5e-4", "optim.steps=100000", "data.batch_size=64", "data.randaugment=[1,10]"),
    "snli-ve": (
        *_QUESTIONS, "optim.peak_lr=1e-3", "optim.steps=50000", "data.batch_size=128", "data.randaugment=[1,10]",
    ),
    "nlvr2": (*_QUESTIONS, "optim.peak_lr=5e-4", "optim.steps=50000", "data.batch_size=64", "data.randaugment=[0,0]"),
}  # fmt: skip
_BODY_RATES = {"vqa": 2e-5 / 5e-4, "snli-ve": 5e-5 / 1e-3, "nlvr2": 2e-5 / 5e-4}

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingOptions:
    """What may be said of every task's training; 0 leaves it to the defaults.

    changes: "section.field=value", as `Config.with_values` takes them.
    """

    epochs: float = 10.0
    steps: int = 0
    rate: float = 0.0
    batch: int = 0
    seed: int = 0
    changes: tuple[str, ...] = ()


class Base(NamedTuple):
    """What a head is put on: a model's weights by name, none for new ones, and what is known of it."""

    name: str
    config: Config
    tokenizer: Tokenizer
    weights: dict[str, Tensor] | None


class Row(NamedTuple):
    """A line of the table that a command prints: how it was reached, accuracies on val and test (None: not told)."""

    how: str
    val: float | None
    test: float | None


class Outcome(NamedTuple):
    """The table, where the model is, (key, reason) of each sample that can't be used, and all figures."""

    rows: list[Row]
    model: Path
    skipped: list[tuple[str, str]]
    results: dict[str, Any]


def line(row: Row) -> str:
    """A row of the table."""
    val, test = (f"{x:>9.1%}" if x is not None else " " * 9 for x in (row.val, row.test))
    return f"{row.how:<46}{val}{test}"


class Watched:
    """An evaluation as the training loop runs it."""

    def __init__(self, evaluation: Any, tokenizer: Tokenizer, config: Config) -> None:
        self.name = evaluation.name
        self._evaluation, self._tokenizer, self._config = evaluation, tokenizer, config

    def __call__(self, model: CoCa) -> Iterator[tuple[str, float]]:
        """Yields the figures."""
        yield from self._evaluation(Predictor(model, self._tokenizer, self._config)).figures.items()


def opened_base(name: str | None) -> tuple[Base, CoCa]:
    """A model to put a head on, by name or the newest one, and its module."""
    opened = open_model(name)
    weights = {key: parameter.detach() for key, parameter in opened.model.named_parameters()}
    return Base(str(name or opened.path), opened.config, opened.tokenizer, weights), opened.model


def with_head(model: ModelConfig, head: HeadConfig) -> ModelConfig:
    """The model with a head more; an older one of that name gives way to it."""
    return dataclasses.replace(model, heads=(*(h for h in model.heads if h.name != head.name), head))


def without_head(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights without those of a head."""
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"tasks.{name}.")}


def prepare_from(base: Base, head: str | None) -> Prepare | None:
    """Puts the base's weights into a new model, whose new head keeps those that it was initialised with."""
    if base.weights is None:
        return None
    kept = base.weights if head is None else without_head(base.weights, head)

    def prepare(model: CoCa) -> None:
        fresh = {n: p.detach() for n, p in model.named_parameters() if head and n.startswith(f"tasks.{head}.")}
        checkpoint.load_weights(model, kept | fresh, "the base model")

    return prepare


def task_config(
    base: Base,
    model: ModelConfig,
    data: str,
    samples: int,
    options: TrainingOptions,
    *,
    frozen: Sequence[str] = (),
    loss: LossConfig | None = None,
    paper: str | None = None,
) -> Config:
    """The configuration of a task's training: the base's pixels and generation, and defaults for all else.

    The head has one rate, what is trained already a lower one. paper: a key of `PAPER`, whose settings replace these.
    New weights are trained as their recipe says.

    Raises: ConfigError for changes that aren't possible.
    """
    before = base.config
    if base.weights is None:
        return _from_recipe(before, model, data, options)
    size = "small" if sum(t.numel() for t in base.weights.values()) < SMALL else "large"
    batch = options.batch or max(1, min(64, samples // 2))
    steps = options.steps or max(FEWEST_STEPS, math.ceil(options.epochs * samples / batch))
    parts = [part for part in _parts(base.weights) if part not in frozen]
    factor = _BODY_RATES.get(paper or "", BODY_FACTORS[size])
    config = Config(
        recipe=before.recipe,
        model=model,
        pixels=before.pixels,
        generation=before.generation,
        loss=loss or LossConfig(),
        optim=OptimConfig(
            steps=steps,
            peak_lr=options.rate or HEAD_RATES[size],
            part_rates=tuple(f"{part}={factor:g}" for part in parts),
            warmup_steps=min(100, steps // 10),
            schedule="cosine",
            weight_decay=0.05,
            ema_decay=round(min(LONGEST_AVERAGE, max(0.0, 1 - 20 / steps)), 4),
            frozen=tuple(frozen),
        ),
        data=DataConfig(folder=data, batch_size=batch),
        run=RunConfig(
            seed=options.seed,
            log_every_steps=max(1, min(50, steps // 20)),
            eval_every_steps=max(1, steps // 4),
            checkpoint_every_steps=max(1, steps // 4),
            tensorboard=False,
        ),
    )
    settings = PAPER[paper] if paper is not None else ()
    if frozen:
        settings = tuple(text for text in settings if not text.startswith("optim.part_rates"))
    return config.with_values([*settings, *options.changes])


def _from_recipe(recipe: Config, model: ModelConfig, data: str, options: TrainingOptions) -> Config:
    fields = {"optim.steps": options.steps, "optim.peak_lr": options.rate, "data.batch_size": options.batch}
    given = [f"{name}={value}" for name, value in fields.items() if value]
    config = dataclasses.replace(
        recipe,
        model=model,
        data=dataclasses.replace(recipe.data, folder=data),
        run=dataclasses.replace(recipe.run, seed=options.seed),
    )
    return config.with_values([*given, *options.changes])


def changes_pictures(data: DataConfig) -> bool:
    """Whether a picture looks another way in every epoch."""
    return bool(data.flip or data.max_shift_px or data.randaugment[0] or tuple(data.crop_scale) != (1.0, 1.0))


def begin(run: Path, base: Base) -> None:
    """Notes what the run begins with. Raises: CheckpointError where it began with something else."""
    path = run / FACTS
    facts = {"base": base.name, "digest": _digest(base.weights or {})}
    if path.is_file() and checkpoint.latest_checkpoint(run) is not None:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["digest"] != facts["digest"]:
            raise CheckpointError(
                f"{run} was begun with {before['base']}, whose weights are not those of {base.name}; name that one "
                "with --from, or another --run folder"
            )
    checkpoint.write_atomically(path, json.dumps(facts, indent=2) + "\n")


def predictor_of(state: TrainState, config: Config, tokenizer: Tokenizer) -> Predictor:
    """The trained model with the weights that it ships."""
    checkpoint.load_weights(state.model, {n: t.detach() for n, t in state.weights().items()}, "the moving average")
    model = state.model.to(placement(config.run)[0]).requires_grad_(False)
    return Predictor(model, tokenizer, config)


def keep(run: Path, predictor: Predictor, story: str, step: int, results: Mapping[str, Any]) -> Path:
    """Writes the model into `run`/model, where `loading.load` finds it first, and results.json."""
    weights = {name: parameter.detach() for name, parameter in predictor.model.named_parameters()}
    folder = run / FINETUNED
    facts = {"step": step, "metrics": results.get("figures", {})}
    checkpoint.save(folder, predictor.config, predictor.tokenizer, weights, None, facts, Origin(story))
    checkpoint.write_atomically(run / RESULTS, json.dumps(results, indent=2) + "\n")
    return folder


def _parts(weights: Mapping[str, Tensor]) -> list[str]:
    """The parts that have weights, but for heads."""
    return [part for part in dict.fromkeys(name.partition(".")[0] for name in weights) if part != "tasks"]


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
