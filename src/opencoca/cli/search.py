"""`coca search`: find the pictures of a folder that fit words, a picture, or a sum of both."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from opencoca.cli.forms import shown
from opencoca.cli.hits import say_named_before, show
from opencoca.cli.main import DONE, SKIPPED, Flag, ModelName
from opencoca.cli.targets import check_file, writing
from opencoca.errors import DataError
from opencoca.search.filters import Filters, day, size
from opencoca.search.query import EMPTY, parse

if TYPE_CHECKING:
    from opencoca.cli.output import Output
    from opencoca.search.answers import Answer, Request
    from opencoca.search.files import Listing

Day = Annotated[str, arg(metavar="YYYY-MM-DD", help_behavior_hint="")]
Size = Annotated[str, arg(metavar="SIZE", help_behavior_hint="")]
Below = Annotated[str, arg(metavar="SUBFOLDER", help_behavior_hint="")]
Page = Annotated[Optional[Path], arg(metavar="FILE", help_behavior_hint="")]  # noqa: UP045 - see cli.main.ModelName
IDLE_MINUTES = 15.0


class Words(tuple[str, ...]):
    """The words of a query; a class of its own, for what it saves at the start (see `cli.main.ModelName`)."""


READ_WORDS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="QUERY",
    instance_from_str=Words,
    is_instance=lambda value: isinstance(value, Words),
    str_from_instance=list,
)


@dataclass(frozen=True)
class Args:
    """Find the pictures of a folder that fit words, a picture, or a sum of both.

    Prints the best pictures, the best first: path, a tab, score (the cosine similarity); on a terminal, also why each
    matched. What the model saw in each picture is kept in an index (see `coca index`), so that the next search there is
    quick. Where nothing fits better than what unrelated queries find, a line says so. A query may add and subtract, as
    in: "red car" + ref.jpg - night. A picture that can't be read is named and skipped (exit code 3).

    Examples:
      coca search holiday/ "a boat on a lake"
      coca search holiday/ ref.jpg + sunset - people --top 3
      coca search holiday/ "a boat" --after 2024-06-01 --within lake --min-size 200k
      coca search holiday/ sunset --html found.html --open
      coca search holiday/ sunset --resident --json > found.json
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR", help_behavior_hint="")]
    """The folder of pictures; its subfolders are searched too."""
    query: Annotated[Words, READ_WORDS, Positional, arg(metavar="QUERY", help_behavior_hint="")]
    """What to look for: words, names of picture files, and + and - between them."""
    model: ModelName = None
    """The model that made the index, under another name; by default it is found by itself."""
    top: int = 10
    """How many pictures to show."""
    good: Flag = False
    """Leave out pictures that fit no better than what unrelated queries find."""
    blend: float = 0.0
    """How much the captions' words count, from 0 to 1 (needs captions: see `coca index`)."""
    after: Day = ""
    """Only pictures taken on that day or later."""
    before: Day = ""
    """Only pictures taken on that day or earlier."""
    min_size: Size = ""
    """Only files of so many bytes or more, as in 200k or 1.5MB."""
    max_size: Size = ""
    """Only files of so many bytes or fewer."""
    within: Below = ""
    """Only pictures in that folder below DIR."""
    html: Page = None
    """Write a page with the pictures that were found; it needs no other file."""
    open: Flag = False
    """Show that page in the browser."""
    resident: Flag = False
    """Leave a process behind that answers the next searches at once; it ends after 15 idle minutes."""
    no_update: Flag = False
    """Search the index as it is, without looking for new pictures."""
    no_cache: Flag = False
    """Look at every picture anew, and keep nothing."""
    json: Flag = False
    """Print a JSON list of objects with path, score, caption, why, good and id."""


def run(args: Args) -> int:
    """Asks the resident process if there is one, else the index itself, and prints what is found."""
    from opencoca.search.answers import Request

    query = " ".join(args.query).strip()
    if not query:
        raise DataError(EMPTY)
    if args.top < 1:
        raise DataError(f"--top {args.top} shows nothing; ask for 1 picture or more")
    if not 0 <= args.blend <= 1:
        raise DataError(f"--blend {args.blend} must be from 0, where only pictures count, to 1, where only captions do")
    if args.folder.is_file():
        raise DataError(f"{args.folder} is a file; name the folder that it is in")
    if args.no_cache and (args.no_update or args.resident):
        raise DataError("--no-cache keeps no index to search later; leave out --no-update and --resident")
    terms = [
        term._replace(value=str(_picture(args.folder, term.value))) if term.kind == "picture" else term
        for term in parse(query)
    ]
    if args.html:
        check_file(args.html)
    bounds = Filters(
        day(args.after) if args.after else None,
        day(args.before) if args.before else None,
        size(args.min_size) if args.min_size else None,
        size(args.max_size) if args.max_size else None,
        args.within,
    )
    request = Request(terms, args.top, args.blend, bounds)
    args, below = _of_bulk(args)
    answer = None if args.no_cache else _resident(args, request)
    if answer is None:
        return _search(args, query, request, below)
    for path, what in answer.bad:
        print(f"skipped {shown(args.folder / path)}: it {shown(what)}", file=sys.stderr)
    skipped = len(answer.bad) + answer.named_before
    if answer.named_before:
        say_named_before(args.folder, answer.named_before)
    if skipped:
        print(f"{answer.indexed} done, {skipped} skipped", file=sys.stderr)
    show(args, query, answer, below)
    return SKIPPED if skipped else DONE


def _picture(folder: Path, name: str) -> Path:
    """The file that a query names: from here, else from the folder that is searched."""
    inside = folder / name
    return (inside if inside.is_file() and not Path(name).is_file() else Path(name)).absolute()


def _of_bulk(args: Args) -> tuple[Args, Path]:
    """The arguments, and what the paths of hits start from: an output of `coca bulk` is searched as it is."""
    from opencoca.search import manifest
    from opencoca.search.places import index_folder

    if not (args.folder / "bulk.json").is_file():
        return args, args.folder
    found = manifest.read(index_folder(args.folder), args.folder, check=False)
    if found is None or not found.bulk:
        what = f"{args.folder} is what `coca bulk` wrote, and has no index"
        raise DataError(f"{what}; make one: coca index --from-bulk {args.folder}")
    if args.no_cache:
        raise DataError(f"{args.folder} is what `coca bulk` wrote, and is searched by its index; leave --no-cache out")
    if (args.html or args.open) and found.pictures is None:
        raise DataError("the pictures lie in shards, which a page can't show; leave --html and --open out")
    return dataclasses.replace(args, no_update=True), Path(found.pictures or "")


def _resident(args: Args, request: Request) -> Answer | None:
    from opencoca.search import client
    from opencoca.search.answers import Answer
    from opencoca.search.places import index_folder

    if not args.resident and not client.can():
        return None
    place = index_folder(args.folder)
    message: dict[str, Any] = {"search": request.to_json(), "update": not args.no_update}
    found = client.ask(place, args.model, message)
    if found is None and args.resident and (place / "manifest.json").exists():
        client.start(args.folder, place, args.model, IDLE_MINUTES)
        found = client.ask(place, args.model, message)
    return None if found is None else Answer.from_json(found)


def _search(args: Args, query: str, request: Request, below: Path) -> int:
    listing = None if args.no_update else pictures_of(args.folder)

    from opencoca.cli.options import Printing
    from opencoca.cli.output import Output
    from opencoca.cli.pictures import Found
    from opencoca.search import answers, client
    from opencoca.search.index import Index
    from opencoca.search.opening import predictor_for
    from opencoca.search.places import index_folder

    with _place(args) as place:
        predictor, name = predictor_for(args.folder, place, args.model)
        paths = [args.folder / seen.path for seen in listing.files] if listing else []
        with Output(Found(paths, []), [], Printing()) as output:
            bad = bring_up_to_date(args, place, predictor, name, output, listing) if listing else []
            index = Index.open(args.folder, predictor, place, name)
            if not listing:
                output.done(len(index))
            answer = answers.answer(index, request, len(paths) - len(bad), bad)
            code = output.finish()
        show(args, query, answer, below)
        if args.resident and place == index_folder(args.folder):
            client.start(args.folder, place, args.model, IDLE_MINUTES)
        return code


@contextmanager
def _place(args: Args) -> Iterator[Path]:
    """The index's folder: for this search alone with --no-cache."""
    from opencoca.search.places import index_folder

    if not args.no_cache:
        yield index_folder(args.folder)
        return
    with tempfile.TemporaryDirectory(prefix="opencoca-") as folder:
        yield Path(folder) / "index"


def pictures_of(folder: Path) -> Listing:
    """The pictures below a folder.

    Raises: DataError for a folder that isn't there or has none.
    """
    from opencoca.cli.pictures import find
    from opencoca.search.files import listed

    if folder.is_file():
        raise DataError(f"{folder} is a file; name the folder that it is in")
    listing = listed(folder) if folder.is_dir() else None
    if listing is None or not listing.files:
        find([folder])  # says what is wrong
        raise DataError(f"{folder} holds only links that lead out of it; copy the pictures into it")
    return listing


def bring_up_to_date(
    args: Args, place: Path, predictor: Any, name: str, output: Output, listing: Listing
) -> list[tuple[str, str]]:
    """Updates the index, with the progress of `output`; gives what can't be read, and names of it what is new. Goes on
    where another one indexes."""
    from opencoca.search.places import CACHE_REPAIR
    from opencoca.search.update import Progress, update
    from opencoca.search.writer import BusyError

    folder, told = args.folder, 0

    def tell(progress: Progress) -> None:
        nonlocal told
        if progress.done > told:
            output.done(progress.done - told)
            told = progress.done

    def named(path: Path, error: DataError) -> None:
        output.skip(path, error, named=True)

    try:
        with writing(place, "" if args.no_cache else CACHE_REPAIR.format(folder=folder)):
            counts = update(
                folder,
                predictor,
                name,
                index=place,
                on_bad=output.skip,
                on_named=named,
                on_progress=tell,
                listing=listing,
            )
    except BusyError:
        print(f"another process is indexing {folder}; this searches what it has so far", file=sys.stderr)
        output.done(1)
        return []
    if counts.named_before and (counts.pictures or counts.named_before < len(counts.bad)):
        say_named_before(folder, counts.named_before)
    return counts.bad
