"""The results of all finished runs as one: mean and range over seeds, differences paired by seed, costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opencoca.errors import DataError
from opencoca.files import write_atomically
from opencoca.jobs.ablate.settings import BASE, CONTRASTIVE, TABLES, Row, Table

RESULT, RESULTS, TIMING, REPORT = "result.json", "results.json", "timing.json", "report.html"
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, by degrees of freedom from 1 on
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]  # results by setting and seed


def read_runs(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The results of the finished runs in `out`.

    Raises: DataError for a result.json that isn't one.
    """
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((out / "runs").glob(f"*/seed-*/{RESULT}")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            runs.setdefault(result["setting"], {})[result["seed"]] = result
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, and `coca ablate` measures that run again"
            ) from None
    return {setting: dict(sorted(of.items())) for setting, of in runs.items()}


def read_timing(out: Path) -> dict[str, float]:
    """Seconds of a step by SETTING/STAGE, as far as they were measured."""
    path = out / TIMING
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_timing(out: Path, seconds: Mapping[str, float]) -> None:
    """Keeps the seconds of steps."""
    write_atomically(out / TIMING, json.dumps({k: round(v, 5) for k, v in seconds.items()}, indent=2) + "\n")


def gather(runs: Runs, timing: Mapping[str, float], tables: Sequence[Table] | None = None) -> dict[str, Any]:
    """All tables with what is there of them: per row and measure the seeds' values, their mean, least and greatest.

    `less_reference` is the difference from the table's reference row, seed by seed; `cost` counts operations in units
    of the contrastive-only training, as the paper does, or of CoCa's where that wasn't trained.
    """
    tables = list(TABLES.values()) if tables is None else tables
    unit = CONTRASTIVE.key if runs.get(CONTRASTIVE.key) else BASE.key
    found: dict[str, Any] = {"cost_unit": unit, "tables": {}, "gradients": _gradients(runs.get(BASE.key, {}))}
    for table in tables:
        reference = runs.get(table.rows[table.reference].setting.key, {})
        rows = [_row(row, table, runs, reference, unit, timing) for row in table.rows]
        found["tables"][table.key] = {
            "title": table.title,
            "question": table.question,
            "paper_columns": list(table.paper_columns),
            "reference": table.rows[table.reference].title,
            "notes": list(table.notes),
            "rows": rows,
        }
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Values with their mean, least and greatest."""
    return {"values": list(values), "mean": statistics.fmean(values), "least": min(values), "greatest": max(values)}


def paired(own: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """The differences of the seeds that both have, with the 95% interval of their mean (Student's t; None for one)."""
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return None
    differences = [own[seed] - other[seed] for seed in shared]
    told = {**spread(differences), "seeds": shared, "interval": None}
    if len(shared) > 1:
        reach = T_95[min(len(shared) - 1, len(T_95)) - 1] * statistics.stdev(differences) / len(shared) ** 0.5
        told["interval"] = [told["mean"] - reach, told["mean"] + reach]
    return told


def _row(
    row: Row, table: Table, runs: Runs, reference: Mapping[int, Mapping], unit: str, timing: Mapping[str, float]
) -> dict[str, Any]:
    own = runs.get(row.setting.key, {})
    told: dict[str, Any] = {
        "title": row.title,
        "setting": row.setting.key,
        "note": row.note,
        "paper": list(row.paper),
        "seeds": list(own),
        "measures": {},
    }
    for name in table.measures:
        values = _values(own, name)
        if values:
            is_reference = row.setting == table.rows[table.reference].setting
            told["measures"][name] = {
                **spread(list(values.values())),
                "less_reference": None if is_reference else paired(values, _values(reference, name)),
            }
    if own:
        one = next(iter(own.values()))
        per_pair = one["operations"] / one["pairs"]
        told |= {"steps": one["steps"], "parameters": one["parameters"], "operations": one["operations"]}
        if units := runs.get(unit):
            of_unit = next(iter(units.values()))
            told["cost"] = {
                "step": per_pair / (of_unit["operations"] / of_unit["pairs"]),
                "training": one["operations"] / of_unit["operations"],
            }
        seconds = _seconds(row.setting.key, one["steps"], timing)
        unit_seconds = _seconds(unit, [1], timing)
        if seconds is not None:
            told["seconds_per_step"] = round(seconds, 5)
            if unit_seconds:
                told["cost_by_time"] = seconds / unit_seconds
    return told


def _values(of: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    return {seed: result["figures"][name] for seed, result in of.items() if name in result["figures"]}


def _seconds(setting: str, steps: Sequence[int], timing: Mapping[str, float]) -> float | None:
    """Mean seconds of a step over all stages, if they were all measured."""
    known = [timing.get(f"{setting}/{number}") for number in range(len(steps))]
    if any(each is None for each in known):
        return None
    return sum(s * count for s, count in zip(known, steps, strict=True) if s is not None) / sum(steps)


def _gradients(of: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each step that all seeds have: each figure's values over the seeds."""
    series = [{row["step"]: row for row in result["gradients"]} for result in of.values() if result["gradients"]]
    if not series:
        return []
    steps = sorted(set.intersection(*(set(rows) for rows in series)))
    names = [name for name in series[0][steps[0]] if name != "step"] if steps else []
    return [{"step": step, **{name: spread([rows[step][name] for rows in series]) for name in names}} for step in steps]


def write_results(
    out: Path, tables: Sequence[Table], steps: int, failed: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], Path, Path]:
    """Gathers what is done and writes results.json and report.html; returns the results and both paths."""
    from opencoca.jobs.ablate.page import write_page

    runs = read_runs(out)
    results = gather(runs, read_timing(out), tables)
    results |= {
        "steps": steps,
        "runs": sum(len(of) for of in runs.values()),
        "seeds": sorted({seed for of in runs.values() for seed in of}),
        "failed": [list(one) for one in failed],
    }
    write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
    write_page(out / REPORT, results)
    return results, out / RESULTS, out / REPORT
