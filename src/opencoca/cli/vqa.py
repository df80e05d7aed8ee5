"""`coca vqa`: a model learns to answer questions about pictures, or to judge statements about them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import Flag
from opencoca.cli.options import Real, Settings, Whole
from opencoca.cli.targets import check_folder
from opencoca.cli.task_runs import From, say, told
from opencoca.errors import ConfigError

if TYPE_CHECKING:
    from opencoca.jobs.task_runs import Outcome


@dataclass(frozen=True)
class Args:
    """Teach a model to answer questions about pictures, or to judge statements about them.

    DATA is a table (CSV, TSV, JSONL) with columns for the picture, the question and the answer, or a folder with one;
    the files of VQA v2, SNLI-VE and NLVR2 are read as they come. With a column for a second picture, rows are
    statements about two. A new pooler and classifier over the decoder's outputs learns the answers, and the decoder
    learns to say them; both are measured by the official VQA accuracy, beside what the question alone gives away.
    Interrupted, the same command goes on where it was.

    Examples:
      coca vqa questions.csv --from drawings
      coca vqa data/easy-vqa --recipe easy_vqa --run runs/easy-vqa
      coca vqa vqa-v2/ --pictures coco/ --from hf:laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k --paper vqa
      coca vqa nlvr2/ --from runs/snli-ve --name nlvr2 --run runs/both
      coca ask picture.png "what colour is the shape?" --model runs/easy-vqa
    """

    data: Annotated[str, Positional, arg(metavar="DATA", help_behavior_hint="")]
    """Questions with answers."""
    from_: From = None
    """The model to begin with: a run or model folder, hf:org/name, a weights file, or a name."""
    recipe: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Begin with new weights in this recipe's shape instead, trained as it says."""
    run: Path = Path("runs/vqa")
    """Folder for checkpoints, metrics and the model."""
    mode: Annotated[
        Literal["both", "classify", "generate"],
        arg(metavar="both|classify|generate", help_behavior_hint="(default: both)"),
    ] = "both"
    """Train a classifier over frequent answers, the decoder's own words, or both together."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: vqa)")] = None
    """What the model calls the classifier; one of that name that MODEL has already is replaced, any other is kept."""
    answers: Whole = None
    """Size of the classifier's vocabulary (default: 3129)."""
    rare: int = 1
    """Answers that occur less often than this aren't in it."""
    frozen: Flag = False
    """Leave the image encoder as it is."""
    pictures: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder that the pictures' paths start from."""
    test: Annotated[tuple[str, ...], arg(metavar="SPLIT...", help_behavior_hint="(default: test)")] = ("test",)
    """The splits to test on, once, in the end."""
    epochs: float = 10.0
    """How often each question is seen."""
    steps: Whole = None
    """Number of steps, instead of --epochs."""
    rate: Real = None
    """Highest learning rate of the new parts (default: 5e-4 on large models and 1e-3 on small ones)."""
    batch: Whole = None
    """Questions a step (default: 64, or half of them)."""
    paper: Annotated[
        Literal["vqa", "snli-ve", "nlvr2"] | None, arg(metavar="vqa|snli-ve|nlvr2", help_behavior_hint="")
    ] = None
    """Take the settings of the paper's runs on that benchmark."""
    seed: int = 0
    """Seed of the new weights, of order and augmentation."""
    set: Settings = ()
    """Fields of the configuration to change, as section.field=value."""


def run(args: Args) -> int:
    """Runs the job, then prints the table and what to type next."""
    from opencoca.jobs.vqa import MOST_ANSWERS, Options, vqa

    if args.name is not None and args.mode == "generate":
        raise ConfigError(
            f"--name {args.name} names a classifier, and --mode generate trains none; leave out one of the two"
        )
    check_folder(args.run)
    options = Options(
        mode=args.mode,
        name="vqa" if args.name is None else args.name,
        answers=args.answers or MOST_ANSWERS,
        rare=args.rare,
        frozen=args.frozen,
        recipe=args.recipe,
        paper=args.paper,
        pictures=args.pictures,
        tests=args.test,
        epochs=args.epochs,
        steps=args.steps or 0,
        rate=args.rate or 0.0,
        batch=args.batch or 0,
        seed=args.seed,
        changes=args.set,
    )
    outcome = vqa(args.data, args.run, args.from_, options, say)
    return told(outcome, _then(args, outcome))


def _then(args: Args, outcome: Outcome) -> str:
    """The command to type next: a question, or what takes statements about several pictures, as `coca ask` does not."""
    run = shlex.quote(str(args.run))
    if outcome.results["pictures"] == 1:
        return f'coca ask picture.png "a question?" --model {run}'
    data = f"{shlex.quote(args.data)}#{outcome.results['told_split']}"
    pictures = "" if args.pictures is None else f" --pictures {shlex.quote(args.pictures)}"
    return f"coca eval {run} --only questions/vqa --data questions={data}{pictures}"
