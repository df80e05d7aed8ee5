"""`coca bulk`: captions, embeddings and labels of very many pictures, shard by shard, on one machine or many."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from opencoca.cli.main import DONE, SKIPPED, Flag, Labels, ModelName, comma_list, separated
from opencoca.cli.options import Generation, GenerationGroup
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.jobs.bulk_output import Record
    from opencoca.jobs.bulk_shard import Task

WORDS = ("caption", "embed", "classify")
MOST_NAMED = 20


def _read_do(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(separated(text)))
    if not words or not set(words) <= set(WORDS):
        raise DataError(f"--do {text!r} is not understood; give one or more of {', '.join(WORDS)}, with commas")
    return words


Do = Annotated[tuple[str, ...], comma_list(_read_do)]
Text = Annotated[str, arg(metavar="TEXT", help_behavior_hint="")]
Name = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Templates = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="SENTENCE", help_behavior_hint="(default: {})")]
Given = Annotated[Labels, arg(help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Describe, embed and classify very many pictures, shard by shard.

    Each shard of the input becomes a Parquet file of the output: a row per picture with its key, the sha256 of its
    file, the embedding in float16, the caption with its log-probability, the likeliest labels. After a kill or Ctrl-C
    the same command does what is missing; every shard is there once and whole. What can't be read is named and counted
    (exit code 3). DATA is all that `coca data` reads, pictures without captions too.

    Examples:
      coca bulk tars/ --out described --do caption,embed
      coca bulk "s3://crawl/{00000..00999}.tar" --out s3://mine/described --runner ray --address auto
      coca bulk holiday/ --out labelled --do classify --labels beach,mountains,city
      coca index --from-bulk described
      coca search described "a boat on a lake"
    """

    data: Annotated[str, Positional, arg(metavar="DATA", help_behavior_hint="")]
    """A folder, a file, a pattern such as "tars/{000..012}.tar", or a URL (s3://...)."""
    out: Annotated[str, arg(metavar="DIR", help_behavior_hint="")]
    """The folder for the output, or the URL of an object store."""
    do: Do = ("caption", "embed")
    """What to make of each picture: caption, embed, classify."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    labels: Given = ()
    """For classify: the labels to choose among, two or more, separated by commas."""
    template: Templates = ()
    """For classify: a sentence with {} where the label goes; several are averaged."""
    prompt: Text = ""
    """How every caption begins."""
    generation: GenerationGroup = field(default_factory=Generation)
    split: Name = None
    """Only this split of the data."""
    per_shard: int = 4096
    """Pictures in a shard, where the data aren't tars."""
    max_bad: float = 0.1
    """Stop where more than this share of the pictures can't be read."""
    redo: Flag = False
    """Make shards again whose input changed."""
    runner: Literal["local", "ray"] = "local"
    """In this process, or as a Ray Data job."""
    address: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """ray: the cluster ("auto" for the one that this machine is in); by default one is started here, for this run."""
    workers: Annotated[Count, arg(help_behavior_hint="(default: as many as there is room for)")] = None
    """ray: how many processes at most, each with a model."""
    cpus: float = 1.0
    """ray: the cores that each takes."""
    gpus: float = 0.0
    """ray: the GPUs that each takes."""
    batch_size: Annotated[Count, arg(help_behavior_hint="(default: 64, and 256 on a GPU)")] = None
    """Pictures that pass through the model at once."""
    threads: Annotated[Count, arg(help_behavior_hint="(default: as torch chooses; with ray the cores)")] = None
    """Threads of each model; on equal processors and with equal threads, outputs are equal to the byte."""
    http: Flag = False
    """Allow http(s) URLs, which are fetched from the web."""
    json: Flag = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Makes what is missing, names what can't be read, and prints the counts."""
    _check(args)

    from opencoca.cli.forms import json_text
    from opencoca.jobs import bulk, bulk_ray
    from opencoca.jobs.bulk_input import open_input
    from opencoca.jobs.bulk_output import Place
    from opencoca.loading import load
    from opencoca.search.opening import lasting_name

    place = Place(args.out)
    found = open_input(args.data, args.split, args.per_shard, args.http)
    name = lasting_name(args.model)
    predictor = load(name)
    task = _task(args, name, predictor)
    told = _Told()
    for key, reason in found.skipped:
        told.name(key, reason)
    report = bulk.run(
        found,
        place,
        task,
        location=args.data,
        model_name=name,
        predictor=predictor,
        runner=args.runner,
        ray=bulk_ray.Options(args.address, args.workers, args.cpus, args.gpus),
        max_bad=args.max_bad,
        redo=args.redo,
        hooks=bulk.Hooks(told.record, told.progress),
    )
    told.finish()
    facts: dict[str, Any] = {
        "pictures": report.rows,
        "bad": report.bad,
        "shards": report.shards,
        "made_now": report.done,
        "renewed": len(report.renewed),
        "model": name,
        "out": args.out,
    }
    if args.json:
        bad = [{"key": key, "reason": reason} for key, reason in told.bad]
        print(json_text({**facts, "bad_pictures": bad}, indent=2))
    else:
        print("\n".join(f"{name}\t{value}" for name, value in facts.items()))
    return SKIPPED if report.bad else DONE


def _check(args: Args) -> None:
    if ("classify" in args.do) != bool(args.labels):
        what = "classify chooses among labels; add --labels A,B" if not args.labels else "--labels are for classify"
        raise DataError(f"--do {','.join(args.do)}: {what}" + ("" if not args.labels else "; add it to --do"))
    if args.template and "classify" not in args.do:
        raise DataError("--template is for classify; add it to --do, or leave it out")
    if "caption" not in args.do and (args.prompt or args.generation.changes()):
        raise DataError("options of captions were given, and none are made; add caption to --do, or leave them out")
    given = [name for name, value in (("address", args.address), ("workers", args.workers)) if value is not None]
    given += [name for name, value, default in (("cpus", args.cpus, 1.0), ("gpus", args.gpus, 0.0)) if value != default]
    if args.runner == "local" and given:
        raise DataError(f"--{given[0]} is for Ray; add --runner ray, or leave it out")
    for name in ("workers", "batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise DataError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if args.cpus < 0 or args.gpus < 0 or args.cpus + args.gpus == 0:
        raise DataError(f"--cpus {args.cpus:g} and --gpus {args.gpus:g} give a worker nothing to run on; raise one")


def _task(args: Args, name: str, predictor: Any) -> Task:
    from opencoca.jobs.bulk_shard import Task

    settings = args.generation.settings(predictor.config.generation)
    threads = args.threads or (max(1, int(args.cpus)) if args.runner == "ray" else None)
    return Task(
        name,
        predictor.fingerprint(),
        args.do,
        args.prompt,
        dataclasses.asdict(settings),
        args.labels,
        args.template or ("{}",),
        args.batch_size,
        None,
        threads,
    )


class _Told:
    """Names bad pictures and shards on standard error, the first of them, and shows how far the run is."""

    def __init__(self) -> None:
        self.bad: list[tuple[str, str]] = []
        self._bar: Any = None

    def record(self, record: Record) -> None:
        for key, reason in record.bad:
            self.name(key, reason)

    def name(self, key: str, reason: str) -> None:
        from opencoca.cli.forms import shown

        self.bad.append((key, reason))
        if len(self.bad) <= MOST_NAMED:
            print(f"skipped {shown(key)}: {shown(reason)}", file=sys.stderr)

    def progress(self, done: int, total: int) -> None:
        from opencoca.cli.progress import PictureProgress

        self._bar = self._bar or PictureProgress(total, "shards")
        self._bar.move(done)

    def finish(self) -> None:
        if self._bar:
            self._bar.close()
        more = len(self.bad) - MOST_NAMED
        if more > 0:
            print(f"skipped {more} more; --json lists all", file=sys.stderr)
