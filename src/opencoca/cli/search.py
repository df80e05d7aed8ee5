"""`coca search`: find the pictures of a folder that fit a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opencoca.cli.main import Flag, ModelName
from opencoca.cli.options import Printing
from opencoca.errors import DataError


@dataclass(frozen=True)
class Args:
    """Find the pictures of a folder that fit a sentence.

    Prints the best pictures, the best first: path, a tab, score (the cosine similarity); on a terminal, a table. What
    the model saw in each picture is kept in your cache folder, so that the next search there is quick. A picture that
    can't be read is named and skipped (exit code 3).

    Examples:
      coca search holiday/ "a boat on a lake"
      coca search holiday/ "a boat on a lake" --top 3
      coca search holiday/ sunset --json > found.json
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR", help_behavior_hint="")]
    """The folder of pictures; its subfolders are searched too."""
    query: Annotated[tuple[str, ...], Positional, arg(metavar="QUERY", help_behavior_hint="")]
    """What to look for, in words."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    top: int = 10
    """How many pictures to show."""
    no_cache: Flag = False
    """Look at every picture anew, and keep nothing."""
    json: Flag = False
    """Print a JSON list of objects with path and score."""


def run(args: Args) -> int:
    """Ranks the folder's pictures by their similarity to the query."""
    from opencoca.cli.pictures import find

    query = " ".join(args.query).strip()
    if not query:
        raise DataError('the query is empty; say what to look for, as in "a boat on a lake"')
    if args.top < 1:
        raise DataError(f"--top {args.top} shows nothing; ask for 1 picture or more")
    if args.folder.is_file():
        raise DataError(f"{args.folder} is a file; name the folder that it is in")
    found = find([args.folder])

    from opencoca.cli.output import Column, Output, Row
    from opencoca.loading import load
    from opencoca.search import index

    predictor = load(args.model)
    cache = None if args.no_cache else index.cache_file(args.folder)
    with Output(
        found, [Column("picture", "cyan"), Column("score", justify="right")], Printing(json=args.json)
    ) as output:
        pictures = index.build(predictor, found.paths, output.skip, output.done, cache)
        hits = pictures.search(predictor.embed_texts(query)[0], args.top)
        output.rows(
            [Row((str(hit.path), f"{hit.score:.3f}"), {"path": str(hit.path), "score": hit.score}) for hit in hits]
        )
        return output.finish()
