"""Evaluations from model names to a report: what `coca eval --suite` does."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opencoca.errors import DataError
from opencoca.eval.registry import Data, Entry, Options
from opencoca.eval.results import COUNTS, EvaluationResult, skipped_count
from opencoca.eval.run import ModelResults, intervals, measure, read_results
from opencoca.files import write_atomically
from opencoca.jobs.evaluation_names import shown_name
from opencoca.jobs.evaluation_plots import bands, charts, grids
from opencoca.loading import load
from opencoca.report import evaluation as page
from opencoca.report.markup import count

SHOWN_TEMPLATES = 2


def evaluate(
    model: str | None,
    others: Sequence[str],
    entries: Mapping[str, Entry],
    data: Data,
    options: Options,
    say: Callable[[str], None],
) -> list[ModelResults]:
    """The results of a model and of those it is compared with: models by name, or results files (.json).

    Raises: DataError if nothing could be measured, with what to give.
    """
    outcomes: list[ModelResults] = []
    for number, name in enumerate([model, *others]):
        if number and name is not None and name.endswith(".json") and Path(name).is_file():
            outcomes += read_results(Path(name))
            continue
        say(f"{name or 'the newest model'}:")
        predictor = load(name)
        outcomes.append(measure(name or "newest", predictor, entries, data, options, say))
        if number == 0 and not outcomes[0].results:
            for evaluation, reason in outcomes[0].not_measured.items():
                say(f"{evaluation}: {reason}")
            raise DataError("nothing was measured; give data as the lines above say")
    return _told_apart(outcomes)


def _told_apart(outcomes: list[ModelResults]) -> list[ModelResults]:
    """The outcomes with names that differ, even where one model was measured twice."""
    seen: dict[str, int] = {}
    for outcome in outcomes:
        seen[outcome.model] = seen.get(outcome.model, 0) + 1
        if seen[outcome.model] > 1:
            outcome.model = f"{outcome.model} ({seen[outcome.model]})"
    return outcomes


def write_report(path: Path, content: Mapping[str, Any], outcomes: Sequence[ModelResults]) -> Path:
    """Writes the page of what `run.report` gives."""
    write_atomically(path, page.render(as_page(content, outcomes)))
    return path


def as_page(content: Mapping[str, Any], outcomes: Sequence[ModelResults]) -> page.EvaluationPage:
    """The page's data: a table per evaluation that any model has."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.results))
    tables = [_table(name, outcomes, content["comparisons"]) for name in names]
    missing = [(name, reason.removeprefix("not measured: ")) for name, reason in not_measured(outcomes)]
    missing += [
        (f"{comparison['other']}, {name}", reason)
        for comparison in content["comparisons"]
        for name, reason in comparison["not_compared"].items()
    ]
    missing += [
        (f"{name}, {metric}", reason)
        for name, result in outcomes[0].results.items()
        for metric, reason in result.facts.get("not_measured", {}).items()
    ]
    left_out = [
        (f"{outcome.model}, {name}", _skipped_line(result))
        for outcome in outcomes
        for name, result in outcome.results.items()
        if skipped_count(result)
    ]
    about: list[tuple[str, str]] = []
    for outcome in outcomes:
        facts, prefix = outcome.facts, f"{outcome.model}: " if len(outcomes) > 1 else ""
        for label, value in (("parameters", facts.get("parameters")), ("weights", facts.get("fingerprint"))):
            if value is not None:
                about.append((prefix + label, f"{value / 1e6:.1f}M" if isinstance(value, int) else str(value)[:16]))
        if isinstance(pixels := facts.get("preprocessing"), dict):
            about.append((f"{prefix}picture size", f"{pixels.get('image_size_px', '?')} px"))
        for label, value in facts.get("means", {}).items():
            about.append((prefix + label, f"{value:.1%}"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    ours = outcomes[0]
    against = f" against {', '.join(outcome.model for outcome in outcomes[1:])}" if outcomes[1:] else ""
    settings = content["settings"]
    return page.EvaluationPage(
        title=f"{ours.model}, evaluated",
        subtitle=[
            f"{count(len(ours.results), 'evaluation')} of the suite “{content['suite']}”{against}, {today}.",
            *([f"Only {settings['limit']} samples of each: a trial, no result."] if settings.get("limit") else []),
        ],
        models=[outcome.model for outcome in outcomes],
        tables=tables,
        missing=missing,
        left_out=left_out,
        about=about,
        method=[
            f"Intervals are percentiles of {settings['resamples']:,} bootstrap resamples of the samples "
            f"({settings['confidence']:.0%}). Figures that are no mean over samples, such as BLEU of a set, have none.",
            "They cover the choice of samples, and not the luck of training: another seed of the same recipe may "
            "differ by more.",
            "A split digest tells which samples with which truths were measured; figures with different digests don't "
            "compare.",
        ],
    )


def not_measured(outcomes: Sequence[ModelResults]) -> list[tuple[str, str]]:
    """What wasn't measured and why, once where it is so for every model, else with the model's name."""
    pairs = dict.fromkeys(pair for outcome in outcomes for pair in outcome.not_measured.items())
    rows = []
    for name, reason in pairs:
        whose = [outcome.model for outcome in outcomes if outcome.not_measured.get(name) == reason]
        nobody = not any(name in outcome.results for outcome in outcomes)
        same = all(outcome.not_measured.get(name, reason) == reason for outcome in outcomes)
        rows.append((name if nobody and same else f"{name} ({', '.join(whose)})", reason))
    return rows


def _table(name: str, outcomes: Sequence[ModelResults], comparisons: Sequence[Mapping[str, Any]]) -> page.Table:
    results = [outcome.results.get(name) for outcome in outcomes]
    first = next(result for result in results if result is not None)
    known = [metric for result in results if result is not None for metric in result.figures]
    metrics = list(dict.fromkeys([first.headline, *known]))
    bounds = [{} if result is None else intervals(result) for result in results]
    rows = []
    for metric in metrics:
        factor, unit = (1.0, "") if metric.startswith(COUNTS) or not _is_fraction(metric, results) else (100.0, "%")
        cells = []
        for result, found in zip(results, bounds, strict=True):
            value = None if result is None else result.figures.get(metric)
            low, high = found.get(metric, (None, None))
            cells.append(page.Cell(*(None if one is None else factor * one for one in (value, low, high))))
        differences = [_difference(comparison, name, metric, factor) for comparison in comparisons]
        chance = first.facts.get("chance") if metric == first.headline else None
        shown = None if chance is None else factor * float(chance)
        rows.append(page.Row(shown_name(metric), unit, cells, differences, shown, headline=metric == first.headline))
    measured = [(outcome.model, outcome.results[name].facts) for outcome in outcomes if name in outcome.results]
    return page.Table(name, _line(first), rows, _facts(first), charts(measured), bands(measured), grids(measured))


def _is_fraction(metric: str, results: Sequence[EvaluationResult | None]) -> bool:
    return all(-1 <= r.figures[metric] <= 1 for r in results if r is not None and metric in r.figures)


def _difference(comparison: Mapping[str, Any], name: str, metric: str, factor: float) -> page.Difference | None:
    for row in comparison["rows"]:
        if (row["evaluation"], row["metric"]) == (name, metric):
            low, high = row["interval"]
            note = "" if row["same_split"] else f"on the {row['samples']:,} samples both have; their splits differ"
            p = row.get("p_holm", row["p"])
            return page.Difference(factor * row["difference"], factor * low, factor * high, p, note)
    return None


def _line(result: EvaluationResult) -> str:
    facts = result.facts
    parts = [str(facts["what"])] if facts.get("what") else []
    parts += [count(int(facts["samples"]), "sample")] if "samples" in facts else []
    parts += [
        f"{facts[key]:,} {key}" for key in ("classes", "captions", "references") if isinstance(facts.get(key), int)
    ]
    parts += [f"split {facts['split']}"] if facts.get("split") else []
    parts += [f"digest {facts['split_digest']}"] if facts.get("split_digest") else []
    parts += [f"{facts['seconds']} s"] if "seconds" in facts else []
    return ", ".join(parts)


def _facts(result: EvaluationResult) -> list[tuple[str, str]]:
    facts, shown = result.facts, []
    if templates := facts.get("templates"):
        more = f" and {len(templates) - SHOWN_TEMPLATES} more" if len(templates) > SHOWN_TEMPLATES else ""
        shown.append(("templates", "; ".join(templates[:SHOWN_TEMPLATES]) + more))
    if duplicates := facts.get("duplicates"):
        shown.append(("duplicates", "; ".join(f"{key}: {value}" for key, value in duplicates.items())))
    if hardest := facts.get("hardest_classes"):
        named = [f"{row['class']} {row['recall']:.0%}" for row in hardest[:5] if row["recall"] < 1]
        shown += [("hardest classes", ", ".join(named))] if named else []
    if domains := facts.get("domains"):
        shown.append(("domains", ", ".join(f"{key}: {value}" for key, value in domains.items())))
    return shown


def _skipped_line(result: EvaluationResult) -> str:
    skipped = result.facts["skipped"]
    if not isinstance(skipped, dict):
        return f"{skipped_count(result)} left out"
    first = skipped.get("first", [])
    shown = "; ".join(first[:3]) + ("; ..." if skipped_count(result) > 3 else "")
    return f"{skipped_count(result)}: {shown}"
