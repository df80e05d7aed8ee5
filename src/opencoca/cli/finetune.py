"""`coca finetune`: a model learns your captioned pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opencoca.cli.options import Real, Settings, Whole
from opencoca.cli.targets import check_folder
from opencoca.cli.task_runs import From, name_skipped, say


@dataclass(frozen=True)
class Args:
    """Teach a model your captioned pictures, and see what it was worth.

    DATA is any form of captioned pictures that `coca data check` knows: a CSV, TSV or JSONL file of paths and captions,
    COCO's json, a folder of pictures with .txt files beside them, tar shards. A tenth of the pictures is held out and
    measured before and after: retrieval both ways, and captions. Both losses are trained at a low rate, and of several
    blends of the old and new weights the one is kept that captions best without finding less. RUN/report.html shows it
    all. Interrupted, the same command goes on where it was.

    Examples:
      coca finetune captions.csv --from drawings
      coca finetune photos/ --from hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k --lora 8 --run runs/photos
      coca finetune captions.csv --wise 0.5 --keep data/openmoji --keep-split val
      coca caption picture.png --model runs/finetune
    """

    data: Annotated[str, Positional, arg(metavar="DATA", help_behavior_hint="")]
    """Captioned pictures."""
    from_: From = None
    """The model to begin with, as --model takes it elsewhere; "scratch" is the newest one's shape with new weights."""
    run: Path = Path("runs/finetune")
    """Folder for checkpoints, metrics, the model and report.html."""
    lora: int = 0
    """Train low-rank updates of this rank instead of whole matrices (8 is usual); they are merged in the end."""
    wise: Annotated[tuple[float, ...], arg(metavar="FLOAT...", help_behavior_hint="(default: 0.25 0.5 0.75 1)")] = ()
    """Share of tuned weights in the model, the rest being the original's; of several, what does best on val is kept."""
    val: float = 0.1
    """Share of the pictures that is held out, unless DATA says itself which are train and which are val."""
    split: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
    """Take only this split of DATA, and hold some of it out."""
    keep: Annotated[str | None, arg(metavar="DATA", help_behavior_hint="(default: data/openmoji, if there)")] = None
    """Other pictures, captioned or in a folder for each label: what the model knew of them is measured too."""
    keep_split: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
    """Take only this split of --keep."""
    epochs: float = 10.0
    """How often each picture is seen."""
    steps: Whole = None
    """Number of steps, instead of --epochs."""
    rate: Real = None
    """Highest learning rate (default: 1e-5 for large models and 4e-4 for small ones, five times that with --lora)."""
    batch: Whole = None
    """Pairs a step (default: 64, or half of the pictures)."""
    seed: int = 0
    """Seed of order and augmentation."""
    set: Settings = ()
    """Fields of the configuration to change, as section.field=value."""


def run(args: Args) -> int:
    """Runs the job, then prints the figures and what to type next."""
    from opencoca.jobs.finetune import finetune
    from opencoca.jobs.finetune_report import NAMES
    from opencoca.jobs.finetune_train import Options

    check_folder(args.run)
    options = Options(
        wise=args.wise,
        lora=args.lora,
        epochs=args.epochs,
        steps=args.steps or 0,
        rate=args.rate or 0.0,
        batch=args.batch or 0,
        val=args.val,
        split=args.split,
        keep=args.keep,
        keep_split=args.keep_split,
        seed=args.seed,
        changes=args.set,
    )
    outcome = finetune(args.data, args.run, args.from_, options, say)
    code = name_skipped(outcome.skipped)
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    print(f"{'held-out pictures':<44}{'before':>10}{'after':>10}")
    for key, before in outcome.before.items():
        name = key.removeprefix("keep/")
        if name in NAMES:
            title = NAMES[name] if name == key else f"untouched data: {NAMES[name]}"
            print(f"{title:<44}{_cell(name, before):>10}{_cell(name, outcome.after[key]):>10}")
    print(f"\nmodel:  {outcome.model} ({outcome.alpha:g} of the tuned weights)\nreport: {outcome.report}\n\nnow try")
    print(f"  coca caption picture.png --model {args.run}")
    return code


def _cell(name: str, value: float) -> str:
    return f"{value:.3f}" if name in ("cider_d", "bleu_4") else f"{value:.1%}"
