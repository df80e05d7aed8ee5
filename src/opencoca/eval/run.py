"""Evaluations run one after the other on one or more models, with intervals, paired tests and what was not measured."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opencoca.errors import CheckpointError, ConfigError, DataError
from opencoca.eval.cache import Cache, fingerprint
from opencoca.eval.registry import MEANS, Data, Entry, Options, make, missing
from opencoca.eval.results import Evaluation, EvaluationResult, finite_or_none, read_json, skipped_count
from opencoca.eval.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval, compare, holm
from opencoca.files import write_atomically
from opencoca.infer.predictor import Predictor

FORMAT, VERSION = "opencoca-results", 1
Say = Callable[[str], None]


@dataclass
class ModelResults:
    """What one model reached: its results by name, why others are missing, and what the model is."""

    model: str
    results: dict[str, EvaluationResult] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def measure(
    model: str,
    predictor: Predictor,
    entries: Mapping[str, Entry],
    data: Data,
    options: Options,
    say: Say = lambda _: None,
) -> ModelResults:
    """Every evaluation whose data are there; where data can't be used, the reason is listed, and the rest run."""
    vision = predictor.config.model.vision
    outcome = ModelResults(model)
    outcome.facts = {
        "fingerprint": fingerprint(predictor),
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "preprocessing": {"image_size_px": vision.image_size_px, **dataclasses.asdict(predictor.config.pixels)},
        "device": str(predictor.device),
    }
    for name, entry in entries.items():
        reason = missing(entry, data)
        if reason:
            outcome.not_measured[name] = reason
            continue
        began = time.perf_counter()
        try:
            result, kept = _kept_or_run(make(name, data, options), predictor, options.cache)
        except (DataError, ConfigError) as error:
            outcome.not_measured[name] = f"not measured: {error}"
            say(f"{name}: not measured: {error}")
            continue
        outcome.results[name] = result
        skipped = f", {skipped_count(result)} skipped" if skipped_count(result) else ""
        how = "kept from before" if kept else f"{time.perf_counter() - began:.1f} s"
        say(f"{name}: {result.headline} {result.figures[result.headline]:.4f} ({how}{skipped})")
    for mean, parts in MEANS.items():
        if not any(part in entries for part in parts):
            continue
        there = [part for part in parts if part in outcome.results]
        if len(there) == len(parts):
            outcome.facts.setdefault("means", {})[mean] = sum(
                outcome.results[part].figures[outcome.results[part].headline] for part in parts
            ) / len(parts)
        else:
            lacking = ", ".join(part for part in parts if part not in there)
            outcome.not_measured[mean] = f"not measured: it needs {lacking} too"
    return outcome


def _kept_or_run(evaluation: Evaluation, predictor: Predictor, cache: Cache) -> tuple[EvaluationResult, bool]:
    """The result, and whether it was kept from an earlier run with the same model, data and settings."""
    key = getattr(evaluation, "key", None)
    generation = repr(getattr(predictor.config, "generation", None))
    place = cache.place("result", fingerprint(predictor), generation, evaluation.name, key) if key else None
    file = place.with_suffix(".json") if place else None
    if file and file.is_file():
        try:
            return EvaluationResult.from_json(read_json(file), file), True
        except DataError:
            pass  # damaged, or of another version: measured again
    result = evaluation(predictor)
    if file:
        write_atomically(file, json.dumps(result.to_json()))
    return result, False


def report(outcomes: Sequence[ModelResults], suite: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One JSON value with all of it: the first model's results, and each other's compared with them, pair by pair."""
    ours, *others = outcomes
    return {
        "format": FORMAT,
        "version": VERSION,
        "suite": suite,
        "settings": {"confidence": CONFIDENCE, "resamples": RESAMPLES, **settings},
        "models": [_of_model(outcome) for outcome in outcomes],
        "comparisons": [_comparison(ours, other) for other in others],
    }


def _of_model(outcome: ModelResults) -> dict[str, Any]:
    return {
        "model": outcome.model,
        **outcome.facts,
        "evaluations": [described(result) for result in outcome.results.values()],
        "not_measured": outcome.not_measured,
    }


def described(result: EvaluationResult) -> dict[str, Any]:
    """A result with the interval of each figure that is a mean over samples."""
    content = result.to_json()
    content["intervals"] = {key: list(interval) for key, interval in intervals(result).items()}
    return content


def intervals(result: EvaluationResult) -> dict[str, tuple[float, float]]:
    """The bootstrap interval of each figure that is the mean of its per-sample values."""
    found = {}
    for metric, values in result.per_sample.items():
        figure = result.figures.get(metric)
        known = values[values.isfinite()]
        if (
            figure is None
            or not len(known)
            or not math.isclose(float(known.mean()), figure, rel_tol=1e-5, abs_tol=1e-7)
        ):
            continue
        found[metric] = tuple(bootstrap_interval(known))
    return found


def _comparison(ours: ModelResults, other: ModelResults) -> dict[str, Any]:
    """Every metric that both models have on samples of the same names; p also by Holm over the headlines."""
    rows, unpaired = [], {}
    for name, result in ours.results.items():
        theirs = other.results.get(name)
        if theirs is None:
            unpaired[name] = f"{other.model} has no result of it"
            continue
        digests = {one.facts.get("split_digest") for one in (result, theirs)}
        order = {sample: row for row, sample in enumerate(theirs.sample_ids)}
        shared = [(row, order[sample]) for row, sample in enumerate(result.sample_ids) if sample in order]
        if not shared:
            unpaired[name] = "the two have no sample in common"
            continue
        left, right = (list(side) for side in zip(*shared, strict=True))
        for metric in result.per_sample:
            if metric not in theirs.per_sample:
                continue
            a, b = result.per_sample[metric][left], theirs.per_sample[metric][right]
            both = a.isfinite() & b.isfinite()
            if not both.any():
                continue
            found = compare(a[both], b[both])
            rows.append(
                {
                    "evaluation": name,
                    "metric": metric,
                    "headline": metric == result.headline,
                    "difference": found.difference,
                    "interval": list(found.interval),
                    "p": found.p,
                    "samples": found.samples,
                    "same_split": len(digests) == 1,
                }
            )
    headlines = [row for row in rows if row["headline"]]
    for row, adjusted in zip(headlines, holm([row["p"] for row in headlines]), strict=True):
        row["p_holm"] = adjusted
    return {"model": ours.model, "other": other.model, "rows": rows, "not_compared": unpaired}


def read_results(path: Path) -> list[ModelResults]:
    """The models in a results file: what `coca eval --json` wrote, or a peer's (`benchmarks/peer_results.py`).

    Raises: DataError for another file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(f"{path} holds no {FORMAT} of version {VERSION}; write it by `coca eval --json {path.name}`")
    try:
        outcomes = []
        for model in content["models"]:
            results = [EvaluationResult.from_json(one, path) for one in model["evaluations"]]
            facts = {k: v for k, v in model.items() if k not in ("model", "evaluations", "not_measured")}
            named = {one.name: one for one in results}
            outcomes.append(ModelResults(str(model["model"]), named, dict(model.get("not_measured", {})), facts))
        return outcomes
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); write it again") from error


def checked_json(content: dict[str, Any]) -> str:
    """The report as JSON text; numbers that aren't finite are null, since JSON has none."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return finite_or_none(value)
        if isinstance(value, Mapping):
            return {str(key): clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    try:
        return json.dumps(clean(content), indent=1, allow_nan=False) + "\n"
    except TypeError as error:
        raise CheckpointError(f"a fact of an evaluation can't be written as JSON ({error}); report it") from error
