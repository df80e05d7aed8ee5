"""Fine-tuning: a model that knows something learns a folder of captioned pictures, and is measured before and after."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.sources import open_source, splits_of
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError
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
from opencoca.jobs.finetune_train import SCRATCH, Options, Say, begin_with, configured, train_within_memory
from opencoca.jobs.initial import MASKS
from opencoca.loading import FINETUNED, Opened, open_model
from opencoca.model.init import build
from opencoca.model.lora import merged_weights
from opencoca.model_card import Origin
from opencoca.train.machine import placement
from opencoca.train.state import TrainState

FACTS, RESULTS, REPORT = "finetune.json", "results.json", "report.html"
ALPHAS = (0.25, 0.5, 0.75, 1.0)


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
    """Fine-tunes `base` on `data` in the folder `run`, and writes the model, results.json and a report there.

    base: any name that `loading.load` takes; None is the one that this run began with, or else the newest; "scratch"
    takes only the shape and the vocabulary of that one, with new weights. An interrupted run goes on where it was.

    Raises: OpenCoCaError of each part, with the repair.
    """
    options = options or Options()
    for alpha in options.wise:
        interpolated({}, {}, alpha)  # refuses what is no share, before anything is done
    begun = _begun_with(run)
    scratch = base == SCRATCH or (base is None and begun is not None and begun.scratch)
    if scratch and (options.lora or options.wise):
        raise ConfigError("--from scratch has no weights to keep: leave out --lora and --wise, or name a model")
    named = None if base == SCRATCH else base
    opened = open_model(begun.path if named is None and begun is not None else named)
    name = _name_of(opened)
    split = _split(data, options)
    config = configured(opened, data, len(split.train), options, scratch)
    size_px = config.model.vision.image_size_px
    val = held(split.val, size_px, config.pixels)
    keep = _keep(options, size_px, config)
    original = {n: p.detach() for n, p in opened.model.named_parameters() if n != MASKS}
    if scratch:
        original = {n: p.detach() for n, p in build(config.model, config.run.seed).named_parameters()}
    begun = _Begun(name, str(opened.path.resolve()), scratch, _digest(original))
    _note(run, begun)
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
        config, run, loader, opened.tokenizer, evaluation, begin_with(config, original, scale), say
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


def _keep(options: Options, size_px: int, config: Config) -> Held | None:
    """The untouched data: what the options name, or the quickstart's validation list where it lies about."""
    if options.keep is not None:
        return held(open_source(options.keep, options.keep_split), size_px, config.pixels)
    quickstart = Path("data/openmoji")
    if (quickstart / "manifest.json").is_file():
        return held(open_source(str(quickstart), "val"), size_px, config.pixels)
    return None


def _begun_with(run: Path) -> _Begun | None:
    """What the run began with, if it has begun. Raises: CheckpointError where its note is damaged."""
    path = run / FACTS
    if not path.is_file():
        return None
    try:
        return _Begun(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove {run}, or name another --run folder") from error


def _note(run: Path, begun: _Begun) -> None:
    """Notes what the run begins with. Raises: CheckpointError where that was something else."""
    before = _begun_with(run)
    if before is not None and before.digest != begun.digest and checkpoint.latest_checkpoint(run) is not None:
        raise CheckpointError(
            f"{run} was fine-tuned from {before.base}, whose weights are not those of {begun.base}; "
            "name that one with --from, or another --run folder"
        )
    checkpoint.write_atomically(run / FACTS, json.dumps(begun._asdict(), indent=2) + "\n")


def _name_of(opened: Opened) -> str:
    """How people know the base: its hub name, or that of its folder."""
    if opened.origin is not None and opened.origin.source.startswith("hf:"):
        return opened.origin.source
    path = opened.path
    parts = [part for part in path.parts if part not in ("checkpoints", FINETUNED) and not part.startswith("step-")]
    return parts[-1] if parts else str(path)


def _digest(weights: dict[str, Tensor]) -> str:
    """A digest of weights by value."""
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
