"""An index in LanceDB: a table on this machine or in an object store, behind the same protocol as `Store`.

Embeddings lie in it as float16. Without a vector index LanceDB looks at every row; its scores are rounded more roughly
than ours, so it only proposes: rows are proposed until the last of them is certainly worse than the k-th best, whose
scores are computed in float64 as everywhere. So the answers are those of the exact search, ties included. With an index
(IVF-PQ) it proposes what that finds, and the recall is measured when the index is made.

Needs the extra `distributed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opencoca.data import storage
from opencoca.errors import DataError
from opencoca.files import file_digest
from opencoca.search import manifest
from opencoca.search.backend import Backend, Picture
from opencoca.search.filters import Filters
from opencoca.search.manifest import Manifest
from opencoca.search.store import Store
from opencoca.search.table import Row, seconds

TABLE = "pictures"
FOLDER = "lance"  # in the index's folder, where no URL is given
ROUGH = 2e-3  # more than float16 rounds a score of unit vectors by, twice
K = 10
PARTITION_ROWS = 4096
PROBES = 0.1  # the share of partitions that a search looks at,
LEAST_PROBES, MOST_PROBES = 20, 256  # within these bounds
REFINE = 20  # times as many rows as are wanted are compared exactly
LEAST_ROWS = 4096  # fewer need no index
ID_INDEX_ROWS = 100_000  # from which on ids are looked up in an index of their own


class Rows(NamedTuple):
    """Some rows for a table: what is known of the pictures, and their embeddings float16 [B,E]."""

    rows: list[Row]
    embeds: np.ndarray


@dataclass(frozen=True)
class Table:
    """Where a table is, and what of it is the index; stands in the manifest.

    of: the digest of the folder's table that it copies, "" where it is the only one. recall: of its ten nearest, as
    measured with unrelated words as queries; 1.0 without an index. files: size and sha256 of each, on this machine.
    """

    url: str
    version: int
    rows: int
    kind: str
    recall: float
    of: str
    files: dict[str, tuple[int, str]]


class Lance:
    """A table as a `Backend`."""

    def __init__(self, table: Any, found: Manifest, facts: Table, pictures: Path) -> None:
        self.manifest, self.facts = found, facts
        self._table, self._pictures = table, pictures

    @property
    def model(self) -> str:
        return self.manifest.model

    @property
    def width(self) -> int:
        return self.manifest.width

    def __len__(self) -> int:
        return self.facts.rows

    def ids(self) -> np.ndarray:
        return self._ids

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        found = self._rows(self._table.search().select(["id"]), self.facts.rows).column("id").to_numpy()
        return np.sort(found.astype(np.int64))

    def nearest(self, query: np.ndarray, k: int, filters: Filters) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.nearest`: exact, but where there is an index and no filter."""
        if k < 1 or not len(self):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        approximate = self.facts.kind != "flat" and not filters
        wanted = REFINE * k if approximate else 2 * k + 54
        while True:
            ids, rough, scores = self._proposed(query, wanted, filters, approximate)
            order = np.lexsort((ids, -scores))[:k]
            all_seen = approximate or len(ids) < wanted
            if all_seen or float(rough.min()) + ROUGH < float(scores[order[-1]]):
                return ids[order], scores[order]
            wanted *= 4  # many rows are nearly as near as the k-th

    def _proposed(
        self, query: np.ndarray, wanted: int, filters: Filters, approximate: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, rough scores and exact scores of the rows that LanceDB finds nearest."""
        search = self._table.search(query.astype(np.float32), vector_column_name="vector").distance_type("dot")
        search = search.nprobes(probes(self.facts.rows)) if approximate else search.bypass_vector_index()
        if filters:
            search = search.where(_where(filters), prefilter=True)
        found = self._rows(search.select(["id", "vector", "_distance"]), wanted)
        vectors = _vectors(found.column("vector"), self.width)
        scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        return found.column("id").to_numpy(), 1 - found.column("_distance").to_numpy(), scores

    def pictures(self, ids: Sequence[int]) -> list[Picture]:
        columns = ["id", "path", "modified_ns", "bytes", "caption", "taken"]
        found = {row["id"]: row for row in self._of(ids, columns).to_pylist()}
        pictures = []
        for one in map(int, ids):
            row = found[one]
            path = str(row["path"])
            if path.startswith("/") or ".." in path.split("/"):
                raise DataError(f"the index names {path!r}, which leads out of the folder; make it anew")
            date = Row(one, path, row["modified_ns"], row["bytes"], 0, None, row["taken"]).date
            pictures.append(Picture(one, self._pictures / path, row["caption"] or "", date, row["bytes"]))
        return pictures

    def embeds(self, ids: Sequence[int] | None = None) -> np.ndarray:
        wanted = self._ids if ids is None else np.asarray(ids, np.int64)
        found = self._of(wanted.tolist(), ["id", "vector"])
        at = {one: i for i, one in enumerate(found.column("id").to_pylist())}
        return _vectors(found.column("vector"), self.width)[[at[int(one)] for one in wanted]]

    def _of(self, ids: Sequence[int], columns: list[str]) -> Any:
        """The rows with these ids, in any order. Raises: DataError for an unknown id."""
        wanted = sorted({int(one) for one in ids})
        where = f"id in ({', '.join(map(str, wanted or [-1]))})"
        if len(wanted) == self.facts.rows:
            where = "id >= 0"
        found = self._rows(self._table.search().where(where).select(columns), max(len(wanted), 1))
        missing = set(wanted) - set(found.column("id").to_pylist())
        if missing:
            raise DataError(f"the index has no picture {min(missing)}; search again for those that it has")
        return found

    def _rows(self, search: Any, most: int) -> Any:
        with _named(self.facts.url):
            return search.limit(most).to_arrow()


def backend_of(folder: Path, index: Path) -> tuple[Backend, Manifest] | None:
    """The index of a folder, wherever it is, and its manifest; None where there is none.

    A table that copies a folder's index and is older than that isn't used: what is newer is right.

    Raises: DataError for an index that is damaged, or where LanceDB isn't installed.
    """
    found = manifest.read(index, folder, check=False)
    if found is not None and found.lance is not None:
        facts = Table(**found.lance)
        if found.table is None or facts.of == found.table.sha256:
            return opened(folder, found, facts), found
    store = Store.open(folder, index)
    return None if store is None else (store, store.manifest)


def opened(folder: Path, found: Manifest, facts: Table) -> Lance:
    """The table, with the digests of its files checked where they are on this machine.

    Raises: DataError where it is damaged, or not there.
    """
    local = _local(facts.url)
    if local is not None:
        there = _files(local)
        for name, (size, digest) in facts.files.items():
            if ".." in name or there.get(name, (0, ""))[0] != size or file_digest(local / name) != digest:
                raise manifest.damaged(folder, f"{name} in {facts.url}")
    try:
        table = _connect(facts.url).open_table(TABLE)
        table.checkout(facts.version)
        rows = table.count_rows()
    except DataError:
        raise
    except Exception as error:  # LanceDB's errors are of many kinds
        what = f"the index in {facts.url} can't be opened ({_line(error)})"
        raise DataError(f"{what}; check the URL, or make it anew: coca index {folder} --backend lance") from error
    if rows != facts.rows:
        raise manifest.damaged(folder, f"{facts.url} has {rows} rows and not {facts.rows}")
    return Lance(table, found, facts, found.below(folder))


def write(
    url: str,
    found: Manifest,
    pieces: Iterable[Rows],
    queries: Callable[[], np.ndarray],
    ivf_pq: bool = False,
    of: str = "",
) -> Table:
    """Writes the table of an index, with an index of its vectors where that is wanted.

    Args: queries gives unit-norm embeddings [Q,E] to measure the recall with.
    Raises: DataError without LanceDB, where it can't be written, or for too few rows for an index.
    """
    database = _connect(url)
    pa = _arrow()
    columns = {"id": pa.int64(), "path": pa.string(), "modified_ns": pa.int64(), "bytes": pa.int64()}
    columns |= {"caption": pa.string(), "taken": pa.int64(), "vector": pa.list_(pa.float16(), found.width)}
    schema = pa.schema(columns)
    with _named(url):
        reader = pa.RecordBatchReader.from_batches(schema, _batches(pieces, schema, found.width))
        table = database.create_table(TABLE, reader, mode="overwrite")
        rows = table.count_rows()
        if rows >= ID_INDEX_ROWS:
            from lancedb.index import BTree  # pyright: ignore[reportMissingImports]

            table.create_index("id", config=BTree())
    facts = Table(url, table.version, rows, "flat", 1.0, of, {})
    if ivf_pq:
        facts = _indexed(table, found, facts, queries())
    with _named(url):
        table.optimize(cleanup_older_than=datetime.timedelta(days=1))
        facts = dataclasses.replace(facts, version=table.version)
    local = _local(url)
    files = {name: (size, file_digest(local / name)) for name, (size, _) in _files(local).items()} if local else {}
    return dataclasses.replace(facts, files=files)


def probes(rows: int) -> int:
    """How many partitions of the index a search looks at."""
    return min(max(LEAST_PROBES, round(PROBES * partitions(rows))), MOST_PROBES)


def partitions(rows: int) -> int:
    """How many partitions the index of so many rows has."""
    return max(1, rows // PARTITION_ROWS)


def _indexed(table: Any, found: Manifest, facts: Table, queries: np.ndarray) -> Table:
    if facts.rows < LEAST_ROWS:
        raise DataError(f"an index of {facts.rows} pictures is exact at once; leave --ivf-pq out below {LEAST_ROWS}")
    parts = next(parts for parts in (found.width // 8, found.width // 4, 1) if parts and found.width % parts == 0)
    with _named(facts.url):
        from lancedb.index import IvfPq  # pyright: ignore[reportMissingImports]

        config = IvfPq(distance_type="dot", num_partitions=partitions(facts.rows), num_sub_vectors=parts)
        table.create_index("vector", config=config)
    exact = Lance(table, found, facts, Path())
    indexed = dataclasses.replace(facts, kind="ivf_pq", version=table.version)
    quick = Lance(table, found, indexed, Path())
    shares = []
    for query in queries:
        want, got = (set(one.nearest(query, K, Filters())[0].tolist()) for one in (exact, quick))
        shares.append(len(want & got) / max(len(want), 1))
    return dataclasses.replace(indexed, recall=round(float(np.mean(shares)), 4))


def _batches(pieces: Iterable[Rows], schema: Any, width: int) -> Iterator[Any]:
    pa = _arrow()
    for rows, embeds in pieces:
        for row in rows:
            try:
                row.path.encode()
            except UnicodeEncodeError:
                raise DataError(f"{row.path!r} isn't UTF-8, which LanceDB can't keep; rename the file") from None
        columns = [
            pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names[:-1]
        ]
        vectors = pa.array(np.ascontiguousarray(embeds, np.float16).reshape(-1))
        yield pa.record_batch([*columns, pa.FixedSizeListArray.from_arrays(vectors, width)], schema=schema)


def _vectors(column: Any, width: int) -> np.ndarray:
    """Embeddings float16 [I,E] of a column."""
    pieces = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float16), *pieces]).reshape(-1, width)


def _where(filters: Filters) -> str:
    """The filters in SQL; what a user gave stands in it as numbers and one quoted text."""
    date = "coalesce(taken, modified_ns / 1000000000)"
    clauses = []
    for bound, clause in (
        (filters.after and seconds(filters.after), f"{date} >= {{}}"),
        (filters.before and seconds(filters.before + datetime.timedelta(days=1)), f"{date} < {{}}"),
        (filters.min_bytes, "bytes >= {}"),
        (filters.max_bytes, "bytes <= {}"),
    ):
        if bound is not None:
            clauses.append(clause.format(int(bound)))
    if filters.folder:
        quoted = filters.folder.replace("'", "''")
        clauses.append(f"starts_with(path, '{quoted}/')")
    return " AND ".join(clauses)


def _connect(url: str) -> Any:
    for name in ("LANCE_LOG", "LANCEDB_LOG"):
        os.environ.setdefault(name, "error")  # it warns of a table that is new
    try:
        import lancedb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("this index is in LanceDB: pip install 'opencoca[distributed]'") from error
    with _named(url):
        return lancedb.connect(url)


def _arrow() -> Any:
    import pyarrow

    return pyarrow


def _local(url: str) -> Path | None:
    """The folder of the table, where it is on this machine."""
    return None if storage.is_url(url) else Path(url) / f"{TABLE}.lance"


def _files(folder: Path) -> dict[str, tuple[int, str]]:
    """The files of a table, with their sizes."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, "") for path in paths}


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # LanceDB's errors are of many kinds
        raise DataError(f"LanceDB at {url}: {_line(error)}; check the URL, its credentials and its disk") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
