"""The run folder: one writer, one latest checkpoint for all ranks, and the lists of what was left out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from opencoca import checkpoint
from opencoca.errors import CheckpointError, TrainingError
from opencoca.parallel.collectives import gathered_values
from opencoca.parallel.mesh import Ranks

BAD_BATCHES, QUARANTINE = "bad_batches.jsonl", "quarantine.jsonl"


@contextlib.contextmanager
def only_writer(run: Path, ranks: Ranks) -> Iterator[None]:
    """Holds the run folder's lock, so that two runs never write one folder; the system frees it on a kill.

    Raises: TrainingError, on all ranks, where another process holds it.
    """
    with contextlib.ExitStack() as stack:
        refusal = ""
        if ranks.first:
            try:
                stack.enter_context(_lock(run))
            except (TrainingError, OSError) as error:
                refusal = str(error)
        refusal = gathered_values(refusal, ranks)[0]
        if refusal:
            raise TrainingError(refusal)
        yield


@contextlib.contextmanager
def _lock(run: Path) -> Iterator[None]:
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows, where training isn't supported
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"another process is training in {run}; wait for it, or name another --run folder"
            ) from None
        yield


def latest_of_all(run: Path, ranks: Ranks) -> Path | None:
    """The run's latest checkpoint, which every rank must see.

    Raises: CheckpointError where ranks see different ones: their folders aren't one.
    """
    latest = checkpoint.latest_checkpoint(run)
    seen = gathered_values(latest.name if latest else None, ranks)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"the ranks see different latest checkpoints in {run} ({', '.join(map(str, dict.fromkeys(seen)))}); "
            "put the run folder where all machines see the same files"
        )
    return latest


def note_bad_batch(
    run: Path, ranks: Ranks, keys: Sequence[str], step: int, reason: str, values: Mapping[str, Tensor]
) -> None:
    """Adds a batch, with the keys of all ranks, to RUN/bad_batches.jsonl; every rank must call it.

    Values are written as text: JSON knows no number that isn't finite.
    """
    of_ranks = gathered_values(list(keys), ranks)
    if ranks.first:
        measured = {name: str(float(value)) for name, value in values.items()}
        every_key = [key for keys in of_ranks for key in keys]
        append(run / BAD_BATCHES, [{"step": step, "reason": reason, **measured, "keys": every_key}])


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Adds rows to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
