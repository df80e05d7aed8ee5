"""Labels learnt from folders: `coca classify --examples DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from opencoca.cli.pictures import Skipped, find, natural
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.infer.probe import Probe
from opencoca.infer.stream import encoded


def fit(predictor: Predictor, folder: Path, templates: str | Sequence[str]) -> tuple[Probe, int]:
    """A probe for the labels that the folders in `folder` are named by, and how many pictures there were bad.

    Each bad picture and empty folder is named on standard error.

    Raises: DataError where there are fewer than two labels with pictures.
    """
    labels = folders(folder)
    skipped: list[Skipped] = []
    owners: dict[Path, str] = {}
    for label in labels:
        try:
            found = find([folder / label])
        except DataError as error:
            skipped.append(Skipped(folder / label, str(error).removeprefix(f"{folder / label} ")))
            continue
        skipped += found.skipped
        owners |= dict.fromkeys(found.paths, label)

    def on_bad(path: Path, error: DataError) -> None:
        skipped.append(Skipped(path, str(error).removeprefix(f"{path} ")))

    good: list[Path] = []
    embeds: list[torch.Tensor] = []
    for paths, features in encoded(predictor, list(owners), on_bad):
        good += paths
        embeds.append(features.embed.float().cpu())
    for path, what in skipped:
        print(f"skipped {path}: it {what}", file=sys.stderr)
    if len({owners[path] for path in good}) < 2:
        raise DataError(
            f"{folder} has pictures for fewer than two labels; give each label a folder with a few pictures, as in "
            f"{folder / 'cats'} and {folder / 'dogs'}"
        )
    truths = [owners[path] for path in good]
    prior = predictor.embed_labels(sorted(set(truths)), templates)
    probe = Probe.fit(torch.cat(embeds), truths, prior=prior, scale=predictor.scale, model=predictor.fingerprint())
    return probe, len(skipped)


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out.

    Raises: DataError where it can't be read.
    """
    try:
        inside = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"--examples {folder} can't be read ({error.strerror}); name a folder that holds a folder for each label"
        ) from error
    return sorted(inside, key=natural)
