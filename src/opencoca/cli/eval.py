"""`coca eval`: a model's figures, on held-out lists or by a suite of evaluations, beside other models."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from opencoca.cli.main import BAD_INPUT, DONE, SKIPPED, Flag, ModelName
from opencoca.cli.targets import check_file, check_folder, write_file, writing
from opencoca.errors import ConfigError, DataError

Json = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[FILE]",
        instance_from_str=lambda words: _one_file(words),
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [] if value in (None, "-") else [str(value)],
    ),
    arg(help_behavior_hint=""),
]


@dataclass(frozen=True)
class Args:
    """Measure a model: zero-shot, retrieval, captions and more, beside other models.

    A suite is a list of evaluations; each runs if its data are named by --data NAME=PATH, and is listed as not measured
    if not. What was worked out is kept per sample, so a rerun is instant and an interrupted one goes on.

    Without a suite, --data is a folder of tar shards with a manifest, as `coca quickstart` writes it: retrieval ranks a
    list's own captions and pictures, captions are compared with their references by CIDEr-D and exact match.

    Examples:
      coca eval --data data/openmoji
      coca eval runs/mine --suite smoke --data openmoji=data/openmoji --report out.html
      coca eval runs/mine --suite paper --data coco=/data/coco imagenet=/data/imagenet/val --vs runs/other peer.json
      coca eval runs/mine --suite robustness --data classes=photos val=photos-val --report out.html
      coca eval runs/both --only questions/vqa --data questions=nlvr2#test --pictures nlvr2/images
      coca eval runs/mine --groups people.csv
      coca eval --selfcheck
    """

    name: Annotated[str | None, Positional, arg(metavar="MODEL", help_behavior_hint="")] = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    suite: Annotated[str | None, arg(metavar="{smoke,paper,robustness}", help_behavior_hint="")] = None
    """Which evaluations: a quick few, those of the paper, or how far things hold up."""
    only: Annotated[tuple[str, ...], arg(metavar="EVALUATION...", help_behavior_hint="")] = ()
    """These evaluations instead of a suite, such as coco/retrieval; a wrong name lists them all."""
    data: Annotated[tuple[str, ...], arg(metavar="NAME=PATH...", help_behavior_hint="")] = ()
    """Where data are: NAME=PATH, or NAME=PATH#SPLIT, several; without a suite one folder of shards."""
    pictures: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder that the pictures' paths in a table of questions start from."""
    vs: Annotated[tuple[str, ...], arg(metavar="OTHER...", help_behavior_hint="")] = ()
    """Models to compare with, or results files (.json) of `coca eval` or of benchmarks/peer_results.py."""
    groups: Annotated[Path | None, arg(metavar="TABLE", help_behavior_hint="")] = None
    """A table of your own pictures for a bias audit: path, label or caption, and a column for each kind of group."""
    report: Annotated[Path | None, arg(help_behavior_hint="")] = None
    """Write a page with tables and plots here."""
    json: Json = None
    """Write every figure, as a fraction, with interval and per-sample values, as JSON; without a name it is printed."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """At most so many samples of each evaluation, spread over the data: to try it."""
    no_cache: Flag = False
    """Work everything out anew, and keep nothing."""
    selfcheck: Flag = False
    """Compare with the published figures of the LAION models, as far as there are data and pulled models."""
    splits: tuple[str, ...] = ("test_pictures", "test_combinations", "test_concepts")
    """Held-out lists to measure, without a suite."""
    model: ModelName = None
    """The same as MODEL."""
    beams: int | None = None
    """Width of the beam search for captions; 1 is greedy (default: the model's own, with a suite 8)."""


def _one_file(words: list[str]) -> str:
    if len(words) > 1:
        raise DataError(f"--json takes one file, got {' '.join(words)}; name the model before the options")
    return words[0] if words else "-"


def run(args: Args) -> int:
    """Prints a table, a row per figure, or JSON; the suite's report and JSON go to files."""
    if args.name is not None and args.model is not None and args.name != args.model:
        raise ConfigError(f"MODEL is {args.name} and --model is {args.model}; name one of them")
    model = args.model if args.name is None else args.name
    for file in (args.report, None if args.json in (None, "-") else Path(args.json)):
        if file is not None:
            check_file(file)  # before anything is measured
    if args.pictures is not None and not any(word.startswith("questions=") for word in args.data):
        raise ConfigError(
            f"--pictures {args.pictures} is for a table of questions; add --data questions=TABLE, or leave it out"
        )
    if args.selfcheck:
        return _selfcheck(args)
    if args.suite is not None or args.only or args.groups is not None:
        return _suite(args, model)
    if args.vs or args.report or args.limit or any("=" in word for word in args.data):
        raise ConfigError("--vs, --report, --limit and --data NAME=PATH go with --suite; add --suite smoke or paper")
    if len(args.data) != 1:
        raise DataError("name one folder of shards by --data, or a suite by --suite; 'coca eval --help' shows examples")
    return _prepared(args, model, args.data[0])


def _prepared(args: Args, model: str | None, folder: str) -> int:
    from opencoca.eval.held_out import load_held_out
    from opencoca.eval.openmoji import attributes
    from opencoca.eval.suite import evaluate_split
    from opencoca.loading import load

    predictor = load(model)
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels
    beams = predictor.config.generation.beams if args.beams is None else args.beams
    columns = {}
    for split in args.splits:
        held_out = load_held_out(folder, split, size_px, pixels)
        columns[f"{split} ({len(held_out)})"] = evaluate_split(predictor, held_out, attributes(), beams).figures
    if args.json is not None:
        flat = {f"{name.split()[0]}/{key}": v for name, col in columns.items() for key, v in col.items()}
        _write_json(args.json, json.dumps(flat, indent=2) + "\n")
        return DONE
    print(f"{'':<22}" + "".join(f"{name:>26}" for name in columns))
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        cells = [_cell(key, column[key]) if key in column else "–" for column in columns.values()]
        print(f"{key:<22}" + "".join(f"{cell:>26}" for cell in cells))
    return DONE


def _suite(args: Args, model: str | None) -> int:
    from opencoca.eval import registry
    from opencoca.eval.results import skipped_count
    from opencoca.eval.run import checked_json, report
    from opencoca.jobs.evaluate import evaluate, not_measured, write_report

    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit} must be 1 or more")
    alone = args.groups is not None and args.suite is None and not args.only
    entries = registry.chosen(args.suite, ("groups/bias",) if alone else args.only)
    places = args.data if args.groups is None else (*args.data, f"groups={args.groups}")
    data = registry.parse_data(places)
    beams = registry.Options.beams if args.beams is None else args.beams
    options = registry.Options(beams=beams, limit=args.limit, pictures=args.pictures, cache=_cache(args))
    outcomes = evaluate(model, args.vs, entries, data, options, _say)
    settings = {
        "beams": beams,
        "limit": args.limit,
        "data": {name: str(place.path) for name, place in data.items()},
        "pictures": args.pictures,
    }
    content = report(outcomes, args.suite or "chosen", settings)
    if args.report is not None:
        with writing(args.report):
            _say(f"report: {write_report(args.report, content, outcomes)}")
    if args.json is not None:
        _write_json(args.json, checked_json(content))
    if args.json != "-":
        _print_table(content)
        for name, reason in not_measured(outcomes):
            print(f"{name}: {reason}")
    left_out = any(skipped_count(result) for outcome in outcomes for result in outcome.results.values())
    return SKIPPED if left_out else DONE


def _selfcheck(args: Args) -> int:
    from opencoca.eval import registry
    from opencoca.jobs.selfcheck import selfcheck

    options = registry.Options(limit=args.limit, cache=_cache(args))
    rows = selfcheck(registry.parse_data(args.data), options, _say)
    width = max(len(row.model) for row in rows)
    print(f"{'model':<{width}}  {'figure':<28} {'published':>9} {'here':>6}")
    for row in rows:
        here = "–" if row.here is None else f"{row.here:.1f}"
        print(f"{row.model:<{width}}  {row.figure:<28} {row.published:>9.1f} {here:>6}  {row.verdict}".rstrip())
    steps = list(dict.fromkeys(step for row in rows for step in row.steps))
    if steps:
        print("\nto measure what is missing:")
        for step in steps:
            print(f"  {step}")
    measured = [row for row in rows if row.here is not None]
    if not measured or not all(row.good for row in measured):
        return BAD_INPUT
    return SKIPPED if steps or len(measured) < len(rows) else DONE


def _cache(args: Args):
    from opencoca.errors import CheckpointError
    from opencoca.eval.cache import Cache
    from opencoca.interop.pulled import home

    if args.no_cache:
        return Cache()
    try:
        folder = home() / "evaluations"
    except CheckpointError:  # a user without a home folder keeps nothing
        return Cache()
    check_folder(folder, instead="keep nothing, by --no-cache")
    return Cache(folder)


def _print_table(content: dict) -> None:
    ours, *_ = content["models"]
    width = max([len(one["name"]) for one in ours["evaluations"]] + [10])
    differences = {
        (row["evaluation"], row["metric"]): (comparison["other"], row)
        for comparison in reversed(content["comparisons"])
        for row in comparison["rows"]
    }
    for one in ours["evaluations"]:
        for key in dict.fromkeys([one["headline"], *one["figures"]]):
            value, name = one["figures"][key], one["name"] if key == one["headline"] else ""
            shown = "–" if value is None else _cell(key, value)
            bounds = one["intervals"].get(key)
            interval = "" if bounds is None else f"[{_cell(key, bounds[0])}, {_cell(key, bounds[1])}]"
            compared = ""
            if (one["name"], key) in differences:
                other, row = differences[one["name"], key]
                sign = _cell(key, abs(row["difference"]))
                p = f"p {row['p_holm']:.4f} (Holm)" if "p_holm" in row else f"p {row['p']:.4f}"
                compared = f"{'+' if row['difference'] >= 0 else '-'}{sign} against {other}, {p}"
            print(f"{name:<{width}}  {key:<24} {shown:>8}  {interval:<18} {compared}".rstrip())
    for one in ours["evaluations"]:
        skipped = one["facts"].get("skipped")
        if isinstance(skipped, dict) and skipped.get("count"):
            print(f"{one['name']:<{width}}  left out: {skipped['count']}; {'; '.join(skipped['first'][:3])}")


def _write_json(where: str, text: str) -> None:
    if where == "-":
        print(text, end="")
        return
    write_file(Path(where), text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _cell(key: str, value: float) -> str:
    from opencoca.eval.results import COUNTS

    return f"{value:.3f}" if key.startswith(COUNTS) else f"{value:.1%}"
