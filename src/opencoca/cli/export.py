"""`coca export`: write a model for programs that have no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, Flag


@dataclass(frozen=True)
class Args:
    """Write a model for programs that have no torch.

    Makes FOLDER, which must not exist yet, with the graphs image_encoder, text_encoder, decoder_start and decoder_step,
    which onnxruntime runs to the same captions and embeddings, tokenizer.json and config.json. MODEL is anything that
    --model takes elsewhere. This command needs the extra `export`.

    Examples:
      coca export runs/quickstart exported
      coca export hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k coca-b-32 --int8
      python -m opencoca.interop.onnx_runner exported cat.png
    """

    model: Annotated[str, Positional, arg(metavar="MODEL", help_behavior_hint="")]
    """The model to export."""
    folder: Annotated[Path, Positional, arg(metavar="FOLDER", help_behavior_hint="")]
    """The folder to write."""
    format: Literal["onnx"] = "onnx"
    """The format to write."""
    int8: Flag = False
    """Keep the decoder's matrices as 8-bit integers: files and decoding time shrink, captions hardly change."""


def run(args: Args) -> int:
    """Traces the model's graphs and prints the files' sizes."""
    from opencoca.interop import onnx

    onnx.check(args.folder)

    from opencoca.loading import open_model

    opened = open_model(args.model, digests=True)
    onnx.export(opened.model, opened.tokenizer, opened.config, args.folder, args.int8)
    for path in sorted(args.folder.iterdir()):
        print(path, f"{path.stat().st_size / 1e6:.1f} MB", sep="\t")
    return DONE
