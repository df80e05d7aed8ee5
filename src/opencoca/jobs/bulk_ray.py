"""A bulk run's shards as a Ray Data job: the same `Maker` in each of Ray's workers, which may be killed.

Ray runs a killed worker's shard again; whichever worker writes it, the bytes are the same. What travels is a shard's
number to the worker, and its record back: pictures and results don't pass through Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opencoca.errors import DataError, OpenCoCaError
from opencoca.jobs.bulk_input import Shard
from opencoca.jobs.bulk_output import Failure, Place, Record

if TYPE_CHECKING:
    from opencoca.jobs.bulk_shard import Task

BLOCKS = 4096  # at most; Ray's own book-keeping grows with them
STORE_BYTES = 256 << 20  # of Ray's object store on this machine: only shards' numbers and records are in it


@dataclass(frozen=True)
class Options:
    """Where Ray runs and how wide.

    address: of a cluster, "auto" for the one on this machine; None starts one here, on loopback, for this run alone.
    workers: how many at most; None as many as there is room for. cpus, gpus: what each takes.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


def made(
    todo: Sequence[Shard], sources: Sequence[Any], place: Place, task: Task, options: Options | None
) -> Iterator[Record | Failure]:
    """The record of each shard, or why it failed, as Ray's workers make them.

    Raises: DataError without Ray, where its cluster can't be reached, or for an output that workers don't share.
    """
    options = options or Options()
    if not todo:
        return
    if place.location.startswith("memory:"):
        raise DataError(f"{place} is in this process's memory alone; Ray's workers need a shared folder or a store")
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _start(ray, options)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        shared = place if place.folder is None else Place(os.path.abspath(place.folder))
        most = options.workers or max(1, int(_room(ray, options)))
        blocks = min(len(todo), BLOCKS)
        rows = ray.data.from_items([{"number": i} for i in range(len(todo))], override_num_blocks=blocks)
        results = rows.map_batches(
            Worker,
            fn_constructor_args=(task, list(todo), list(sources), shared),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(todo))),
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
        )
        for row in results.iter_rows():
            shard = todo[int(row["number"])]
            if row["refusal"]:
                raise DataError(row["refusal"])
            yield Failure(shard.name, row["failure"]) if row["failure"] else place.record(shard.name)
    finally:
        if mine:
            ray.shutdown()


class Worker:
    """What Ray keeps in each of its processes: a `Maker`, or why there is none."""

    def __init__(self, task: Task, todo: list[Shard], sources: list[Any], place: Place) -> None:
        from opencoca.jobs.bulk_shard import Maker

        self.todo, self.place, self.refusal = todo, place, ""
        try:
            self.maker = Maker(task, sources, place)
        except OpenCoCaError as error:
            self.refusal = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number, failure = int(batch["number"][0]), ""
        shard = self.todo[number]
        if not self.refusal and not self.place.has(shard.name):  # a killed worker may have done some of its block
            try:
                self.maker.make(shard)
            except DataError as error:
                failure = str(error)
        return {"number": [number], "refusal": [self.refusal], "failure": [failure]}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("--runner ray needs Ray Data: pip install 'opencoca[distributed]'") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _start(ray: Any, options: Options) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if options.address is not None:
            ray.init(address=options.address, **quiet)
        else:
            here = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES}
            ray.init(address="local", **here, **quiet)
    except Exception as error:  # Ray has many ways to fail here
        where = options.address or "this machine"
        raise DataError(
            f"Ray can't be reached at {where} ({_line(error)}); check --address, or --runner local"
        ) from error


def _room(ray: Any, options: Options) -> float:
    there = ray.cluster_resources()
    room = [there.get("CPU", 1.0) / options.cpus] if options.cpus else []
    room += [there.get("GPU", 0.0) / options.gpus] if options.gpus else []
    return min(room, default=1.0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
