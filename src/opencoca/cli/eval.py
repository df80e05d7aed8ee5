"""`coca eval`: a model's figures on held-out lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from opencoca.cli.main import DONE, Flag, ModelName


@dataclass(frozen=True)
class Args:
    """Measure a model: zero-shot, retrieval and captions.

    The data is a folder of tar shards with a manifest, as `coca quickstart` writes it. Retrieval ranks a list's own
    captions and pictures; captions are compared with their references by CIDEr-D and exact match.

    Examples:
      coca eval --data data/openmoji
      coca eval --data data/openmoji --splits val --model runs/mine --json
    """

    data: Path
    """Folder of shards."""
    splits: tuple[str, ...] = ("test_pictures", "test_combinations", "test_concepts")
    """Held-out lists to measure."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    beams: int = 8
    """Width of the beam search for captions; 1 is greedy."""
    json: Flag = False
    """Print one JSON object with every figure, as a fraction."""


def run(args: Args) -> int:
    """Prints a table, a row per figure and a column per list, or JSON."""
    from opencoca.eval.held_out import load_held_out
    from opencoca.eval.openmoji import attributes
    from opencoca.eval.suite import evaluate_split
    from opencoca.loading import load

    predictor = load(args.model)
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels
    columns = {}
    for split in args.splits:
        held_out = load_held_out(args.data, split, size_px, pixels)
        columns[f"{split} ({len(held_out)})"] = evaluate_split(predictor, held_out, attributes(), args.beams).figures
    if args.json:
        print(
            json.dumps(
                {f"{name.split()[0]}/{key}": v for name, col in columns.items() for key, v in col.items()}, indent=2
            )
        )
        return DONE
    print(f"{'':<22}" + "".join(f"{name:>26}" for name in columns))
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        cells = [_cell(key, column[key]) if key in column else "–" for column in columns.values()]
        print(f"{key:<22}" + "".join(f"{cell:>26}" for cell in cells))
    return DONE


def _cell(key: str, value: float) -> str:
    return f"{value:.3f}" if key == "cider_d" else f"{value:.1%}"
