"""`coca index`: look at a folder's pictures once, so that they can be searched, sorted and rid of copies at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, SKIPPED, Flag, ModelName
from opencoca.cli.targets import check_file, write_file, writing
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.search.albums import Album
    from opencoca.search.backend import Backend

Page = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Look at a folder's pictures once, so that they can be searched at once.

    Keeps an embedding and a caption of each picture. Run it again after changes: only new and changed pictures are
    looked at; a moved one is known by its contents. After an interruption the same command goes on where it stopped,
    and `coca search` finds meanwhile what is there. A picture that can't be read is named and skipped (exit code 3).

    Examples:
      coca index holiday/
      coca index holiday/ --no-captions
      coca index holiday/ --duplicates
      coca index holiday/ --albums --html albums.html
      coca index --from-bulk described --backend lance
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR", help_behavior_hint="")]
    """The folder of pictures; its subfolders are indexed too."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    no_captions: Flag = False
    """Make no captions, which is quicker; those that are there stay."""
    here: Flag = False
    """Keep the index in DIR/.opencoca and not in your cache folder, so that it moves with the pictures."""
    anew: Flag = False
    """Forget what is there and look at every picture again, as for another model."""
    from_bulk: Flag = False
    """DIR is what `coca bulk` wrote: take its embeddings and captions; no picture is looked at."""
    backend: Annotated[Literal["files", "lance"], arg(help_behavior_hint="(default: files of our own)")] = "files"
    """Where the index is kept: lance is a table of LanceDB, which may be in an object store."""
    url: Annotated[str, arg(metavar="URL", help_behavior_hint="(default: beside the index)")] = ""
    """lance: where the table is, as in s3://bucket/index."""
    ivf_pq: Flag = False
    """lance: search in a compressed index, which finds nearly all; its measured recall is printed."""
    duplicates: Flag = False
    """Print groups of pictures that are nearly the same, a picture a line, an empty line between groups."""
    threshold: float = 0.97
    """From which cosine similarity on pictures are nearly the same."""
    albums: Flag = False
    """Print albums of pictures that are alike, with what their captions share as titles."""
    albums_count: Annotated[int, arg(help_behavior_hint="(default: by the number of pictures)")] = 0
    """How many albums to make."""
    html: Page = None
    """Write the groups or albums as a page with pictures; it needs no other file."""
    json: Flag = False
    """Print the groups, albums or counts as JSON."""


def run(args: Args) -> int:
    """Updates the index, then prints what was asked for."""
    from opencoca.cli.search import pictures_of

    if args.duplicates and args.albums:
        raise DataError("--duplicates and --albums were given; ask for one of the two")
    if args.html and not (args.duplicates or args.albums):
        raise DataError("--html shows groups or albums; add --duplicates or --albums")
    if not 0 < args.threshold <= 1:
        raise DataError(f"--threshold {args.threshold} must be above 0 and at most 1, which only equal pictures reach")
    if args.albums_count < 0:
        raise DataError(f"--albums-count {args.albums_count} must be 1 or more, or 0 to choose by itself")
    if args.backend != "lance" and (args.url or args.ivf_pq):
        raise DataError("--url and --ivf-pq are of LanceDB; add --backend lance, or leave them out")
    if args.html:
        check_file(args.html)
    if args.from_bulk or (args.folder / "bulk.json").is_file():
        return _from_bulk(args)
    listing = pictures_of(args.folder)

    import sys

    from opencoca.cli.options import Printing
    from opencoca.cli.output import Output, json_text, shown
    from opencoca.cli.pictures import Found
    from opencoca.search.opening import predictor_for
    from opencoca.search.places import HERE, index_folder
    from opencoca.search.update import Progress, update

    place = args.folder / HERE if args.here else index_folder(args.folder)
    predictor, name = predictor_for(args.folder, place, args.model, args.anew)
    began, told = time.monotonic(), 0
    with Output(Found([args.folder / seen.path for seen in listing.files], []), [], Printing(json=True)) as output:

        def tell(progress: Progress) -> None:
            nonlocal told
            if progress.done > told:
                output.done(progress.done - told)
                told = progress.done

        with writing(place, _repair(args)):
            counts = update(
                args.folder,
                predictor,
                name,
                index=place,
                captions=not args.no_captions,
                anew=args.anew,
                on_bad=output.skip,
                on_progress=tell,
                listing=listing,
            )
    seconds = time.monotonic() - began
    facts = {
        "pictures": counts.pictures,
        "new": counts.encoded,
        "known": counts.same,
        "copies": counts.copies,
        "moved": counts.moved,
        "gone": counts.removed,
        "captioned": counts.captioned,
        "skipped": len(counts.bad),
        "seconds": round(seconds, 3),
        "model": name,
        "index": str(place),
    }
    found = None
    if args.backend == "lance":
        from opencoca.jobs.bulk_index import copy_to_lance

        found = copy_to_lance(args.folder, place, predictor, _url(args, place), args.ivf_pq)
        facts["lance"] = _told(found.lance)
    if args.duplicates or args.albums:
        _groups_of(args, place)
    elif args.json:
        print(json_text(facts))
    else:
        told_counts = ", ".join(
            f"{facts[what]:,} {what}" for what in ("new", "copies", "known", "moved", "gone", "skipped") if facts[what]
        )
        print(f"{counts.pictures:,} pictures ({told_counts}), {counts.captioned:,} captions made, {seconds:.1f} s")
        print(shown(f"index: {place}"), file=sys.stderr)
        _print_lance(found.lance if found else None)
    return SKIPPED if counts.bad else DONE


def _from_bulk(args: Args) -> int:
    import sys

    from opencoca.cli.output import json_text, shown
    from opencoca.cli.progress import PictureProgress
    from opencoca.jobs.bulk_index import index_bulk
    from opencoca.jobs.bulk_output import Place
    from opencoca.loading import load
    from opencoca.search.places import HERE, index_folder

    if args.no_captions:
        raise DataError("--no-captions is for pictures that are looked at; what `coca bulk` wrote is taken as it is")
    settings = Place(str(args.folder)).settings()
    if settings is None:
        raise DataError(f"{args.folder} holds no output of `coca bulk`; leave --from-bulk out for a folder of pictures")
    place = args.folder / HERE if args.here else index_folder(args.folder)
    began = time.monotonic()
    predictor = load(args.model or settings.get("model_name"))
    bar = PictureProgress(0, "shards")
    with writing(place, _repair(args)):
        found = index_bulk(
            args.folder,
            place,
            predictor,
            url=_url(args, place) if args.backend == "lance" else None,
            ivf_pq=args.ivf_pq,
            on_progress=lambda done, total: bar.move(done, total),
        )
    bar.close()
    facts = {"pictures": found.files, "seconds": round(time.monotonic() - began, 3), "model": found.model_name}
    facts |= {"index": str(place), "lance": _told(found.lance)}
    if args.duplicates or args.albums:
        _groups_of(args, place)
    elif args.json:
        print(json_text(facts))
    else:
        print(f"{found.files:,} pictures from {shown(args.folder)}, {facts['seconds']:.1f} s")
        print(shown(f"index: {place}"), file=sys.stderr)
        _print_lance(found.lance)
    return DONE


def _repair(args: Args) -> str:
    """What to do where the index can't be written."""
    if args.here:
        return "leave out --here, which keeps it in your cache folder"
    return f"keep it beside the pictures: coca index {args.folder} --here"


def _url(args: Args, place: Path) -> str:
    return args.url or str((place / "lance").absolute())


def _told(lance: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is said of a table in LanceDB."""
    return None if lance is None else {name: lance[name] for name in ("url", "rows", "kind", "recall")}


def _print_lance(lance: dict[str, Any] | None) -> None:
    import sys

    from opencoca.cli.output import shown

    if lance is not None:
        how = "exact" if lance["kind"] == "flat" else f"IVF-PQ, recall@10 {lance['recall']:.3f} as measured"
        print(shown(f"LanceDB: {lance['url']} ({lance['rows']:,} rows, {how})"), file=sys.stderr)


def _groups_of(args: Args, place: Path) -> None:
    from opencoca.search.lance import backend_of

    opened = backend_of(args.folder, place)
    assert opened is not None
    _print_groups(args, opened[0])


def _print_groups(args: Args, store: Backend) -> None:
    import json

    from opencoca.cli.forms import stdout_is_utf8
    from opencoca.cli.output import shown

    ids = store.ids().tolist()
    pictures = store.pictures(ids)
    groups = _groups(args, store, [picture.caption for picture in pictures])
    if args.json:
        told = [{"title": group.title, "paths": [str(pictures[i].path) for i in group.places]} for group in groups]
        print(json.dumps(told, ensure_ascii=not stdout_is_utf8()))
    for number, group in enumerate(groups if not args.json else []):
        if args.albums:
            print(("\n" if number else "") + f"{shown(group.title)} ({len(group.places)})")
            print("".join(f"  {shown(pictures[i].path)}\n" for i in group.places), end="")
        else:
            print(("\n" if number else "") + "".join(f"{shown(pictures[i].path)}\n" for i in group.places), end="")
    if args.html:
        _page(args, groups, pictures)


def _groups(args: Args, store: Backend, captions: list[str]) -> list[Album]:
    from opencoca.search.albums import Album, albums, duplicates

    embeds = store.embeds()
    if args.albums:
        return albums(embeds, captions, args.albums_count)
    return [Album(captions[group[0]], group) for group in duplicates(embeds, args.threshold)]


def _page(args: Args, groups: list[Album], pictures: list[Any]) -> None:
    from opencoca.search.sheet import Cell, sheet

    assert args.html is not None
    what = "Albums" if args.albums else "Nearly the same"
    cells = [
        (group.title, [Cell(pictures[i].path, pictures[i].path.name, pictures[i].caption, "") for i in group.places])
        for group in groups
    ]
    note = f"{sum(len(group.places) for group in groups):,} pictures in {len(groups):,} groups"
    write_file(args.html, sheet(f"{what}: {args.folder}", note, cells).encode(errors="replace"))
