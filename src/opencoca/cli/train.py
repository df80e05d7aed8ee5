"""`coca train`: a recipe in a run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from opencoca.cli.main import DONE


@dataclass(frozen=True)
class Args:
    """Train a model from a recipe, or resume a run.

    The data is a folder of tar shards with a manifest, as `coca quickstart` writes it. A run folder that holds a
    checkpoint is resumed, and ends with the same weights as if it had never stopped.

    Examples:
      coca train openmoji --run runs/mine --data data/openmoji
      coca train openmoji --run runs/slow --set optim.peak_lr=5e-4 optim.steps=1000
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of the recipe: openmoji, drawings, open_clip.vit_b_32, paper.base and others; an unknown name lists them."""
    run: Path = field(kw_only=True)
    """Folder for checkpoints and metrics."""
    data: Path | None = None
    """Folder of shards (default: the recipe's)."""
    set: tuple[str, ...] = ()
    """Fields of the configuration to change, as section.field=value."""


def run(args: Args) -> int:
    """Trains, then prints where the model is."""
    from opencoca import recipes
    from opencoca.jobs.pretrain import pretrain

    config = recipes.get(args.recipe).with_values(args.set)
    if args.data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=str(args.data)))
    state = pretrain(config, args.run)
    print(f"trained {state.step} steps; the model is in {args.run}")
    return DONE
