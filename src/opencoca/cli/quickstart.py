"""`coca quickstart`: from nothing to a trained model and a report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from opencoca.cli.main import DONE, SKIPPED
from opencoca.cli.targets import check_folder


@dataclass(frozen=True)
class Args:
    """Train a model on real pictures in minutes and write a report.

    Renders the OpenMoji pictures, trains the `openmoji` recipe on the processor, measures the model on pictures that
    it never saw, and writes report.html and results.json into the run folder. Interrupted, it goes on where it was
    when it is called again.

    Examples:
      coca quickstart
      coca quickstart --seed 1 --run runs/quickstart-1
    """

    run: Path = Path("runs/quickstart")
    """Folder for checkpoints, metrics, results.json and report.html."""
    data: Path = Path("data/openmoji")
    """Folder for the pictures."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""


def run(args: Args) -> int:
    """Runs the job, then prints the figures and what to type next."""
    from opencoca.jobs.quickstart import quickstart

    check_folder(args.run)
    outcome = quickstart(args.run, args.data, args.seed, say=lambda line: print(line, file=sys.stderr, flush=True))
    figures = outcome.figures
    print()
    print(f"{'held-out list':<20}{'R@1':>8}{'R@5':>8}{'chance':>8}{'CIDEr-D':>10}{'exact':>8}")
    for split in ("test_pictures", "test_combinations", "test_concepts"):
        row = [figures[f"{split}/{name}"] for name in ("i2t_recall@1", "i2t_recall@5", "chance/i2t_recall@1")]
        cider, exact = figures[f"{split}/cider_d"], figures[f"{split}/exact_match"]
        print(f"{split:<20}" + "".join(f"{value:>8.1%}" for value in row) + f"{cider:>10.2f}{exact:>8.1%}")
    print(f"zero-shot skin tone on test_pictures: {figures['test_pictures/zeroshot_skin_tone']:.1%} (chance 20%)")
    print(f"\nreport:  {outcome.report}\nresults: {outcome.results}\n\nnow try")
    print(f"  coca caption picture.png --model {args.run}")
    print(f"  coca classify picture.png --labels dog,cat,bicycle --model {args.run}")
    print(f'  coca search pictures/ "a red flower" --model {args.run}')
    return SKIPPED if outcome.skipped else DONE
