"""One setting with one seed: its run folder, its stages, and result.json when all is done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from opencoca import checkpoint
from opencoca.config import Config, HeadConfig
from opencoca.data.loader import PairLoader
from opencoca.data.sources import Source, open_source
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError, DataError
from opencoca.eval.held_out import HeldOut, load_held_out
from opencoca.eval.openmoji import attributes
from opencoca.eval.statistics import digest
from opencoca.files import write_atomically
from opencoca.jobs.ablate import variants
from opencoca.jobs.ablate.cost import pair_operations, stage_steps
from opencoca.jobs.ablate.gradients import GradientAgreement
from opencoca.jobs.ablate.labels import Labelled
from opencoca.jobs.ablate.measure import measure, probes
from opencoca.jobs.ablate.objectives import task_of
from opencoca.jobs.ablate.settings import BASE, Setting, base
from opencoca.jobs.pretrain import stored_tokenizer, with_vocabulary
from opencoca.jobs.task_runs import predictor_of
from opencoca.train.evals import Evaluation
from opencoca.train.loop import train
from opencoca.train.state import TrainState
from opencoca.train.task import Task
from opencoca.train.tasks.recognition import unread_parts
from opencoca.train.tasks.targets import Targets

LISTS = ("test_pictures", "test_combinations", "test_concepts")
RESULT = "result.json"
HEAD = "label"
PROBES_OF_GRADIENTS = 10


class Ready(NamedTuple):
    """A stage, ready to be trained."""

    config: Config
    task: Task
    loader: PairLoader
    prepare: Callable[[nn.Module], None]


class Lab:
    """The data that all runs share, opened once."""

    def __init__(self, folder: Path, steps: int) -> None:
        """Raises: DataError where OpenMoji's shards aren't there; ConfigError for a tokenizer that isn't."""
        if not (folder / "manifest.json").is_file():
            raise DataError(
                f"{folder} has no manifest.json, so no OpenMoji pictures; `coca quickstart --data {folder}` makes them"
            )
        self.config = base(str(folder), steps)
        self.train: Source = open_source(folder, self.config.data.train_split)
        tokenizer = stored_tokenizer(self.config, None)
        assert tokenizer is not None
        self.tokenizer: Tokenizer = tokenizer
        self.config = with_vocabulary(self.config, tokenizer)
        size_px, pixels = self.config.model.vision.image_size_px, self.config.pixels
        self.val = load_held_out(folder, self.config.data.val_split, size_px, pixels)
        self.lists: list[HeldOut] = [load_held_out(folder, name, size_px, pixels) for name in LISTS]
        self._labelled: Labelled | None = None
        self._lengths: dict[bool, list[int]] = {}

    @property
    def labelled(self) -> Labelled:
        """The training pictures that have labels."""
        if self._labelled is None:
            self._labelled = Labelled(self.train)
        return self._labelled

    def source(self, setting: Setting) -> Source:
        """What a setting trains on."""
        return self.labelled if setting.on_labels else self.train

    def lengths(self, setting: Setting) -> list[int]:
        """Tokens of each training caption, start and end counted."""
        if setting.on_labels not in self._lengths:
            source = self.source(setting)
            texts = [source[i].caption for i in range(len(source))]
            valid = self.tokenizer.encode_batch(texts, self.config.model.text.context_length)[1]
            self._lengths[setting.on_labels] = valid.sum(dim=1).tolist()
        return self._lengths[setting.on_labels]

    def config_of(self, setting: Setting, seed: int) -> Config:
        """A setting's configuration."""
        config = self.config.with_values([*setting.changes, f"run.seed={seed}"])
        if any(stage.objective == "labels" for stage in setting.stages):
            head = HeadConfig(HEAD, self.labelled.names)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, heads=(head,)))
        return config

    def operations(self, setting: Setting) -> list[float]:
        """Operations per pair of each stage."""
        config, lengths = self.config_of(setting, 0), self.lengths(setting)
        return [pair_operations(setting, stage, config.model, lengths) for stage in setting.stages]

    def steps(self, setting: Setting) -> list[int]:
        """Steps of each stage."""
        [joint] = self.operations(BASE) if len(setting.stages) > 1 else [0.0]
        return stage_steps(setting, self.config_of(setting, 0), joint, self.lengths(setting))

    def identity(self, setting: Setting, seed: int) -> str:
        """Tells what a result belongs to: configuration, stages and data.

        Of the configuration, fields that differ from their defaults count, so that new options change nothing.
        """
        config = _chosen(self.config_of(setting, seed))
        for free in ("run", "recipe"):
            config.pop(free, None)
        config["data"].pop("folder")
        parts = [json.dumps(config, sort_keys=True), seed, setting.variant, setting.reduction, self.steps(setting)]
        parts += [[(stage.objective, stage.frozen) for stage in setting.stages], setting.on_labels]
        return digest([*parts, self.source(setting).fingerprint])

    def ready(self, setting: Setting, seed: int, number: int, before: TrainState | None = None) -> Ready:
        """A stage of a run; `before` is how the stage in front of it ended."""
        stage, steps = setting.stages[number], self.steps(setting)[number]
        config = self.config_of(setting, seed)
        optim = dataclasses.replace(config.optim, steps=steps, warmup_steps=min(config.optim.warmup_steps, steps // 5))
        optim = dataclasses.replace(optim, frozen=stage.frozen)
        run = config.run
        if setting == BASE:
            run = dataclasses.replace(run, eval_every_steps=max(1, steps // PROBES_OF_GRADIENTS))
        config = dataclasses.replace(config, optim=optim, run=run)
        targets = None
        if stage.objective == "labels":
            targets = Targets.single(self.labelled.labels, len(self.labelled.names))
        weights = None if before is None else {n: p.detach().clone() for n, p in before.weights().items()}

        def prepare(model: Any) -> None:
            variants.apply(setting.variant, model, seed)
            if stage.objective == "labels":
                for name in unread_parts(model):
                    for inner, parameter in model.named_parameters(remove_duplicate=False):
                        if inner == name or inner.startswith(f"{name}."):
                            parameter.requires_grad_(False)
            if weights is not None:
                checkpoint.load_weights(model, weights, "the stage before")

        loader = PairLoader.from_config(config, self.source(setting), self.tokenizer)
        return Ready(config, task_of(stage.objective, setting.reduction, config, targets), loader, prepare)


def _chosen(config: Any) -> dict[str, Any]:
    """A configuration's fields that differ from their defaults, as nested dicts."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _chosen(value)
        elif value != field.default:
            found[field.name] = str(value)
    return found


def run_folder(out: Path, setting: Setting, seed: int) -> Path:
    """Where a run is kept."""
    return out / "runs" / setting.key / f"seed-{seed}"


def finished(out: Path, setting: Setting, seed: int, lab: Lab) -> dict[str, Any] | None:
    """The result of a run that is done, else None.

    Raises: ConfigError where it was made with other settings or data.
    """
    path = run_folder(out, setting, seed) / RESULT
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["identity"] != lab.identity(setting, seed):
        raise ConfigError(
            f"{path} was made with other steps ({result['steps']} instead of {lab.steps(setting)}), settings or data; "
            "give the same ones again, or another --out folder"
        )
    return result


def run(out: Path, setting: Setting, seed: int, lab: Lab) -> dict[str, Any]:
    """Trains and measures, from where an earlier call got to, and writes result.json."""
    folder = run_folder(out, setting, seed)
    state, seconds = None, 0.0
    for number, stage in enumerate(setting.stages):
        ready = lab.ready(setting, seed, number, state)
        evaluations: list[Evaluation] = []
        if ready.config.run.eval_every_steps:
            evaluations.append(GradientAgreement(ready.loader.batch(0), ready.config))
        at = folder / f"stage-{number + 1}-{stage.objective}" if len(setting.stages) > 1 else folder
        state = train(ready.config, at, ready.task, ready.loader, lab.tokenizer, evaluations, ready.prepare)
        seconds += state.seconds
    assert state is not None
    config = lab.config_of(setting, seed)
    predictor = predictor_of(state, config, lab.tokenizer)
    if setting.on_labels:
        figures = probes(predictor, lab.train, lab.val, lab.lists, lab.labelled.numbers)
    else:
        figures = measure(predictor, setting, lab.lists, attributes())
    operations, steps = lab.operations(setting), lab.steps(setting)
    result = {
        "setting": setting.key,
        "seed": seed,
        "identity": lab.identity(setting, seed),
        "steps": steps,
        "pairs": sum(steps) * config.data.batch_size,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "operations_per_pair": operations,
        "operations": sum(o * s for o, s in zip(operations, steps, strict=True)) * config.data.batch_size,
        "train_seconds": round(seconds, 2),
        "figures": {name: round(value, 6) for name, value in figures.items()},
        "gradients": gradients_of(folder) if setting == BASE else [],
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def gradients_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log that say how the gradients agree."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    for row in rows:
        values = {name.removeprefix("gradients/"): v for name, v in row.items() if name.startswith("gradients/")}
        if values:
            found.append({"step": row["step"], **{name: round(v, 5) for name, v in values.items()}})
    return found


def one_step(lab: Lab, setting: Setting, number: int = 0) -> Callable[[], None]:
    """Forward and backward passes of a stage on one batch that stays the same, for measuring time."""
    from opencoca.data.pixels import normalised
    from opencoca.model.init import build

    ready = lab.ready(setting, 0, number)
    model = build(ready.config.model)
    ready.prepare(model)
    batch = ready.loader.batch(0)
    batch = batch._replace(pixels=normalised(batch.pixels, ready.config.pixels))
    ready.loader.close()
    for name, parameter in model.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in setting.stages[number].frozen):
            parameter.requires_grad_(False)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        ready.task.loss(model, batch).total.backward()

    return step
