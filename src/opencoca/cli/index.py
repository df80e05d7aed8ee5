"""`coca index`: look at a folder's pictures once, so that they can be searched, sorted and rid of copies at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, SKIPPED, Flag, ModelName
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.search.albums import Album
    from opencoca.search.store import Store

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
    listing = pictures_of(args.folder)

    import sys

    from opencoca.cli.options import Printing
    from opencoca.cli.output import Output, json_text, shown
    from opencoca.cli.pictures import Found
    from opencoca.search.opening import predictor_for
    from opencoca.search.places import HERE, index_folder
    from opencoca.search.store import Store
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
        "moved": counts.moved,
        "gone": counts.removed,
        "captioned": counts.captioned,
        "skipped": len(counts.bad),
        "seconds": round(seconds, 3),
        "model": name,
        "index": str(place),
    }
    if args.duplicates or args.albums:
        store = Store.open(args.folder, place)
        assert store is not None
        _print_groups(args, store)
    elif args.json:
        print(json_text(facts))
    else:
        told_counts = ", ".join(
            f"{facts[what]:,} {what}" for what in ("new", "known", "moved", "gone", "skipped") if facts[what]
        )
        print(f"{counts.pictures:,} pictures ({told_counts}), {counts.captioned:,} captions made, {seconds:.1f} s")
        print(shown(f"index: {place}"), file=sys.stderr)
    return SKIPPED if counts.bad else DONE


def _print_groups(args: Args, store: Store) -> None:
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


def _groups(args: Args, store: Store, captions: list[str]) -> list[Album]:
    from opencoca.search.albums import Album, albums, duplicates

    embeds = store.embeds()
    if args.albums:
        return albums(embeds, captions, args.albums_count)
    return [Album(captions[group[0]], group) for group in duplicates(embeds, args.threshold)]


def _page(args: Args, groups: list[Album], pictures: list[Any]) -> None:
    from opencoca.files import write_atomically
    from opencoca.search.sheet import Cell, sheet

    assert args.html is not None
    what = "Albums" if args.albums else "Nearly the same"
    cells = [
        (group.title, [Cell(pictures[i].path, pictures[i].path.name, pictures[i].caption, "") for i in group.places])
        for group in groups
    ]
    note = f"{sum(len(group.places) for group in groups):,} pictures in {len(groups):,} groups"
    write_atomically(args.html, sheet(f"{what}: {args.folder}", note, cells).encode(errors="replace"))
