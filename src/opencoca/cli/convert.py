"""`coca convert`: write a model as a folder of our format or of OpenCLIP's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE
from opencoca.errors import DataError


@dataclass(frozen=True)
class Args:
    """Write a model as a folder of our format or of OpenCLIP's.

    SOURCE is anything that --model takes elsewhere: a run or model folder, hf:org/name, a folder or weights file in
    OpenCLIP's layout, the name of a pulled model. FOLDER must not exist yet. Nothing is lost on the way: a model that
    is converted there and back is the same, bit for bit (but for --dtype float16).

    Examples:
      coca convert open_clip_pytorch_model.bin models/coca-b-32
      coca convert runs/quickstart models/mine --dtype float16
      coca convert models/coca-b-32 exported --to open_clip
    """

    source: Annotated[str, Positional, arg(metavar="SOURCE", help_behavior_hint="")]
    """The model to convert."""
    folder: Annotated[Path, Positional, arg(metavar="FOLDER", help_behavior_hint="")]
    """The folder to write."""
    to: Literal["opencoca", "open_clip"] = "opencoca"
    """The format to write."""
    dtype: Literal["float32", "float16"] = "float32"
    """How matrices are stored; float16 halves the files, and is widened again when a model is loaded."""


def run(args: Args) -> int:
    """Opens the source with all digests verified, and writes the folder whole or not at all."""
    if args.folder.exists() and (args.folder.is_file() or any(args.folder.iterdir())):
        raise DataError(f"{args.folder} exists already and isn't overwritten; name a new folder")

    import torch

    from opencoca import checkpoint, weights
    from opencoca.interop import open_clip_folder
    from opencoca.loading import open_model
    from opencoca.model_card import Origin

    opened = open_model(args.source, digests=True)
    dtype = getattr(torch, args.dtype)
    state = {name: opened.state[name] for name in ("step", "metrics") if opened.state and name in opened.state}
    if args.to == "open_clip":
        origin = opened.origin or Origin(f"OpenCoCa's recipe {opened.config.recipe}")
        if args.folder.exists():
            args.folder.rmdir()
        open_clip_folder.write_folder(args.folder, opened.model, opened.config, opened.tokenizer, origin, state, dtype)
    else:
        stored = weights.stored_as(dict(opened.model.named_parameters()), dtype)
        checkpoint.save(args.folder, opened.config, opened.tokenizer, stored, state=state or None, origin=opened.origin)
    print(args.folder)
    return DONE
