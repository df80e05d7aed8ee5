"""`coca embed`: pictures or texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from opencoca.cli.main import Flag, ModelName, Paths
from opencoca.cli.options import ARRAY_SUFFIXES, EmbeddingGroup, EmbeddingOptions
from opencoca.cli.words import lines
from opencoca.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from opencoca.cli.forms import Row

Texts = Annotated[tuple[str, ...], arg(metavar="TEXT...", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class Args:
    """Turn pictures or texts into vectors that can be compared.

    Each becomes a row of unit length; the product of two rows is their cosine similarity, be they of pictures or of
    texts. A file of arrays has `embeddings` and `paths` (or `texts`); an .npy file has the matrix alone, and its paths
    are in FILE.about.json. A picture that can't be read is named and skipped (exit code 3).

    Examples:
      coca embed holiday/ --output holiday.npz
      coca embed holiday/ --output holiday.safetensors --float16
      coca embed --texts "a cat" "a dog" --output texts.npz
      find . -name "*.jpg" | coca embed - --jsonl
    """

    paths: Paths = ()
    """Picture files, folders of them, or - for a list on standard input."""
    texts: Texts = ()
    """Texts to embed instead of pictures."""
    texts_file: File = None
    """A text file with a text a line, instead of pictures."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    float16: Flag = False
    """Round to 16 bits, which halves the file."""
    output: EmbeddingGroup = field(default_factory=EmbeddingOptions)


def run(args: Args) -> int:
    """Embeds batch by batch."""
    from opencoca.cli.pictures import Found, find

    texts = (*args.texts, *(lines(args.texts_file, "--texts-file", "text") if args.texts_file else ()))
    if not (args.output.output or args.output.form):
        raise DataError("embeddings are for programs to read; add --output embeddings.npz, or --jsonl")
    if bool(args.paths) == bool(texts):
        what = "paths and texts were given" if texts else "no paths given"
        raise DataError(f"{what}; name pictures, or give --texts; 'coca embed --help' shows examples")
    found = find(args.paths) if args.paths else Found([], [])

    from opencoca.cli.output import Column, Output
    from opencoca.infer.stream import encoded
    from opencoca.loading import load

    predictor = load(args.model)
    kind, width = ("text" if texts else "path"), predictor.model.config.embed_dim

    def about() -> dict[str, Any]:
        options = {"of": f"{kind}s", "dtype": "float16" if args.float16 else "float32"}
        return {"command": "embed", "model": predictor.fingerprint(), "options": options}

    sink = None
    if args.output.output and args.output.file_form in ARRAY_SUFFIXES.values():
        from opencoca.cli.arrays import ArrayFile

        sink = ArrayFile(args.output.output, args.output.file_form, about(), width, args.output.overwrite)
    header = [kind, *(f"e{i}" for i in range(width))]
    with Output(found, [Column(kind)], args.output, header, about, sink=sink, texts=texts) as output:
        for paths, features in encoded(predictor, output.todo, output.skip):
            output.done(len(paths))
            output.rows(embedding_rows("path", paths, features.embed, args.float16))
        for first in range(0, len(output.texts), predictor.batch_size):
            some = output.texts[first : first + predictor.batch_size]
            output.done(len(some))
            output.rows(embedding_rows("text", some, predictor.embed_texts(some), args.float16))
        return output.finish()


def embedding_rows(kind: str, names: Sequence[object], embeds: Tensor, float16: bool) -> list[Row]:
    """A row for each of some names, with its embedding."""
    from opencoca.cli.forms import Row

    values = embeds.float().cpu().numpy()
    if float16:
        values = values.astype("float16")
    rows = []
    for name, vector in zip(map(str, names), values, strict=True):
        numbers = [float(str(value)) for value in vector]  # as few digits as tell it from its neighbours
        rows.append(Row((name, *map(str, vector)), {kind: name, "embedding": numbers}, (name, *numbers)))
    return rows
