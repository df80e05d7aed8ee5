"""Any name to a Predictor: a run folder, a model folder, or none for the newest run."""

from __future__ import annotations

from pathlib import Path

import torch

from opencoca import checkpoint
from opencoca.errors import CheckpointError
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

RUNS = Path("runs")


def load(name: str | Path | None = None, device: str | None = None) -> Predictor:
    """The model in the folder `name`: a model folder, or a run folder's latest checkpoint; by default the newest run.

    Raises: CheckpointError that names what is missing and the command to get it.
    """
    saved = checkpoint.load(Path(name) if name is not None else newest_run())
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build(saved.config.model, seed=0, device=chosen)
    checkpoint.load_weights(model, saved.weights, saved.folder / checkpoint.MODEL)
    return Predictor(model, saved.tokenizer, saved.config)


def newest_run(runs: Path = RUNS) -> Path:
    """The run folder under `runs` whose checkpoint is the newest.

    Raises: CheckpointError where there is none.
    """
    pointers = [pointer for pointer in runs.glob("*/checkpoints/latest") if pointer.is_file()]
    if not pointers:
        raise CheckpointError(
            f"there is no trained model under {runs}/; train one with `coca quickstart`, or name one with --model"
        )
    return max(pointers, key=lambda pointer: pointer.stat().st_mtime).parent.parent
