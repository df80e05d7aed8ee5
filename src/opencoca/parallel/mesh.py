"""The ranks of a run: torchrun's environment, gloo on a CPU and nccl on GPUs, and no process group for one process."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from opencoca.errors import TrainingError

TIMEOUT_S = 600.0  # of a collective that no rank is known to be late for
PATIENCE_S = 7 * 86400.0  # of waiting for what one rank does alone: evaluations, files


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them.

    device: where tensors that are exchanged live. patient: a gloo group for long waits and for text.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0


ALONE = Ranks()
_current: list[Ranks] = []


def current() -> Ranks:
    """The ranks of the process group that this process is in, or the one process that it is.

    A process group that somebody else made (Ray Train does) is taken as it is.
    """
    if not (dist.is_available() and dist.is_initialized()):
        _current.clear()
        return ALONE
    if not _current:
        on_gpu = "nccl" in dist.get_backend()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        patient: Any = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=PATIENCE_S))
        _current.append(Ranks(dist.get_rank(), dist.get_world_size(), device, patient))
    return _current[0]


@contextlib.contextmanager
def process_group(device: str = "auto", timeout_s: float = 0.0) -> Iterator[Ranks]:
    """The ranks that torchrun started, joined for the length of the block; without torchrun, one process on its own.

    Args:
        device: "cuda", "cpu", or "auto" for a GPU per rank where there are enough.
        timeout_s: how long a rank waits for the others before it gives up; 0 takes the default.

    Raises: TrainingError where the environment is torchrun's only by half, or the other ranks don't come.
    """
    if (dist.is_available() and dist.is_initialized()) or "WORLD_SIZE" not in os.environ:
        yield current()
        return
    rank, world, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_gpu:
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"LOCAL_RANK {local} needs a GPU of its own and there are {torch.cuda.device_count()}; "
                "start fewer processes per machine, or set run.device=cpu"
            )
        torch.cuda.set_device(local)
    timeout = datetime.timedelta(seconds=timeout_s or TIMEOUT_S)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout=timeout,
            rank=rank,
            world_size=world,
            device_id=torch.device("cuda", local) if use_gpu else None,
        )
        ranks = current()
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"rank {rank} of {world} did not find the others ({_first_line(error)}); check that all were started and "
            "reach MASTER_ADDR:MASTER_PORT"
        ) from error
    try:
        yield ranks
    finally:
        _current.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_peers_named(ranks: Ranks) -> Iterator[None]:
    """Turns the backend's error about a rank that died or hangs into a TrainingError that says so."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not _is_about_peers(error):
            raise
        raise TrainingError(
            f"rank {ranks.rank} lost another of the {ranks.world} ranks ({_first_line(error)}); see that rank's own "
            "error, then start all of them again: the run goes on from its latest checkpoint"
        ) from error


def _is_about_peers(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return "gloo" in text or "nccl" in text or "connection" in text


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise TrainingError(f"WORLD_SIZE is set but {name} is {value!r}; start with torchrun, or unset WORLD_SIZE")
    return int(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
