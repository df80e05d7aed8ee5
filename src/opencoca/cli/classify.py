"""`coca classify`: choose among labels, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from opencoca.cli.main import Flag, Labels, ModelName, Paths
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.cli.output import Row

SHOWN_LABELS = 5
Templates = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="SENTENCE", help_behavior_hint="(default: {})")]


@dataclass(frozen=True)
class Args:
    """Choose among labels that you name, without training.

    Prints one line per picture: its path, the most probable label and its probability, then the next labels (five
    in all), with tabs between; on a terminal, a table. A folder stands for the pictures in it and in its subfolders.
    A picture that can't be read is named and skipped (exit code 3).

    Examples:
      coca classify cat.png dog.png --labels cat,dog
      coca classify holiday/ --labels beach,mountains,city --template "a photo of a {}"
      coca classify *.png --labels cat,dog --json > labels.json
    """

    paths: Paths
    """Picture files, or folders of them."""
    labels: Labels
    """The labels to choose among, two or more, separated by commas."""
    model: ModelName = None
    """A run or model folder."""
    template: Templates = ()
    """A sentence with {} where the label goes; given several times, each label is the average of its sentences."""
    json: Flag = False
    """Print a JSON list of objects with path, label, probability, and the probabilities of all labels."""


def run(args: Args) -> int:
    """Embeds the labels once, then the pictures batch by batch."""
    from opencoca.cli.pictures import find

    if len(args.labels) == 1:
        raise DataError(f"{args.labels[0]!r} is the only label, so there is nothing to choose; give two, as in cat,dog")
    found = find(args.paths)

    from opencoca.cli.output import Column, Output, width_of
    from opencoca.infer.stream import encoded
    from opencoca.loading import load

    predictor = load(args.model)
    labels = predictor.embed_labels(args.labels, args.template or ("{}",))
    columns = [
        Column("picture", "cyan", width=width_of(found.paths)),
        Column("label", "bold", width=width_of(args.labels)),
        Column("probability", justify="right", width=0),
        Column("next", "dim"),
    ]
    with Output(found, columns, args.json) as output:
        for paths, features in encoded(predictor, found.paths, output.skip):
            probabilities = predictor.label_probabilities(features.embed.float().cpu(), labels).tolist()
            output.done(len(paths))
            output.rows([_row(path, args.labels, row) for path, row in zip(paths, probabilities, strict=True)])
        return output.finish()


def _row(path: Path, labels: Sequence[str], probabilities: Sequence[float]) -> Row:
    from opencoca.cli.output import Row

    ordered = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    (best, probability), *others = ordered
    following = ", ".join(f"{label} {value:.3f}" for label, value in others[: SHOWN_LABELS - 1])
    record = {"path": str(path), "label": best, "probability": probability, "probabilities": dict(ordered)}
    return Row((str(path), best, f"{probability:.3f}", following), record)
