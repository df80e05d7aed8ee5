"""One shard of a bulk run: its pictures through the model, its file and its record written. All runners share this."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from opencoca import loading
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.infer.zeroshot import ZeroShot
from opencoca.jobs import bulk_input
from opencoca.jobs.bulk_input import Shard
from opencoca.jobs.bulk_output import Place, Record, file_of

DO = ("caption", "embed", "classify")
TOP = 5  # labels of a picture that are kept
UNREADABLE = b"unreadable"


@dataclass(frozen=True)
class Task:
    """What is made of each picture, and by which model; `what` is all that the result depends on.

    generation: every field of `GenerationConfig`. threads: of torch, in each worker; None leaves them.
    """

    model: str
    fingerprint: str
    do: tuple[str, ...]
    prompt: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    batch_size: int | None = None
    device: str | None = None
    threads: int | None = None

    def digest(self) -> str:
        """A digest of `what`."""
        return hashlib.sha256(json.dumps(self.what(), sort_keys=True).encode()).hexdigest()[:32]

    def what(self) -> dict[str, Any]:
        """The model's fingerprint, and what is made with which options."""
        found: dict[str, Any] = {"model": self.fingerprint, "do": sorted(self.do)}
        if "caption" in self.do:
            found["caption"] = {"prompt": self.prompt, **self.generation}
        if "classify" in self.do:
            found["classify"] = {"labels": list(self.labels), "templates": list(self.templates)}
        return found


class Maker:
    """A worker's model, and what it makes of one shard after the other."""

    def __init__(self, task: Task, sources: Sequence[Any], place: Place, predictor: Predictor | None = None) -> None:
        """Loads the model, unless it is given.

        Raises: DataError where the model isn't the one of the task, or pyarrow is missing.
        """
        if task.threads:
            torch.set_num_threads(task.threads)
        loaded = predictor or loading.load(task.model, task.device)
        if loaded.fingerprint() != task.fingerprint:
            raise DataError(f"the model {task.model} isn't the same on every machine; copy it, and run again")
        self.predictor = Predictor(loaded.model, loaded.tokenizer, loaded.config, task.batch_size)
        self.task, self.sources, self.place = task, sources, place
        self._zero_shot: ZeroShot | None = None
        if "classify" in task.do:
            self._zero_shot = self.predictor.zero_shot(task.labels, templates=task.templates)
        arrow()

    def make(self, shard: Shard) -> Record:
        """Writes the shard's file, then its record, and gives that.

        Raises: DataError where the shard can't be read, or the output not written.
        """
        stamp = bulk_input.stamp(shard, self.sources)
        reader = _Reader(bulk_input.read(shard, self.sources))
        columns = _Columns(self.task, self.predictor.model.config.embed_dim)
        for batch in self.predictor.squares(reader.contents(), lambda _, error: reader.failed.append(error)):
            columns.add(batch.places, *self._passed(batch.squares))
        bad = reader.bad(columns.places)
        content = columns.file(reader)
        self.place.write(file_of(shard.name), content)
        record = Record(
            shard.name,
            rows=len(columns.places),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            what=self.task.digest(),
            stamp=stamp,
            content=reader.digest.hexdigest(),
            bad=tuple(bad),
        )
        self.place.put_record(record)
        return record

    def _passed(self, squares: np.ndarray) -> tuple[np.ndarray, list[Any], np.ndarray]:
        """Embeddings float16 [B,E], captions and probabilities float32 [B,L] of a batch; empty where not wanted."""
        features = self.predictor.encode_squares(squares)
        captions, probabilities = [], np.empty((len(squares), 0), np.float32)
        if "caption" in self.task.do:
            keys = [zlib.crc32(square.tobytes()) for square in squares]  # as `Predictor.describe` seeds them
            changes: Any = self.task.generation
            made = self.predictor.caption_features(features, prompt=self.task.prompt, keys=keys, **changes)
            captions = [some[0] for some in made]
        if self._zero_shot is not None:
            probabilities = self._zero_shot.probabilities(features).numpy()
        return features.embed.float().cpu().numpy().astype(np.float16), captions, probabilities


def content_digest(shard: Shard, sources: Sequence[Any]) -> str:
    """`Record.content` of the input as it is now, without the model.

    Raises: DataError where the shard can't be read.
    """
    reader = _Reader(bulk_input.read(shard, sources))
    for _ in reader.contents():
        pass
    return reader.digest.hexdigest()


def arrow() -> Any:
    """pyarrow with its Parquet part.

    Raises: DataError where it isn't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("bulk output is Parquet, which needs pyarrow: pip install 'opencoca[parquet]'") from error
    return pyarrow


class _Reader:
    """Passes contents on and keeps what is known of each picture.

    keys, digests, sizes: of those that could be read, by their place in the stream. failed: why some of these were no
    picture, in their order. digest: of keys and contents, and of what can't be read.
    """

    def __init__(self, pictures: Iterator[tuple[str, bytes | DataError]]) -> None:
        self._pictures = pictures
        self.keys: list[str] = []
        self.digests: list[bytes] = []
        self.sizes: list[int] = []
        self.failed: list[DataError] = []
        self.digest = hashlib.sha256()
        self._numbers: list[int] = []  # of each place, among all pictures of the shard
        self._unreadable: list[tuple[int, str, str]] = []

    def contents(self) -> Iterator[bytes]:
        for number, (key, found) in enumerate(self._pictures):
            self.digest.update(key.encode(errors="surrogateescape") + b"\0")
            if isinstance(found, DataError):
                self.digest.update(UNREADABLE)
                self._unreadable.append((number, key, str(found)))
                continue
            digest = hashlib.sha256(found).digest()
            self.digest.update(digest)
            self.keys.append(key)
            self.digests.append(digest)
            self.sizes.append(len(found))
            self._numbers.append(number)
            yield found

    def bad(self, good: Sequence[int]) -> list[tuple[str, str]]:
        """(key, reason) of every picture that isn't among the good places, in the order of the input."""
        rest = sorted(set(range(len(self.keys))) - set(good))
        found = list(self._unreadable)
        for place, error in zip(rest, self.failed, strict=True):
            reason = re.sub(r"^images\[\d+\] ", "it ", str(error))
            found.append((self._numbers[place], self.keys[place], reason))
        return [(key, reason) for _, key, reason in sorted(found)]


class _Columns:
    """The rows of a shard's file, batch by batch."""

    def __init__(self, task: Task, width: int) -> None:
        self.task, self.width = task, width
        self.places: list[int] = []
        self._embeds: list[np.ndarray] = []
        self._captions: list[Any] = []
        self._labels: list[list[str]] = []
        self._probabilities: list[np.ndarray] = []

    def add(self, places: Sequence[int], embeds: np.ndarray, captions: list[Any], probabilities: np.ndarray) -> None:
        self.places += places
        if "embed" in self.task.do:
            self._embeds.append(embeds)
        self._captions += captions
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
        self._labels += [[self.task.labels[i] for i in row] for row in order.tolist()]
        self._probabilities += list(np.take_along_axis(probabilities, order, axis=1))

    def file(self, reader: _Reader) -> bytes:
        """The rows as a Parquet file."""
        pa = arrow()
        columns: dict[str, Any] = {
            "key": pa.array([reader.keys[i] for i in self.places], pa.string()),
            "sha256": pa.array([reader.digests[i] for i in self.places], pa.binary(32)),
            "bytes": pa.array([reader.sizes[i] for i in self.places], pa.int64()),
        }
        if "embed" in self.task.do:
            embeds = np.concatenate([np.empty((0, self.width), np.float16), *self._embeds])
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embeds.reshape(-1)), self.width)
        if "caption" in self.task.do:
            columns["caption"] = pa.array([one.text for one in self._captions], pa.string())
            columns["log_prob"] = pa.array([one.log_prob for one in self._captions], pa.float32())
            columns["match"] = pa.array([one.match for one in self._captions], pa.float32())
        if "classify" in self.task.do:
            columns["labels"] = pa.array(self._labels, pa.list_(pa.string()))
            columns["probabilities"] = pa.array(self._probabilities, pa.list_(pa.float32()))
        said = {"opencoca": json.dumps(self.task.what(), sort_keys=True)}
        table = pa.table(columns).replace_schema_metadata(said)
        out = io.BytesIO()
        texts = [name for name in ("key", "caption", "labels") if name in columns]
        compression = {_leaf(name): "zstd" if name in texts else "none" for name in columns}
        pa.parquet.write_table(table, out, compression=compression, use_dictionary=False, write_statistics=["key"])
        return out.getvalue()


def _leaf(column: str) -> str:
    """A column as Parquet names it."""
    return f"{column}.list.element" if column in ("embedding", "labels", "probabilities") else column
