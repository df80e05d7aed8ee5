"""The same trials on what others write checkpoints with, as it is usually called."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from tests.checkpoints import file_size_limit
from torch import Tensor

Tensors = dict[str, Tensor]


def _dcp_save(tensors: Tensors, path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        dcp.save(dict(tensors), checkpoint_id=str(path), no_dist=True)


def _dcp_load(path: Path) -> Tensors:
    with warnings.catch_warnings(action="ignore"):
        metadata = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
        found: dict[str, Any] = {name: torch.zeros(facts.size) for name, facts in metadata.items()}
        dcp.load(found, checkpoint_id=str(path), no_dist=True)
    return found


OTHERS: dict[str, tuple[Callable[[Tensors, Path], None], Callable[[Path], Tensors]]] = {
    "torch.save": (torch.save, lambda path: torch.load(path, weights_only=True)),
    "safetensors": (save_file, load_file),
    "torch.distributed.checkpoint": (_dcp_save, _dcp_load),
}


def content(step: int) -> Tensors:
    """Tensors that all hold their step; large enough that a kill finds them half written."""
    return {f"layer{i}": torch.full((500_000,), float(step)) for i in range(8)}


def save_for_ever(name: str, place: Path) -> None:
    """Saves step after step to one place, as a training does that keeps its last checkpoint."""
    torch.set_num_threads(1)
    step = 1
    while True:
        step += 1
        OTHERS[name][0](content(step), place)


def killed_saves(context: Any, work: Path, trials: int) -> dict[str, dict[str, int]]:
    """kill -9 at random instants of saves to one place: is there still a checkpoint, and of one step?"""
    table: dict[str, dict[str, int]] = {}
    chance = random.Random(2)
    for name, (save, load) in OTHERS.items():
        outcome, place = Counter(), work / name
        for _ in range(trials):
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
            save(content(1), place)
            process = context.Process(target=save_for_ever, args=(name, place), daemon=True)
            process.start()
            time.sleep(0.3 + chance.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            outcome.update(_outcome(load, place))
        table[name] = {**outcome}
    return table


def full_disks(work: Path, trials: int) -> dict[str, dict[str, int]]:
    """Saving over an older checkpoint where files can't grow beyond a random size: does the old one still load?"""
    table: dict[str, dict[str, int]] = {}
    chance = random.Random(8)
    for name, (save, load) in OTHERS.items():
        outcome, place = Counter(), work / name
        for _ in range(trials):
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
            save(content(1), place)
            with file_size_limit(chance.randrange(16_000_000)):
                try:
                    save(content(2), place)
                    outcome["no_error"] += 1
                except BaseException:  # torch's CheckpointException is no Exception
                    outcome["errors"] += 1
            outcome.update(_outcome(load, place))
        table[name] = {**outcome}
    return table


def _outcome(load: Callable[[Path], Tensors], place: Path) -> Counter:
    try:
        steps = {value for tensor in load(place).values() for value in tensor.unique().tolist()}
    except BaseException:  # it says so, but there is nothing to go on from
        return Counter(trials=1, lost=1)
    return Counter(trials=1, passes=int(len(steps) == 1), silent_failures=int(len(steps) != 1))
