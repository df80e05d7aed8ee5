"""`coca classify`: choose among labels, without training or from a few examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import UseAppendAction, arg

from opencoca.cli.main import DONE, SKIPPED, Flag, Labels, ModelName, Paths
from opencoca.cli.options import OutputGroup, OutputOptions
from opencoca.cli.words import lines
from opencoca.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from opencoca.cli.forms import Row
    from opencoca.infer.predictor import Predictor
    from opencoca.infer.stream import OnBad
    from opencoca.types import ImageFeatures

SHOWN_LABELS = 5
APPLIES = 0.5  # with --multi-label, labels from this probability on are the picture's
PATHS_WANTED = "no paths given; 'coca classify --help' shows examples"
LABELS_WANTED = "no labels given; add --labels cat,dog, or --examples with a folder of pictures for each label"

Templates = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="SENTENCE", help_behavior_hint="(default: {})")]
Name = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: 5 in lines, all in JSON)")]
Given = Annotated[Labels, arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Choose among labels that you name, without training, or learn them from a few pictures each.

    Prints one line per picture: its path, the most probable label and its probability, then the next labels, with
    tabs between; on a terminal, a table. A folder stands for the pictures in it and in its subfolders, and `-` for
    those that standard input lists. A picture that can't be read is named and skipped (exit code 3). A model that
    `coca recognise` has taught labels chooses among these where none are given.

    Examples:
      coca classify cat.png dog.png --labels cat,dog
      coca classify holiday/ --labels beach,mountains,city --template "a photo of a {}" --unknown
      coca classify holiday/ --labels-file labels.txt --multi-label --write xmp
      coca classify new/ --examples sorted/ --save-probe mine.probe     (sorted/cats/*.jpg, sorted/dogs/*.jpg)
      coca classify newer/ --probe mine.probe --csv > labels.csv
    """

    paths: Paths = ()
    """Picture files, folders of them, or - for a list on standard input."""
    labels: Given = ()
    """The labels to choose among, two or more, separated by commas."""
    labels_file: File = None
    """A text file with a label a line."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    template: Templates = ()
    """A sentence with {} where the label goes; given several times, each label is the average of its sentences."""
    templates: Name = None
    """A set of sentences that comes with OpenCoCa: plain, photo, imagenet or drawing."""
    unknown: Flag = False
    """Allow for pictures that no label fits: "unknown" is one more label."""
    multi_label: Flag = False
    """Ask of each label by itself whether it fits; any number may."""
    top: Count = None
    """How many labels to show."""
    examples: Folder = None
    """Learn the labels: DIR has a folder of a few pictures for each, by its name."""
    save_probe: File = None
    """Keep what was learnt from the examples."""
    probe: File = None
    """Use what was kept by --save-probe."""
    output: OutputGroup = field(default_factory=OutputOptions)


class Classifier(NamedTuple):
    """Columns of labels, how encoded pictures get their probabilities [B,L], and what that depends on.

    of_squares: how pictures get them that aren't encoded yet, instead.
    """

    columns: tuple[str, ...]
    probabilities: Callable[[ImageFeatures], Tensor]
    options: dict[str, Any]
    of_squares: Callable[[np.ndarray], Tensor] | None = None


def run(args: Args) -> int:
    """Embeds the labels once, then the pictures batch by batch."""
    from opencoca.cli.pictures import Found, find

    labels = _checked(args)
    found = find(args.paths) if args.paths else Found([], [])

    from opencoca.cli.output import Column, Output, width_of
    from opencoca.loading import load

    predictor = load(args.model)
    classifier, bad_examples = _classifier(args, predictor, labels)
    if not args.paths:
        return SKIPPED if bad_examples else DONE

    def about() -> dict[str, Any]:
        options = {**classifier.options, "top": args.top, "multi_label": args.multi_label}
        return {"command": "classify", "model": predictor.fingerprint(), "options": options}

    columns = [
        Column("picture", "cyan", width=width_of(found.paths)),
        Column("label", "bold", width=width_of(classifier.columns)),
        Column("probability", justify="right", width=0),
        Column("next", "dim"),
    ]
    header = ["path", "label", "probability", *(["labels"] if args.multi_label else [])]
    for number in range(2, min(args.top or SHOWN_LABELS, len(classifier.columns)) + 1):
        header += [f"label_{number}", f"probability_{number}"]
    with Output(found, columns, args.output, header, about, "subject", classifier.columns) as output:
        for paths, probabilities in _probabilities(predictor, classifier, output.todo, output.skip):
            rows = probabilities.tolist()
            output.done(len(paths))
            output.rows([_row(path, classifier.columns, row, args) for path, row in zip(paths, rows, strict=True)])
        return max(output.finish(), SKIPPED if bad_examples else DONE)


def _checked(args: Args) -> tuple[str, ...]:
    """The labels that were named.

    Raises: DataError for options that contradict each other or are missing.
    """
    labels = (*args.labels, *(lines(args.labels_file, "--labels-file", "label") if args.labels_file else ()))
    sources = {
        "--labels": bool(args.labels or args.labels_file),
        "--examples": args.examples is not None,
        "--probe": args.probe is not None,
    }
    chosen = [name for name, given in sources.items() if given]
    if not args.paths and (args.save_probe is None or args.examples is None):
        raise DataError(PATHS_WANTED)
    if not chosen and (args.unknown or args.multi_label or args.template or args.templates):
        raise DataError(LABELS_WANTED)
    if len(chosen) > 1:
        raise DataError(f"{' and '.join(chosen)} were given; the labels can come from one of them only")
    if chosen == ["--labels"] and len(labels) == 1 and not (args.unknown or args.multi_label):
        raise DataError(f"{labels[0]!r} is the only label, so there is nothing to choose; give two, as in cat,dog")
    if chosen and chosen != ["--labels"] and (args.unknown or args.multi_label):
        raise DataError(f"--unknown and --multi-label go with --labels; {chosen[0]} chooses one of its labels")
    if args.probe and (args.template or args.templates):
        raise DataError("--probe has learnt its labels from sentences and pictures; leave out --template")
    if args.save_probe and not args.examples:
        raise DataError("--save-probe was given without --examples, so there is nothing to keep; add a folder of them")
    if args.template and args.templates:
        raise DataError("--template and --templates were given; choose sentences of your own, or a set of them")
    if args.top is not None and args.top < 1:
        raise DataError(f"--top {args.top} shows nothing; ask for 1 label or more")
    return labels


def _classifier(args: Args, predictor: Predictor, labels: Sequence[str]) -> tuple[Classifier, int]:
    """What tells the labels of pictures, and how many examples were bad."""
    templates = args.templates or args.template or ("{}",)
    if labels:
        zero_shot = predictor.zero_shot(labels, templates=templates, unknown=args.unknown, multi_label=args.multi_label)
        options = {"labels": list(labels), "templates": templates, "unknown": args.unknown}
        return Classifier(zero_shot.columns, zero_shot.probabilities, options), 0
    if args.probe is None and args.examples is None:
        return _own(predictor), 0

    from opencoca.infer.probe import Probe

    bad_examples = 0
    if args.probe:
        probe = Probe.load(args.probe, predictor.fingerprint())
    else:
        from opencoca.cli.examples import fit

        assert args.examples is not None  # _checked has seen to it
        probe, bad_examples = fit(predictor, args.examples, templates)
        if args.save_probe:
            probe.save(args.save_probe)
    options = {"labels": list(probe.labels), "probe": hashlib.sha256(probe.weights.numpy().tobytes()).hexdigest()}
    return Classifier(probe.labels, lambda features: probe.probabilities(features.embed), options), bad_examples


def _own(predictor: Predictor) -> Classifier:
    """The labels that the model was taught. Raises: DataError where there are none."""
    from opencoca.infer.heads import head_for, label_logits

    if not any(head.reads == "encoder" and head.pictures == 1 for head in predictor.model.config.heads):
        raise DataError(LABELS_WANTED)
    head = head_for(predictor, "encoder", pictures=1)

    def of_squares(squares: np.ndarray) -> Tensor:
        return label_logits(predictor, head, squares).softmax(dim=-1)

    def of_features(features: ImageFeatures) -> Tensor:
        raise AssertionError("a head reads the encoder's own tokens")

    return Classifier(head.labels, of_features, {"head": head.name}, of_squares)


def _probabilities(
    predictor: Predictor, classifier: Classifier, paths: Iterable[Path], skip: OnBad
) -> Iterator[tuple[list[Path], Tensor]]:
    """The readable pictures and their probabilities [B,L], a batch at a time."""
    from opencoca.infer.stream import encoded

    if classifier.of_squares is not None:
        for batch in predictor.squares(paths, skip):
            yield batch.pictures, classifier.of_squares(batch.squares)
        return
    for some, features in encoded(predictor, paths, skip):
        yield some, classifier.probabilities(features)


def _row(path: Path, labels: Sequence[str], probabilities: Sequence[float], args: Args) -> Row:
    from opencoca.cli.forms import Row

    ordered = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    shown = ordered[: args.top or SHOWN_LABELS]
    (best, probability), *others = shown
    following = ", ".join(f"{label} {value:.3f}" for label, value in others)
    record = {"path": str(path), "label": best, "probability": probability}
    values: list[object] = [str(path), best, probability]
    fitting = [best]
    if args.multi_label:
        record["labels"] = fitting = [label for label, value in ordered if value >= APPLIES]
        values.append(", ".join(fitting))
    record["probabilities"] = dict(ordered[: args.top])
    values += [value for pair in others for value in pair]
    words = [label for label in fitting if not (args.unknown and label == labels[-1])]
    return Row((str(path), best, f"{probability:.3f}", following), record, values, words)
