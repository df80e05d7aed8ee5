"""`coca recognise`: a model learns labels, and shows what its frozen features are worth."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import Flag
from opencoca.cli.options import Real, Settings, Whole
from opencoca.cli.targets import check_folder
from opencoca.cli.task_runs import From, say, told


@dataclass(frozen=True)
class Args:
    """Teach a model labels: a new pooler and classifier on its encoder, frozen and tuned.

    DATA is a folder for each label, a table with columns for the picture and its label, prepared shards with an
    attribute, or MNIST's idx files. Prints accuracies on val, by which settings and the better model are chosen, and on
    test where DATA has one: of a linear probe and of nearest neighbours on the frozen features, of a new pooler over
    the frozen encoder, and of everything tuned. Interrupted, the same command goes on where it was.

    Examples:
      coca recognise sorted/ --from drawings
      coca recognise imagenet/ --from hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k --only frozen --paper
      coca recognise data/fashion-mnist --most 10000 --epochs 4
      coca recognise shapes/ --from runs/recognise --name shapes --run runs/both
      coca classify new/*.png --model runs/recognise
    """

    data: Annotated[str, Positional, arg(metavar="DATA", help_behavior_hint="")]
    """Labelled pictures."""
    from_: From = None
    """The model to begin with: a run or model folder, hf:org/name, a weights file, or a name."""
    run: Path = Path("runs/recognise")
    """Folder for checkpoints, metrics and the model."""
    only: Annotated[Literal["frozen", "tuned"] | None, arg(metavar="frozen|tuned", help_behavior_hint="")] = None
    """Train only one of the two."""
    name: Annotated[str, arg(metavar="NAME")] = "recognition"
    """What the model calls the classifier; one of that name that MODEL has already is replaced, any other is kept."""
    label: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """The attribute of prepared samples that is their label."""
    val: float = 0.1
    """Share of the pictures that is held out, unless DATA has a val split."""
    most: Whole = None
    """Train on so many pictures at most, evenly spaced."""
    epochs: float = 10.0
    """How often each picture is seen."""
    steps: Whole = None
    """Number of steps, instead of --epochs."""
    rate: Real = None
    """Highest learning rate of the new parts (default: 5e-4 on large models and 1e-3 on small ones)."""
    batch: Whole = None
    """Pictures a step (default: 64, or half of the pictures)."""
    paper: Flag = False
    """Take the settings of the paper's ImageNet runs: 200k steps of 512 pictures, RandAugment, smoothing, EMA."""
    seed: int = 0
    """Seed of the new weights, of order and augmentation."""
    set: Settings = ()
    """Fields of the configuration to change, as section.field=value."""


def run(args: Args) -> int:
    """Runs the job, then prints the table and what to type next."""
    from opencoca.jobs.recognise import WAYS, Options, recognise

    check_folder(args.run)
    options = Options(
        ways=WAYS if args.only is None else (args.only,),
        name=args.name,
        field=args.label,
        val=args.val,
        most=args.most or 0,
        epochs=args.epochs,
        steps=args.steps or 0,
        rate=args.rate or 0.0,
        batch=args.batch or 0,
        seed=args.seed,
        paper=args.paper,
        changes=args.set,
    )
    outcome = recognise(args.data, args.run, args.from_, options, say)
    return told(outcome, f"coca classify picture.png --model {shlex.quote(str(args.run))}")
