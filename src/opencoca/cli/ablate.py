"""`coca ablate`: the paper's Table 8 with small models."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opencoca.cli.main import DONE, SKIPPED, Flag
from opencoca.cli.options import Whole


@dataclass(frozen=True)
class Args:
    """Train the settings of the paper's Table 8 as small models, and report them side by side.

    Trains each setting on OpenMoji with every seed, under a minute a run on one processor core, measures it on pictures
    that it never saw, and writes results.json and report.html with means and ranges beside the paper's figures. Runs
    that are done are left as they are: interrupted or killed, the same command goes on where it was.

    Examples:
      coca ablate --list
      coca ablate --tables b f --seeds 0 1 2
      coca ablate --seeds 0 1 2 3 4 --steps 300 --out runs/ablate-300
    """

    tables: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: all)")] = ()
    """Tables to fill: a to f, reduction, stages, since."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, order and augmentation."""
    steps: Annotated[Whole, arg(metavar="INT", help_behavior_hint="(default: 120)")] = None
    """Steps of each run, of 128 pairs; 120 are half a minute."""
    data: Path = Path("data/openmoji")
    """Folder with the pictures that `coca quickstart` makes."""
    out: Path = Path("runs/ablate")
    """Folder for the runs, results.json and report.html."""
    list: Flag = False
    """Print the tables and their runs, and train nothing."""


def run(args: Args) -> int:
    """Runs the job, then prints where its results are."""
    from opencoca.jobs.ablate.job import ablate, chosen_tables, listing
    from opencoca.jobs.ablate.settings import STEPS

    if args.list:
        print("\n".join(listing(chosen_tables(args.tables), args.seeds)))
        return DONE
    steps = STEPS if args.steps is None else args.steps
    outcome = ablate(
        args.data, args.out, args.tables, args.seeds, steps, lambda line: print(line, file=sys.stderr, flush=True)
    )
    for name, why in outcome.failed:
        print(f"coca: failed: {name}: {why}", file=sys.stderr)
    print(f"report:  {outcome.report}\nresults: {outcome.path}")
    return SKIPPED if outcome.failed else DONE
