"""Captions, embeddings and labels of very many pictures, shard by shard: each exactly once, whatever is killed.

A local run and one with Ray Data do the same: they give each shard that is missing to a `Maker` (`bulk_shard.py`),
which writes its file and its record (`bulk_output.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk_input, bulk_ray
from opencoca.jobs.bulk_input import Input, Shard
from opencoca.jobs.bulk_output import MANIFEST, Failure, Place, Record, file_of
from opencoca.jobs.bulk_shard import Maker, Task, arrow, content_digest
from opencoca.search.writer import lock

ENOUGH = 1000  # pictures from which on the share of bad ones says something
NAMED = 3
Runner = Literal["local", "ray"]


@dataclass
class Report:
    """What a run found and did.

    shards: of the input. done: shards that this run made. renewed: those among them whose input had changed, or whose
    file was damaged. rows, bad: over all shards.
    """

    shards: int
    done: int = 0
    renewed: list[str] = field(default_factory=list)
    rows: int = 0
    bad: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """What is called as the run goes on: with each shard's record, and with (shards done, shards in all)."""

    on_record: Callable[[Record], object] = lambda record: None
    on_progress: Callable[[int, int], object] = lambda done, total: None


def run(
    found: Input,
    place: Place,
    task: Task,
    *,
    location: str = "",
    model_name: str = "",
    predictor: Predictor | None = None,
    runner: Runner = "local",
    ray: bulk_ray.Options | None = None,
    max_bad: float = 0.1,
    redo: bool = False,
    hooks: Hooks | None = None,
) -> Report:
    """Makes what is missing of the output, and its manifest once nothing is.

    Args: location and model_name are what the user called them. max_bad is the share of bad pictures above which the
      run stops. redo makes shards again whose input changed.
    Raises: DataError where the output was made of something else, by another model or with other options; where the
      input changed; where too many pictures are bad; where shards can't be read (the others are done then). Each with
      the repair.
    """
    if not 0 <= max_bad <= 1:
        raise DataError(f"--max-bad {max_bad} must be from 0, which allows none, to 1, which allows all")
    arrow()
    hooks = hooks or Hooks()
    if place.settings() is None:
        place.check_free()
    with _only_run(place):
        what, known = task.what(), place.settings()
        if known is not None:
            _check_same(place, known, what, model_name)
        place.clean()
        records = place.records()
        foreign = next((record.name for record in records.values() if record.what != task.digest()), None)
        if foreign is not None:
            problem = f"the shard {foreign} of {place} was made by another model or with other options"
            raise DataError(f"{problem}; name another --out, or remove it")
        if known is None:
            place.put_settings({"what": what, "model_name": model_name, "input": location, "root": found.root})
        report = Report(len(found.shards), skipped=list(found.skipped))
        todo, report.renewed = _todo(place, found, records, redo)
        for record in records.values():
            hooks.on_record(record)
        bad = _Bad(max_bad, len(found.skipped), records.values())
        bad.check(final=not todo)
        if todo:
            place.remove(MANIFEST)
        hooks.on_progress(len(records), report.shards)
        made = bulk_ray.made(todo, found.sources, place, task, ray) if runner == "ray" else None
        for result in made or _made_here(todo, found.sources, place, task, predictor):
            if isinstance(result, Failure):
                report.failures.append(result)
                continue
            records[result.name] = result
            report.done += 1
            hooks.on_record(result)
            hooks.on_progress(len(records), report.shards)
            bad.add(result)
            bad.check(final=False)
        place.clean()  # of workers that were killed in this run
        _refuse_failures(report)
        bad.check(final=True)
        ordered = [records[shard.name] for shard in found.shards]
        report.rows, report.bad = sum(r.rows for r in ordered), bad.bad
        totals = {"what": what, "model_name": model_name, "rows": report.rows, "bad": report.bad}
        place.put_manifest(ordered, {**totals, "skipped": [list(one) for one in found.skipped], "root": found.root})
    return report


def _made_here(
    todo: Sequence[Shard], sources: Sequence[Any], place: Place, task: Task, predictor: Predictor | None
) -> Iterator[Record | Failure]:
    if not todo:
        return
    maker = Maker(task, sources, place, predictor)
    for shard in todo:
        try:
            yield maker.make(shard)
        except DataError as error:
            yield Failure(shard.name, str(error))


def _todo(place: Place, found: Input, records: dict[str, Record], redo: bool) -> tuple[list[Shard], list[str]]:
    """The shards that are to be made, and the names of those among them that were there; they leave `records`.

    Raises: DataError where the input changed, unless `redo`.
    """
    names = {shard.name for shard in found.shards}
    gone = sorted(records.keys() - names)
    if gone:
        more = f" and {len(gone) - 1} more" if gone[1:] else ""
        raise DataError(
            f"{place} holds the shard {gone[0]}{more}, which the input has not (any more); give the same input, or "
            "another --out"
        )
    damaged = _damaged(place, records)
    changed: list[str] = []
    for shard in found.shards:
        record = records.get(shard.name)
        if record is None or shard.name in damaged:
            continue
        stamp = bulk_input.stamp(shard, found.sources)
        if stamp == record.stamp:
            continue
        if content_digest(shard, found.sources) == record.content:
            place.put_record(dataclasses.replace(record, stamp=stamp))  # copied or touched, no more
        else:
            changed.append(shard.name)
    if changed and not redo:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise DataError(
            f"the input of the shard {changed[0]}{more} changed since {place} was made; make it again with --redo, or "
            "name another --out"
        )
    renewed = [name for name in records if name in damaged or name in changed]
    for name in renewed:
        del records[name]
        place.remove(f"{file_of(name).removesuffix('.parquet')}.json")
    return [shard for shard in found.shards if shard.name not in records], renewed


def _damaged(place: Place, records: dict[str, Record]) -> set[str]:
    """The shards whose file isn't what its record says."""

    def good(record: Record) -> bool:
        content = place.read(file_of(record.name))
        return content is not None and hashlib.sha256(content).hexdigest() == record.sha256

    with ThreadPoolExecutor(4) as pool:
        verdicts = pool.map(good, records.values())
        return {name for name, verdict in zip(records, verdicts, strict=True) if not verdict}


def _check_same(place: Place, known: dict[str, Any], what: dict[str, Any], model_name: str) -> None:
    was = known.get("what", {})
    if was.get("model") != what["model"]:
        raise DataError(
            f"{place} was made by the model {known.get('model_name')} ({str(was.get('model'))[:12]}) and not by "
            f"{model_name} ({what['model'][:12]}); give that one by --model, or name another --out"
        )
    before, now = _flat(was), _flat(what)
    for name in sorted({*before, *now}, key=lambda name: (name != "do", name)):
        if before.get(name) != now.get(name):
            raise DataError(
                f"{place} was made with {name} {before.get(name)!r}, and now it is {now.get(name)!r}; give the same, "
                "or name another --out"
            )


def _flat(what: dict[str, Any]) -> dict[str, Any]:
    """The options of all that is made, by name."""
    found = {"do": what.get("do")}
    for name in ("caption", "classify"):
        found |= what.get(name) or {}
    return found


def _refuse_failures(report: Report) -> None:
    if not report.failures:
        return
    count, named = len(report.failures), "; ".join(f"{one.name}: {one.reason}" for one in report.failures[:NAMED])
    raise DataError(
        f"{count} of {report.shards} shards can't be read, the others are done ({named}); repair the input and run "
        "again, or leave these shards out"
    )


class _Bad:
    """How many pictures were bad so far, of how many."""

    def __init__(self, most: float, skipped: int, records: Iterable[Record]) -> None:
        self.most, self.bad, self.pictures = most, skipped, skipped
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        self.bad += len(record.bad)
        self.pictures += record.pictures

    def check(self, final: bool) -> None:
        """Raises: DataError where the share is too large, and enough is known to say so."""
        if (final or self.pictures >= ENOUGH) and self.bad > self.most * self.pictures:
            share = self.bad / max(self.pictures, 1)
            raise DataError(
                f"{self.bad} of {self.pictures} pictures are bad so far ({share:.1%}), more than --max-bad "
                f"{self.most:g}; look at the names above, then repair the input or raise --max-bad"
            )


@contextlib.contextmanager
def _only_run(place: Place) -> Iterator[None]:
    """Holds the output's lock, where it is a folder; the system frees it on a kill.

    Raises: DataError where another run holds it.
    """
    if place.folder is None:
        yield
        return
    place.folder.mkdir(parents=True, exist_ok=True)
    with (place.folder / ".lock").open("a+") as file:
        try:
            lock(file.fileno())
        except OSError:
            raise DataError(f"another run writes to {place}; wait for it, or name another --out") from None
        yield
