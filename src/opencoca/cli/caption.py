"""`coca caption`: describe pictures in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from opencoca.cli.main import ModelName, Paths
from opencoca.cli.options import Generation, GenerationGroup, OutputGroup, OutputOptions

if TYPE_CHECKING:
    from opencoca.cli.forms import Row
    from opencoca.infer.captioning import Described


@dataclass(frozen=True)
class Args:
    """Describe pictures in words.

    Prints one line per picture: its path, a tab, its caption; on a terminal, a table. A folder stands for the
    pictures in it and in its subfolders, and `-` for those that standard input lists. A picture that can't be read is
    named and skipped (exit code 3).

    Examples:
      coca caption cat.png dog.png
      coca caption holiday/ --beams 1
      coca caption holiday/ --output captions.csv
      coca caption holiday/ --write sidecar
      coca caption *.jpg --prompt "a photo of" --num-captions 3 --json
      coca caption *.jpg --temperature 0.7 --top-p 0.9 --seed 1
      find . -name "*.jpg" -print0 | coca caption - --jsonl > captions.jsonl
    """

    paths: Paths
    """Picture files, folders of them, or - for a list on standard input."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    prompt: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """How every caption begins."""
    num_captions: int = 1
    """How many captions each picture gets, the best first."""
    generation: GenerationGroup = field(default_factory=Generation)
    output: OutputGroup = field(default_factory=OutputOptions)


def run(args: Args) -> int:
    """Captions batch by batch, so that memory doesn't grow with the number of pictures."""
    from opencoca.cli.pictures import find

    found = find(args.paths)

    from opencoca.cli.output import Column, Output, width_of
    from opencoca.loading import load

    predictor = load(args.model)
    settings = args.generation.settings(predictor.config.generation)

    def about() -> dict[str, Any]:
        options = {"prompt": args.prompt, "num_captions": args.num_captions, **dataclasses.asdict(settings)}
        return {"command": "caption", "model": predictor.fingerprint(), "options": options}

    columns = [Column("picture", "cyan", width=width_of(found.paths)), Column("caption")]
    header = ["path", "caption", "log_prob"]
    for number in range(2, args.num_captions + 1):
        columns.append(Column(f"caption {number}", "dim"))
        header += [f"caption_{number}", f"log_prob_{number}"]
    with Output(found, columns, args.output, header, about) as output:
        described = predictor.describe(
            output.todo,
            prompt=args.prompt,
            num_captions=args.num_captions,
            on_bad=output.skip,
            **args.generation.changes(),
        )
        for one in described:
            output.done(1)
            output.rows([_row(one, args.num_captions)])
        return output.finish()


def _row(one: Described, num_captions: int) -> Row:
    from opencoca.cli.forms import Row

    path, texts = str(one.picture), [caption.text for caption in one.captions]
    first = {"caption": texts[0], "log_prob": one.captions[0].log_prob}
    several = [{"caption": caption.text, "log_prob": caption.log_prob} for caption in one.captions]
    record = {"path": path, **first, **({"captions": several} if num_captions > 1 else {})}
    values = [value for caption in one.captions for value in (caption.text, caption.log_prob)]
    missing = num_captions - len(texts)  # a search may end with fewer
    return Row(_filled([path, *texts], missing), record, _filled([path, *values], 2 * missing), texts)


def _filled(values: Sequence[Any], missing: int) -> list[Any]:
    return [*values, *[""] * missing]
