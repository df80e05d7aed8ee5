"""`coca caption`: describe pictures in words."""

from __future__ import annotations

from dataclasses import dataclass

from opencoca.cli.main import Flag, ModelName, Paths


@dataclass(frozen=True)
class Args:
    """Describe pictures in words.

    Prints one line per picture: its path, a tab, its caption; on a terminal, a table. A folder stands for the
    pictures in it and in its subfolders. A picture that can't be read is named and skipped (exit code 3).

    Examples:
      coca caption cat.png dog.png
      coca caption holiday/ --beams 1
      coca caption *.jpg --model runs/quickstart > captions.tsv
      coca caption holiday/ --json > captions.json
    """

    paths: Paths
    """Picture files, or folders of them."""
    model: ModelName = None
    """A run or model folder."""
    beams: int = 8
    """Width of the beam search; 1 is greedy, and the fastest."""
    max_tokens: int = 32
    """Length in tokens at which a caption is cut, if the model's context doesn't end earlier."""
    json: Flag = False
    """Print a JSON list of objects with path, caption and log_prob (in nats)."""


def run(args: Args) -> int:
    """Captions batch by batch, so that memory doesn't grow with the number of pictures."""
    from opencoca.cli.pictures import find

    found = find(args.paths)

    from opencoca.cli.output import Column, Output, Row, width_of
    from opencoca.infer.stream import encoded
    from opencoca.loading import load

    predictor = load(args.model)
    columns = [Column("picture", "cyan", width=width_of(found.paths)), Column("caption")]
    with Output(found, columns, args.json) as output:
        for paths, features in encoded(predictor, found.paths, output.skip):
            generated = predictor.caption_features(features, beams=args.beams, max_tokens=args.max_tokens)
            output.done(len(paths))
            output.rows(
                [
                    Row((str(path), caption), {"path": str(path), "caption": caption, "log_prob": one.log_prob})
                    for path, (caption, one) in zip(paths, generated, strict=True)
                ]
            )
        return output.finish()
