"""`coca ablate`: all runs of the tables, those that are done left as they are; then results.json and report.html."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.errors import ConfigError
from opencoca.jobs.ablate.cost import cpu_seconds
from opencoca.jobs.ablate.gather import read_timing, write_results, write_timing
from opencoca.jobs.ablate.runs import Lab, finished, one_step, run
from opencoca.jobs.ablate.settings import TABLES, Setting, Table
from opencoca.train.step import NotFiniteError


class Outcome(NamedTuple):
    """What `ablate` leaves: the gathered results, where they and the page are, and (run, why) of runs that failed."""

    results: dict[str, Any]
    path: Path
    report: Path
    failed: list[tuple[str, str]]


def chosen_tables(names: Sequence[str]) -> list[Table]:
    """The tables of these names; all for none.

    Raises: ConfigError with the nearest name where there is none.
    """
    for name in names:
        if name not in TABLES:
            near = difflib.get_close_matches(name, TABLES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"no table is called {name!r}; {hint}there are: {', '.join(TABLES)}")
    return [table for key, table in TABLES.items() if not names or key in names]


def plan(tables: Sequence[Table], seeds: Sequence[int]) -> list[tuple[Setting, int]]:
    """The runs, each once: every setting with the first seed, then with the next, so that a part is a result too.

    Raises: ConfigError for no seed, a negative one or one given twice.
    """
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {' '.join(map(str, seeds)) or '(none)'} must be different whole numbers from 0 on")
    settings = {row.setting.key: row.setting for table in tables for row in table.rows}
    return [(setting, seed) for seed in seeds for setting in settings.values()]


def listing(tables: Sequence[Table], seeds: Sequence[int]) -> list[str]:
    """The tables and their rows in lines of text, and how many runs they take."""
    lines = []
    for table in tables:
        lines += [f"{table.key}: {table.title}", *(f"    {row.title}  [{row.setting.key}]" for row in table.rows)]
    runs = plan(tables, seeds)
    return [*lines, f"{len(runs)} runs: {len(runs) // len(seeds)} settings, {len(seeds)} seeds"]


def ablate(
    folder: Path, out: Path, names: Sequence[str], seeds: Sequence[int], steps: int, say: Callable[[str], None] = print
) -> Outcome:
    """Trains and measures what isn't done, then gathers all that is.

    After every seed, and when it is interrupted, results and page are written from the runs that are done. A run whose
    loss isn't finite is named, and the others go on.

    Raises: ConfigError for unknown tables, seeds or steps that make no sense, and for runs of other settings in `out`;
      DataError where OpenMoji isn't there.
    """
    tables = chosen_tables(names)
    runs = plan(tables, seeds)
    if steps < 10:
        raise ConfigError(f"steps {steps} must be at least 10: gradients are compared ten times in a run")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    lab = Lab(folder, steps)
    waiting = [(setting, seed) for setting, seed in runs if finished(out, setting, seed, lab) is None]
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done, in {out / 'runs'}")
    failed: list[tuple[str, str]] = []
    try:
        for number, (setting, seed) in enumerate(waiting, start=1):
            say(f"run {number} of {len(waiting)}: {setting.key}, seed {seed}")
            try:
                run(out, setting, seed, lab)
            except NotFiniteError as error:
                failed.append((f"{setting.key}, seed {seed}", str(error)))
                say(f"failed: {error}")
            if number < len(waiting) and waiting[number][1] != seed:
                write_results(out, tables, steps, failed)
        measure_time(out, tables, lab, say)
    finally:  # also what Ctrl-C leaves
        results, path, report = write_results(out, tables, steps, failed)
    return Outcome(results, path, report, failed)


def measure_time(
    out: Path, tables: Sequence[Table], lab: Lab, say: Callable[[str], None] = print, again: bool = False
) -> None:
    """Measures a step of every setting that isn't in timing.json, or of all of them `again`."""
    known = {} if again else read_timing(out)
    stages = {
        f"{row.setting.key}/{number}": (row.setting, number)
        for table in tables
        for row in table.rows
        for number in range(len(row.setting.stages))
    }
    missing = {name: one_step(lab, *stage) for name, stage in stages.items() if name not in known}
    if missing:
        say(f"measuring the time of a step in {len(missing)} ways")
        write_timing(out, known | cpu_seconds(missing))
