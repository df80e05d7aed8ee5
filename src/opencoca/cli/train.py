"""`coca train`: a recipe in a run folder, on one device or many; or its plan, or a script that launches it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from opencoca.cli.main import DONE, Flag
from opencoca.cli.options import OutputFile, Real, Settings, Whole
from opencoca.cli.targets import check_folder, write_file
from opencoca.errors import ConfigError

if TYPE_CHECKING:
    from opencoca.config import Config

Start = Annotated[str | None, tyro.conf.arg(name="from", metavar="NAME", help_behavior_hint="")]
Tower = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
Scheduler = Annotated[Literal["slurm", "ray"] | None, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Train a model from a recipe, or resume a run.

    The data is a folder of tar shards with a manifest, as `coca quickstart` writes it, or any other form that `coca
    data check` knows. A run folder that holds a checkpoint is resumed, and ends with the same weights as if it had
    never stopped: after Ctrl-C, SIGTERM or a crash, give the same command again.

    --plan says beforehand what it takes: memory per device, operations, steps, time and data; what can't work is
    refused (exit code 2) with the repair. Nothing is trained and nothing written.

    Examples:
      coca train openmoji --run runs/mine --data data/openmoji
      coca train openmoji --run runs/slow --set optim.peak_lr=5e-4 optim.steps=1000
      coca train openmoji --run runs/mine --plan
      coca train open_clip.vit_b_32 --run runs/b32 --data shards/ --nproc 8
      coca train open_clip.vit_b_32 --run runs/tuned --data shards/ --from hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k
      coca train paper.large --plan --samples 1000000000 --gpus 64 --gpu-memory 80 --gpu-tflops 989
      coca train paper.large --run /shared/large --data /shared/pairs --launch slurm --nodes 8 --nproc 8 --out large.sh
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of the recipe: openmoji, drawings, open_clip.vit_b_32, paper.base and others; an unknown name lists them."""
    run: Folder = field(default=None, kw_only=True)
    """Folder for checkpoints and metrics; needed unless --plan is given."""
    data: Folder = None
    """Where the pairs are (default: the recipe's folder)."""
    set: Settings = ()
    """Fields of the configuration to change, as section.field=value."""
    start: Start = None
    """A model whose weights and tokenizer a new run begins with: a run or model folder, a weights file, hf:org/name."""
    init_vision: Tower = None
    """Published CLIP or SigLIP weights for the image encoder of a new run."""
    init_text: Tower = None
    """Published CLIP or SigLIP weights for the text layers of a new run."""
    nproc: Whole = None
    """Processes on this machine (or on each, with --launch), one per GPU; they are started by torchrun."""
    plan: Flag = False
    """Say what the run takes, and train nothing."""
    gpus: Whole = None
    """Plan for so many GPUs that aren't here; --gpu-memory and --gpu-tflops say what each is."""
    gpu_memory: Real = None
    """Memory of such a GPU, in GB."""
    gpu_tflops: Real = None
    """Dense bf16 matrix products that such a GPU can do, in TFLOP/s."""
    mfu: Real = None
    """Share of the device's speed that the plan assumes training to reach (default: 0.35)."""
    samples: Whole = None
    """Plan for so many training pairs that aren't here, without looking at the data."""
    json: Flag = False
    """Print the plan as one JSON object."""
    launch: Scheduler = None
    """Write a script that runs this on a cluster, and train nothing."""
    nodes: Whole = None
    """Machines of the cluster, for --launch (default: 1)."""
    out: OutputFile = None
    """File that the script of --launch goes into (default: standard output)."""


def run(args: Args) -> int:
    """Trains, then prints where the model is; or plans, or writes a script."""
    from opencoca import recipes

    _check(args)
    config = recipes.get(args.recipe).with_values(args.set)
    if args.data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=str(args.data)))
    if args.plan:
        if args.samples is None:
            _check_data(args, config)
        return _plan(args, _with_its_tokenizer(args, config))
    if args.run is None:
        raise ConfigError("no --run given: the folder that checkpoints and metrics go into; or look with --plan first")
    if args.launch is not None:
        return _launch(args, config)
    check_folder(args.run)
    if args.nproc is not None:
        return _torchrun(args, config)
    _check_data(args, config)
    from opencoca.jobs.pretrain import pretrain

    state = pretrain(_with_its_tokenizer(args, config), args.run, initial=_initial(args))
    if os.environ.get("RANK", "0") == "0":
        print(f"trained {state.step} steps; the model is in {args.run}")
    return DONE


def words(args: Args) -> list[str]:
    """The words of a command line that trains the same, one process per device."""
    given = [args.recipe, "--run", str(args.run)]
    options = (
        ("data", args.data),
        ("from", args.start),
        ("init-vision", args.init_vision),
        ("init-text", args.init_text),
    )
    for name, value in options:
        if value is not None:
            given += [f"--{name}", str(value)]
    return [*given, "--set", *args.set] if args.set else given


def _check(args: Args) -> None:
    for name in ("nproc", "gpus", "gpu_memory", "gpu_tflops", "samples", "nodes"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be above 0")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu} must be a share above 0, at most 1")
    elsewhere = {"--gpus": args.gpus, "--gpu-memory": args.gpu_memory, "--gpu-tflops": args.gpu_tflops}
    missing = [name for name, value in elsewhere.items() if value is None]
    if 0 < len(missing) < len(elsewhere):
        raise ConfigError(f"{', '.join(missing)} is missing: what GPUs to plan for takes {', '.join(elsewhere)}")
    planning = {**elsewhere, "--mfu": args.mfu, "--samples": args.samples, "--json": args.json or None}
    unused = [name for name, value in planning.items() if value is not None]
    if unused and not args.plan:
        raise ConfigError(f"{', '.join(unused)} belongs to --plan, which isn't given")
    unused = [name for name, value in (("--nodes", args.nodes), ("--out", args.out)) if value is not None]
    if unused and args.launch is None:
        raise ConfigError(f"{', '.join(unused)} belongs to --launch, which isn't given")
    if args.start is not None and (args.init_vision or args.init_text):
        raise ConfigError("--from gives all weights, --init-vision and --init-text some; choose one way to begin")


def _check_data(args: Args, config: Config) -> None:
    """Refuses the recipe's own folder where it isn't there, with the command that makes it."""
    from opencoca import recipes

    folder = config.data.folder
    if folder != recipes.get(args.recipe).data.folder or config.data.mixture or Path(folder).exists():
        return
    from opencoca.data.get.sets import SETS

    made = next((f"make it: coca data get {name}; or " for name in SETS if Path("data", name) == Path(folder)), "")
    plan = "; to plan without data, give how many pairs there will be by --samples N" if args.plan else ""
    raise ConfigError(
        f"{folder}, where {args.recipe} looks for its pairs, does not exist; {made}name yours by --data{plan}"
    )


def _plan(args: Args, config: Config) -> int:
    from opencoca.cli import planned
    from opencoca.cli.forms import json_text
    from opencoca.jobs import plan

    if args.gpus is not None:
        machine = plan.another_machine(args.gpus, args.gpu_memory or 0.0, args.gpu_tflops or 0.0)
    else:
        machine = plan.this_machine(config, args.nproc or 0)
    made = plan.plan(config, machine, args.run, args.samples or 0, args.mfu or plan.ASSUMED_MFU)
    if args.json:
        print(json_text(made.to_dict(), indent=2))
    else:
        planned.show(planned.rows(made))
    return DONE


def _launch(args: Args, config: Config) -> int:
    from opencoca.jobs import launch, plan

    nodes, nproc = args.nodes or 1, args.nproc or 8
    plan.check_batch(config, nodes * nproc)
    written = launch.slurm_script if args.launch == "slurm" else launch.ray_script
    text = written(words(args), config.recipe, nodes, nproc)
    if args.out is None:
        print(text, end="")
    else:
        write_file(args.out, text)
        starter = "sbatch" if args.launch == "slurm" else "python"
        print(f"{args.out} runs this on {nodes} x {nproc} GPUs; start it with: {starter} {args.out}")
    return DONE


def _torchrun(args: Args, config: Config) -> int:
    """Becomes torchrun, so that signals go to it."""
    from opencoca.jobs import launch, plan

    plan.check_batch(config, args.nproc or 1)
    command = launch.torchrun(words(args), args.nproc or 1)
    sys.stdout.flush()
    os.execv(command[0], command)


def _with_its_tokenizer(args: Args, config: Config) -> Config:
    """A new run that begins with another model reads with that model's tokenizer, unless another one is named."""
    if args.start is None:
        return config
    from opencoca.checkpoint import latest_checkpoint
    from opencoca.jobs.initial import with_tokenizer_of

    begun = args.run is not None and latest_checkpoint(args.run) is not None
    return config if begun else with_tokenizer_of(args.start, config)


def _initial(args: Args) -> Callable[..., Any] | None:
    """What gives a new run its first weights; None for random ones."""
    if args.start is None and args.init_vision is None and args.init_text is None:
        return None
    from opencoca.jobs.initial import from_model, from_towers

    def say(note: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(note, file=sys.stderr)

    if args.start is not None:
        return lambda config, tokenizer: from_model(args.start or "", config, tokenizer)
    return lambda config, tokenizer: from_towers(args.init_vision, args.init_text, config, say)
