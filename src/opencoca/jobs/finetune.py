"""Fine-tuning: a model that knows something learns a folder of captioned pictures, and is measured before and after."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config, DataConfig, LossConfig, OptimConfig, RunConfig
from opencoca.data.loader import PairLoader
from opencoca.data.sources import open_source, splits_of
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError, TrainingError
from opencoca.infer.predictor import Predictor
from opencoca.jobs.finetune_data import Held, Split, held, split_as_told, split_by_picture
from opencoca.jobs.finetune_measure import (
    HeldOutEvaluation,
    Measured,
    best_alpha,
    collapse,
    fitted_scale,
    interpolated,
    mean_recall,
    measure,
    unlearnt,
)
from opencoca.jobs.finetune_report import card, write_report
from opencoca.loading import FINETUNED, Opened, open_model
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.model.lora import add_lora, merged_weights
from opencoca.model_card import Origin
from opencoca.train.loop import train
from opencoca.train.machine import placement
from opencoca.train.state import Prepare, TrainState
from opencoca.train.task import Pretraining

SCRATCH = "scratch"
FACTS, RESULTS, REPORT = "finetune.json", "results.json", "report.html"
ALPHAS = (0.25, 0.5, 0.75, 1.0)
SMALL = 50_000_000  # parameters, below which a model stands, and wants, a higher rate
RATES = {"small": 4e-4, "large": 1e-5, SCRATCH: 1e-3}  # docs/LOG.md; "large" as OpenCLIP tunes its own
LORA_RATE = 5.0  # times as high: the updates begin at nothing, and there are few of them
LAYER_DECAY = 0.8  # the first layers know what all pictures have in common
FEWEST_STEPS = 50

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What may be said of a fine-tuning; 0 leaves it to the defaults.

    wise: the share of the tuned weights in what is kept, the rest being the original's. Of several, the best on the
        held-out pictures is taken; none takes it among `ALPHAS`.
    lora: rank of the low-rank updates; 0 trains whole matrices.
    val: the share of the pictures that is held out.
    keep, keep_split: data that isn't trained on, to see what the model unlearns.
    changes: "section.field=value", as `Config.with_values` takes them.
    """

    wise: tuple[float, ...] = ()
    lora: int = 0
    epochs: float = 10.0
    steps: int = 0
    rate: float = 0.0
    batch: int = 0
    val: float = 0.1
    split: str | None = None
    keep: str | None = None
    keep_split: str | None = None
    seed: int = 0
    changes: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What a fine-tuning leaves: the weights' share, figures before and after, warnings, and where the files are."""

    alpha: float
    before: dict[str, float]
    after: dict[str, float]
    model: Path
    report: Path
    warnings: list[str]
    skipped: list[tuple[str, str]]


def finetune(
    data: str, run: Path, base: str | None = None, options: Options | None = None, say: Say = print
) -> Outcome:
    """Fine-tunes `base` on `data` in the folder `run`, and writes the model, its card, results.json and a report there.

    base: any name that `loading.load` takes; None is the one that this run began with, or else the newest; "scratch"
    takes only the shape and the vocabulary of that one, with new weights. An interrupted run goes on where it was.

    Raises: OpenCoCaError of each part, with the repair.
    """
    options = options or Options()
    for alpha in options.wise:
        interpolated({}, {}, alpha)  # refuses what is no share, before anything is done
    scratch = base == SCRATCH
    if scratch and (options.lora or options.wise):
        raise ConfigError("--from scratch has no weights to keep: leave out --lora and --wise, or name a model")
    opened = open_model(_begun_with(run) if base is None or scratch else base)
    name = _name_of(opened)
    split = _split(data, options)
    config = configured(opened, data, len(split.train), options, scratch)
    size_px = config.model.vision.image_size_px
    val = held(split.val, size_px, config.pixels)
    keep = _keep(options, size_px, config)
    original = {n: p.detach() for n, p in opened.model.named_parameters()}
    if scratch:
        original = {n: p.detach() for n, p in build(config.model, config.run.seed).named_parameters()}
    begun = _Begun(name, str(opened.path.resolve()), scratch, _digest(original))
    _write_facts(run, begun)
    say(f"base: {SCRATCH if scratch else name}, {sum(t.numel() for t in original.values()) / 1e6:.1f}M parameters")
    say(f"data: {len(split.train)} pictures to train on, {len(split.val)} held out ({len(val)} measured)")
    device = placement(config.run)[0]
    bench = _Bench(config, opened.tokenizer, device, val, keep)
    before = bench.measure(original)
    say(f"before: {_line(before)}")
    seen = held(split.train, size_px, config.pixels)
    scale = fitted_scale(bench.predictor(original), seen)
    say(f"temperature: 1/{scale:.3g}, where the contrastive loss of the base is least; it was 1/{_scale(original):.3g}")
    evaluation = HeldOutEvaluation(val, opened.tokenizer, config, say)
    loader = PairLoader.from_config(config, split.train, opened.tokenizer)
    state = train_within_memory(
        config, run, loader, opened.tokenizer, evaluation, _prepare(config, original, scale), say
    )
    tuned = {n: t.detach().cpu() for n, t in merged_weights(state.weights(), config.optim.lora_alpha).items()}
    measured: dict[float, _Judged] = {}
    for alpha in (1.0,) if scratch else (options.wise or ALPHAS):
        measured[alpha] = bench.measure(interpolated(original, tuned, alpha))
        say(f"after, {alpha:g} of the tuned weights: {_line(measured[alpha])}")
    alpha = best_alpha(before.figures, {alpha: judged.figures for alpha, judged in measured.items()})
    after = measured[alpha]
    warned = collapse(after.own.captions, val), unlearnt(before.figures, after.figures)
    warnings = [warning for warning in warned if warning]
    weights = interpolated(original, tuned, alpha)
    if alpha and scale < _scale(original):  # what training began with and hardly moved suits no finished model
        weights["log_scale"] = torch.tensor([math.log(fitted_scale(bench.predictor(weights), val, _scale(original)))])
    facts = _facts(begun, data, config, split, state, options, alpha)
    results = {
        **facts,
        "val_measured": len(val),
        "val_captions": len(val.texts),
        "keep_pictures": len(keep) if keep else 0,
        "keep_captions": len(keep.texts) if keep else 0,
        "before": before.figures,
        "after": after.figures,
        "by_alpha": {f"{a:g}": judged.figures for a, judged in measured.items()},
        "warnings": warnings,
    }
    model = run / FINETUNED
    origin = Origin(f"{'trained' if scratch else f'fine-tuned from {name}'} on {Path(data).name} with OpenCoCa")
    metrics = {f"val/{n}": v for n, v in after.figures.items()}
    text = card(run.name, config, weights, origin, results)
    checkpoint.save(
        model, config, opened.tokenizer, weights, None, {"step": state.step, "metrics": metrics}, origin, text
    )
    checkpoint.write_atomically(run / RESULTS, json.dumps(results, indent=2) + "\n")
    write_report(run / REPORT, run, results, val, before.own, after.own)
    return Outcome(alpha, before.figures, after.figures, model, run / REPORT, warnings, split.skipped)


def configured(opened: Opened, data: str, pictures: int, options: Options, scratch: bool = False) -> Config:
    """The configuration of a fine-tuning: the base's model, pixels and generation, and defaults for all else.

    Raises: ConfigError for options that contradict each other.
    """
    small = sum(p.numel() for p in opened.model.parameters()) < SMALL
    rate = options.rate or RATES[SCRATCH if scratch else "small" if small else "large"] * (
        LORA_RATE if options.lora else 1.0
    )
    batch = options.batch or max(1, min(64, pictures // 2))
    steps = options.steps or max(FEWEST_STEPS, math.ceil(options.epochs * pictures / batch))
    before = opened.config
    config = Config(
        recipe=before.recipe,
        model=before.model,
        pixels=before.pixels,
        generation=before.generation,
        loss=LossConfig(),
        optim=OptimConfig(
            steps=steps,
            peak_lr=rate,
            warmup_steps=min(100, steps // 10),
            schedule="cosine",
            weight_decay=0.05,
            layer_decay=1.0 if scratch else LAYER_DECAY,
            lora_rank=options.lora,
        ),
        data=DataConfig(folder=data, batch_size=batch),
        run=RunConfig(
            seed=options.seed,
            log_every_steps=max(1, min(20, steps // 20)),
            eval_every_steps=max(1, steps // 4),
            checkpoint_every_steps=max(1, steps // 4),
            tensorboard=False,
        ),
    )
    return config.with_values(options.changes)


def train_within_memory(
    config: Config,
    run: Path,
    loader: PairLoader,
    tokenizer: Tokenizer,
    evaluation: HeldOutEvaluation,
    prepare: Prepare,
    say: Say,
) -> TrainState:
    """`train`, from the latest checkpoint with half the micro-batch each time that memory runs out.

    Raises: TrainingError where one pair at a time doesn't fit either.
    """
    micro = config.run.micro_batch
    while True:
        now = dataclasses.replace(config, run=dataclasses.replace(config.run, micro_batch=micro))
        try:
            return train(now, run, Pretraining(now.model, now.loss), loader, tokenizer, [evaluation], prepare)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()  # the failed step's tensors hung on the error, which is gone here
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before = micro or config.data.batch_size
        if before == 1:
            raise TrainingError("memory runs out with one pair at a time; take a smaller model, or --lora 8")
        micro = before // 2
        say(f"memory ran out with {before} pairs at a time; going on with {micro}, which changes no result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


class _Begun(NamedTuple):
    """What a run began with."""

    base: str
    path: str
    scratch: bool
    digest: str


class _Judged(NamedTuple):
    """Measured on the held-out pictures; `figures` tells of the untouched data too, as "keep" and "keep/..."."""

    own: Measured
    figures: dict[str, float]


class _Bench(NamedTuple):
    """Where weights are measured."""

    config: Config
    tokenizer: Tokenizer
    device: torch.device
    val: Held
    keep: Held | None

    def predictor(self, weights: dict[str, Tensor]) -> Predictor:
        model = build(self.config.model, 0)
        checkpoint.load_weights(model, weights, "the weights")
        return Predictor(model.to(self.device).requires_grad_(False), self.tokenizer, self.config)

    def measure(self, weights: dict[str, Tensor]) -> _Judged:
        predictor = self.predictor(weights)
        own = measure(predictor, self.val)
        figures = dict(own.figures)
        if self.keep is not None:
            kept = measure(predictor, self.keep, captions=False).figures
            figures |= {"keep": mean_recall(kept)} | {f"keep/{name}": value for name, value in kept.items()}
        return _Judged(own, figures)


def _split(data: str, options: Options) -> Split:
    """The data's own train and val, where it tells them and none was asked for; else some pictures are held out."""
    source = open_source(data, options.split)
    if options.split is None and {"train", "val"} <= set(splits_of(source)):
        return split_as_told(open_source(data, "train"), open_source(data, "val"))
    return split_by_picture(source, options.val)


def _scale(weights: dict[str, Tensor]) -> float:
    return weights["log_scale"].exp().item()


def _prepare(config: Config, original: dict[str, Tensor], scale: float) -> Prepare:
    def prepare(model: CoCa) -> None:
        checkpoint.load_weights(model, {**original, "log_scale": torch.tensor([math.log(scale)])}, "the base model")
        if config.optim.lora_rank:
            add_lora(model, config.optim.lora_rank, config.optim.lora_alpha, config.run.seed)

    return prepare


def _keep(options: Options, size_px: int, config: Config) -> Held | None:
    """The untouched data: what the options name, or the quickstart's validation list where it lies about."""
    if options.keep is not None:
        return held(open_source(options.keep, options.keep_split), size_px, config.pixels)
    quickstart = Path("data/openmoji")
    if (quickstart / "manifest.json").is_file():
        return held(open_source(str(quickstart), "val"), size_px, config.pixels)
    return None


def _begun_with(run: Path) -> Path | None:
    """The folder of the model that the run began with, if it has begun."""
    path = run / FACTS
    return Path(json.loads(path.read_text(encoding="utf-8"))["path"]) if path.is_file() else None


def _write_facts(run: Path, begun: _Begun) -> None:
    """Notes what the run began with. Raises: CheckpointError where that was something else."""
    path = run / FACTS
    if path.is_file() and checkpoint.latest_checkpoint(run) is not None:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["digest"] != begun.digest:
            raise CheckpointError(
                f"{run} was fine-tuned from {before['base']}, whose weights are not those of {begun.base}; "
                "name that one with --from, or another --run folder"
            )
    checkpoint.write_atomically(path, json.dumps(begun._asdict(), indent=2) + "\n")


def _name_of(opened: Opened) -> str:
    """How people know the base: its hub name, or that of its folder."""
    if opened.origin is not None and opened.origin.source.startswith("hf:"):
        return opened.origin.source
    path = opened.path
    parts = [part for part in path.parts if part not in ("checkpoints", FINETUNED) and not part.startswith("step-")]
    return parts[-1] if parts else str(path)


def _digest(weights: dict[str, Tensor]) -> str:
    """A digest of weights by value."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _facts(
    begun: _Begun, data: str, config: Config, split: Split, state: TrainState, options: Options, alpha: float
) -> dict[str, Any]:
    return {
        "base": SCRATCH if begun.scratch else begun.base,
        "data": Path(data).name,
        "train_pictures": len(split.train),
        "val_pictures": len(split.val),
        "skipped": len(split.skipped),
        "steps": state.step,
        "batch_size": config.data.batch_size,
        "peak_lr": config.optim.peak_lr,
        "lora_rank": options.lora,
        "alpha": alpha,
        "seconds": round(state.seconds, 1),
        "config": config.to_dict(),
    }


def _line(judged: _Judged) -> str:
    """The figures in a line."""
    figures = judged.figures
    kept = f", untouched data R@1 {figures['keep/i2t_recall@1']:.1%}" if "keep" in figures else ""
    return (
        f"CIDEr-D {figures['cider_d']:.3f}, R@1 {figures['i2t_recall@1']:.1%} and {figures['t2i_recall@1']:.1%}{kept}"
    )
