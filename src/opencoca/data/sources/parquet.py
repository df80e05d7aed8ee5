"""Parquet tables, with the paths of pictures or, as datasets on the Hugging Face hub, the pictures themselves."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from opencoca.data import storage
from opencoca.data.sample import Sample
from opencoca.data.sources import columns
from opencoca.data.sources.captions import UnfitError, cleaned
from opencoca.data.sources.labels import caption_texts
from opencoca.data.sources.pairs import FileSource, Pairs, nothing_left, picture_digest, safe_path
from opencoca.data.texts import LazyTexts, Texts
from opencoca.errors import DataError

BYTES = ("bytes", "image_bytes", "picture_bytes", "jpg", "jpeg", "png", "webp")
MOST_GROUPS = 2  # row groups that stay in memory
BATCH = 8192


def open_parquet(files: Sequence[str], split: str | None, pictures: str | None = None) -> FileSource | ParquetSource:
    """The pictures of Parquet tables: their bytes where a column has them, else the files that a column names.

    Raises: DataError without pyarrow, for damaged files, and for tables without such columns.
    """
    schema = _open(files[0]).schema_arrow
    picture = _bytes_column(schema)
    if picture is None:
        return _of_paths(files, split, pictures, columns.find(schema.names, files[0]))
    return ParquetSource(files, split, picture, pictures)


class ParquetSource:
    """Pictures as bytes in Parquet tables; a key is the file's name and the row's number.

    A row is read with its whole row group, two of which are kept: that is quick in order or in windows of `shards` (the
    row groups), and slow in a random order over all. `coca data import` makes shards of it.
    """

    def __init__(self, files: Sequence[str], split: str | None, picture: str, pictures: str | None) -> None:
        self.files, self.picture = list(files), picture
        self.root = pictures or storage.parent(files[0])
        self.skipped: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()
        self.columns: dict[str, str] = {}
        self.shards: list[range] = []
        self.captions = Texts()  # the first of each sample
        self._more: dict[int, tuple[str, ...]] = {}
        self._rows = array("q")
        self._groups: list[tuple[int, int, int]] = []  # file, row group, the file's row at which it begins
        self._starts = array("q")  # the sample at which each group begins
        self._kept: OrderedDict[int, Any] = OrderedDict()
        splits: dict[str, None] = {}
        for number, file in enumerate(files):
            self._index(number, file, split, splits)
        self.splits = tuple(splits)
        if split is not None and splits and split not in splits:
            raise DataError(f"{files[0]} has no split {split!r}; its splits are: {', '.join(splits)}")
        if not self._rows:
            raise nothing_left(files[0], self.skipped)
        self.keys = LazyTexts(len(self._rows), self._key)
        digest = hashlib.sha256("\n".join(self.files).encode() + self._rows.tobytes())
        digest.update(self.captions.digest().encode())
        self.fingerprint = digest.hexdigest()

    def _index(self, number: int, file: str, split: str | None, splits: dict[str, None]) -> None:
        table = _open(file)
        found = columns.find([self.picture, *table.schema_arrow.names, "path"], file)
        self.columns |= {**found.told(), "picture": self.picture}
        wanted = [name for name in (*found.captions, found.labels, found.split) if name]
        row = 0
        for group in range(table.metadata.num_row_groups):
            self._groups.append((number, group, row))
            self._starts.append(len(self._rows))
            for cells in _cells(table, file, wanted, group):
                name = f"{file} row {row}"
                row += 1
                if found.split:
                    told = columns.split_name(cells[found.split] or "train")
                    splits[told] = None
                    if split is not None and told != split:
                        continue
                self._take(name, row - 1, caption_texts(cells, found))
            if len(self._rows) > self._starts[-1]:
                self.shards.append(range(self._starts[-1], len(self._rows)))

    def _take(self, name: str, row: int, texts: list[Any]) -> None:
        good, unfit = [], ["it has no caption"]
        for text in texts:
            try:
                good.append(cleaned(text))
            except UnfitError as error:
                unfit.append(str(error))
        if not good:
            self.skipped.append((name, unfit[-1]))
            return
        first, *more = dict.fromkeys(good)
        if more:
            self._more[len(self._rows)] = tuple(more)
        self.captions.append(first)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Sample:
        key = self.keys[i]
        i %= len(self)
        group = self._group(i)
        number, _, first = self._groups[group]
        if group not in self._kept:
            table = _open(self.files[number])
            try:
                column = table.read_row_group(self._groups[group][1], columns=[self.picture]).column(0)
            except Exception as error:  # pyarrow raises its own kinds and OSError for what is damaged
                raise DataError(f"{self.files[number]} can't be read ({_line(error)}); copy it again") from error
            self._kept[group] = column
            while len(self._kept) > MOST_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        value = self._kept[group][self._rows[i] - first].as_py()
        attributes = {}
        if isinstance(value, dict):
            if value.get("path"):
                attributes["path"] = value["path"]
            value = value.get("bytes") or self._file(key, value.get("path"))
        if not isinstance(value, bytes) or not value:
            raise DataError(f"the picture of {key} is empty; prepare its table again")
        attributes["picture"] = picture_digest(value)
        return Sample(key, value, self.captions[i], attributes, self._more.get(i, ()))

    def _file(self, key: str, path: Any) -> bytes:
        try:
            return storage.read_file(storage.joined(self.root, safe_path(path, not storage.is_url(self.root))))
        except UnfitError as error:
            raise DataError(f"the picture of {key}: {error}; prepare its table again") from error

    def _group(self, i: int) -> int:
        return bisect.bisect_right(self._starts, i) - 1

    def _key(self, i: int) -> str:
        return f"{storage.stem(self.files[self._groups[self._group(i)][0]])}:{self._rows[i]}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}


def _of_paths(files: Sequence[str], split: str | None, pictures: str | None, found: columns.Columns) -> FileSource:
    pairs = Pairs(local=not storage.is_url(files[0]))
    pairs.columns |= found.told()
    wanted = [name for name in (found.path, *found.captions, found.labels, found.split) if name]
    for file in files:
        table, row = _open(file), 0
        for cells in _cells(table, file, wanted):
            name = f"{file} row {row}"
            row += 1
            if found.split:
                told = columns.split_name(cells[found.split] or "train")
                pairs.splits[told] = None
                if split is not None and told != split:
                    continue
            path = cells[found.path]
            pairs.add(name, path.get("path") if isinstance(path, dict) else path, caption_texts(cells, found))
    if split is not None and pairs.splits and split not in pairs.splits:
        raise DataError(f"{files[0]} has no split {split!r}; its splits are: {', '.join(pairs.splits)}")
    return pairs.finish(pictures or storage.parent(files[0]), files[0])


def _bytes_column(schema: Any) -> str | None:
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    def fits(kind: Any) -> bool:
        if not kinds.is_struct(kind):
            return holds_bytes(kind)
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind.fields)

    names = {columns.plain(name): name for name in schema.names}
    return next((names[n] for n in (*columns.PATHS, *BYTES) if n in names and fits(schema.field(names[n]).type)), None)


def _open(file: str) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{file} is a Parquet table; pip install 'opencoca[parquet]' to read it") from error
    try:
        if storage.is_url(file):
            fs, path = storage.file_system(file)
            return parquet.ParquetFile(path, filesystem=fs)
        return parquet.ParquetFile(file)
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist; check the path") from error
    except Exception as error:
        raise DataError(f"{file} can't be read as Parquet ({_line(error)}); copy it again") from error


def _cells(table: Any, file: str, wanted: list[str], group: int | None = None) -> Iterator[dict[str, Any]]:
    try:
        for batch in table.iter_batches(BATCH, columns=wanted, row_groups=None if group is None else [group]):
            yield from batch.to_pylist()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file} can't be read as Parquet ({_line(error)}); copy it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
