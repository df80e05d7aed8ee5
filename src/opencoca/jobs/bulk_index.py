"""Indexes to be searched: of a bulk run's output, whose embeddings are there already, and copies in LanceDB."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.jobs.bulk_output import Place, Record, file_of
from opencoca.jobs.bulk_shard import arrow
from opencoca.search import cutoff, graph, lance, manifest
from opencoca.search.files import Seen
from opencoca.search.filters import Filters
from opencoca.search.lance import Lance, Rows
from opencoca.search.manifest import Manifest
from opencoca.search.store import Store
from opencoca.search.table import Row
from opencoca.search.update import check_model
from opencoca.search.writer import Writer, only_writer

COMMIT_ROWS = 262_144  # embeddings that are held in memory before they are written
COLUMNS = ("key", "sha256", "bytes", "embedding")
PIECE = 16_384

OnProgress = Callable[[int, int], object]


def index_bulk(
    folder: Path,
    index: Path,
    predictor: Predictor,
    *,
    url: str | None = None,
    ivf_pq: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Manifest:
    """Makes the index of a bulk run's output, anew; in LanceDB at `url`, where one is given.

    Raises: DataError for an output that isn't finished, has no embeddings, is damaged, or was made by another model.
    """
    place = Place(str(folder))
    records, settings = place.manifest(), place.settings() or {}
    what, name = settings.get("what", {}), str(settings.get("model_name"))
    if "embed" not in what.get("do", ()):
        raise DataError(f"{folder} holds no embeddings; run `coca bulk` again, with embed in --do and another --out")
    found = Manifest(
        str(folder.resolve()),
        str(what.get("model")),
        name,
        predictor.model.config.embed_dim,
        captions="caption" in what["do"],
        complete=True,
        files=sum(record.rows for record in records),
        bulk=True,
        pictures=settings.get("root"),
    )
    check_model(folder, found, predictor.fingerprint(), name)
    words = predictor.embed_texts(cutoff.NEUTRAL).numpy()
    with only_writer(index, folder):
        if url is not None:
            pieces = _rows(place, records, found, on_progress)
            facts = lance.write(url, found, pieces, lambda: words, ivf_pq)
            found = dataclasses.replace(found, lance=dataclasses.asdict(facts))
            level = _level(lance.opened(folder, found, facts), words)
            found = dataclasses.replace(found, level=level, next_part=_next_part(index, folder))
            manifest.write(index, found)
            return found
        return _stored(folder, index, found, words, _contents(place, records, found, on_progress))


def copy_to_lance(folder: Path, index: Path, predictor: Predictor, url: str, ivf_pq: bool = False) -> Manifest:
    """Makes LanceDB hold what the index of a folder of pictures holds, which stays: it knows what changed.

    Raises: DataError without an index, or without LanceDB.
    """
    with only_writer(index, folder):
        store = Store.open(folder, index)
        if store is None or store.manifest.table is None:
            raise DataError(f"{folder} has no index; make one: coca index {folder}")
        found, of = store.manifest, store.manifest.table.sha256
        if found.lance is not None:
            facts = lance.Table(**found.lance)
            if (facts.url, facts.of, facts.kind) == (url, of, "ivf_pq" if ivf_pq else "flat"):
                return found

        def pieces() -> Iterator[Rows]:
            for start in range(0, len(store), PIECE):
                ids = store.ids()[start : start + PIECE].tolist()
                yield Rows(store.table.pictures(ids), store.embeds(ids))

        facts = lance.write(url, found, pieces(), lambda: predictor.embed_texts(cutoff.NEUTRAL).numpy(), ivf_pq, of)
        found = dataclasses.replace(found, lance=dataclasses.asdict(facts))
        manifest.write(index, found)
        return found


def _stored(
    folder: Path, index: Path, found: Manifest, words: np.ndarray, shards: Iterator[tuple[list[Row], Any, np.ndarray]]
) -> Manifest:
    """The index in files of our own."""
    writer = Writer(index, folder, dataclasses.replace(found, next_part=_next_part(index, folder)))
    try:
        committed = 0
        for rows, digests, embeds in shards:
            numbers: list[int] = []
            new: list[int] = []
            for i, digest in enumerate(digests):
                number = writer.table.rows_of([digest]).get(digest)
                if number is None:
                    number = writer.rows + len(new)
                    writer.table.add_contents(number, digest, rows[i].caption, None)
                    new.append(i)
                numbers.append(number)
            writer.add(embeds[new])
            for row, number in zip(rows, numbers, strict=True):
                writer.table.put_file(Seen(row.path, row.modified_ns, row.bytes), number)
            if writer.rows - committed >= COMMIT_ROWS:
                writer.commit(complete=False)
                committed = writer.rows
        if len(writer.table) != found.files:
            raise DataError(f"{folder} has {found.files} pictures under {len(writer.table)} names; give each its own")
        done = writer.commit(complete=True)
        if done.rows >= graph.WORTH_IT and graph.is_there():
            done = writer.commit(graph=writer.graph())
        return writer.commit(level=_level(Store(index, folder, done), words))
    finally:
        writer.close()


def _rows(place: Place, records: list[Record], found: Manifest, on_progress: OnProgress) -> Iterator[Rows]:
    for rows, _, embeds in _contents(place, records, found, on_progress):
        yield Rows(rows, embeds)


def _contents(
    place: Place, records: list[Record], found: Manifest, on_progress: OnProgress
) -> Iterator[tuple[list[Row], list[bytes], np.ndarray]]:
    """Shard by shard: rows with ids that count up, digests of the pictures, embeddings float16 [B,E].

    Raises: DataError for a shard that isn't what the manifest says.
    """
    pa, first = arrow(), 1
    for number, record in enumerate(records):
        content = place.read(file_of(record.name))
        if content is None or hashlib.sha256(content).hexdigest() != record.sha256:
            raise DataError(f"{place.at(file_of(record.name))} is damaged or missing; run `coca bulk` again")
        wanted = [*COLUMNS, *(["caption"] if found.captions else [])]
        table = pa.parquet.read_table(io.BytesIO(content), columns=wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted if name != "embedding"}
        embeds = np.concatenate(
            [np.empty(0, np.float16), *(chunk.flatten().to_numpy() for chunk in table.column("embedding").chunks)]
        ).reshape(len(table), found.width)
        captions = columns.get("caption", [None] * len(table))
        rows = [
            Row(first + i, key.lstrip("/"), _modified(found.pictures, key), size, 0, caption, None)
            for i, (key, size, caption) in enumerate(zip(columns["key"], columns["bytes"], captions, strict=True))
        ]
        first += len(rows)
        yield rows, columns["sha256"], embeds
        on_progress(number + 1, len(records))


def _modified(root: str | None, key: str) -> int:
    """When the picture's file was changed last; 0 for those that aren't files here."""
    try:
        return os.stat(os.path.join(root, key)).st_mtime_ns if root is not None else 0
    except OSError:
        return 0


def _level(backend: Store | Lance, words: np.ndarray) -> float | None:
    if not len(backend):
        return None
    return cutoff.level(words, lambda query: float(backend.nearest(query, 1, Filters())[1][0]))


def _next_part(index: Path, folder: Path) -> int:
    """A number for the next file that no file of an older index has."""
    try:
        before = manifest.read(index, folder, check=False)
    except DataError:
        before = None  # `Writer` looks at the files, too
    return before.next_part if before else 1
