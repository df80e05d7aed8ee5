"""Atomic save and verified load. One folder format for models and training checkpoints, of one process and of many.

    model.safetensors      the weights to use (the moving average, where the run keeps one)
    training.safetensors   optimizer moments and raw weights (checkpoints only)
    config.json            the resolved configuration
    tokenizer.json         the vocabulary
    state.json             step, position in the data, metrics (checkpoints; models converted from one)
    origin.json            where a model that was not trained here came from, its licence (optional)
    README.md              the model card (models only)
    manifest.json          format version, size and sha256 of every other file, and of itself; written last

Where the ranks of a run cut the model up, each writes the pieces that it has, `model-00001-of-00004.safetensors` and
`training-00001-of-00004.safetensors`; any other number of ranks, or one process, can read them.

A folder is written under a temporary name, flushed to disk, and renamed: it is there whole or not at all. While a
folder is replaced, its older version stands beside it as `.retired-NAME` until the new one has its name. Nothing is
ever unpickled. A run folder holds `checkpoints/step-00000200/` and `checkpoints/latest`, which names one.

Versions 1 and 2 had no tensors in several files and no digest of the manifest itself, version 1 neither origin nor
card; fields that their configurations lack have defaults that mean what they meant.
"""

from opencoca.checkpoint.folders import (
    ALWAYS_DIGESTED_BYTES,
    Checkpoint,
    abandon,
    begin,
    finish,
    load,
    load_weights,
    opened,
    parameters_by_part,
    save,
    write_part,
)
from opencoca.checkpoint.manifest import (
    CARD,
    CONFIG,
    FORMAT,
    MANIFEST,
    MODEL,
    ORIGIN,
    STATE,
    TOKENIZER,
    TRAINING,
    VERSION,
    sealed,
    verify,
)
from opencoca.checkpoint.pieces import Piece, Stored, whole, without_copies
from opencoca.checkpoint.runs import (
    checkpoint_folder,
    latest_checkpoint,
    mark_latest,
    move_latest,
    resolve,
    standing,
)
from opencoca.files import file_digest, fsync, write_atomically

__all__ = [
    "ALWAYS_DIGESTED_BYTES",
    "CARD",
    "CONFIG",
    "FORMAT",
    "MANIFEST",
    "MODEL",
    "ORIGIN",
    "STATE",
    "TOKENIZER",
    "TRAINING",
    "VERSION",
    "Checkpoint",
    "Piece",
    "Stored",
    "abandon",
    "begin",
    "checkpoint_folder",
    "file_digest",
    "finish",
    "fsync",
    "latest_checkpoint",
    "load",
    "load_weights",
    "mark_latest",
    "move_latest",
    "opened",
    "parameters_by_part",
    "resolve",
    "save",
    "sealed",
    "standing",
    "verify",
    "whole",
    "without_copies",
    "write_atomically",
    "write_part",
]
