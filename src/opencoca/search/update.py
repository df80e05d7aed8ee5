"""Bringing an index up to date: what is new or changed passes through the model, once; everything else is kept."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from opencoca.errors import DataError
from opencoca.infer import captioning
from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import READERS, OnBad, encoded
from opencoca.search import cutoff, graph, manifest
from opencoca.search.files import Listing, Seen, contents_digest, listed
from opencoca.search.filters import Filters
from opencoca.search.manifest import Manifest
from opencoca.search.places import index_folder
from opencoca.search.store import Store
from opencoca.search.writer import Writer, only_writer

FIRST_COMMIT_S, LAST_COMMIT_S = 2.0, 60.0  # between two commits: doubled from one to the next, up to the last
LOOKED_UP = 16  # files whose contents the table is asked about at once
GROWN = 1.1  # from which growth on the level is measured anew
DATED = frozenset({".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".webp", ".heic", ".heif", ".avif"})
TAKEN = ((0x8769, 36867), (0x8769, 36868), (0, 306))  # DateTimeOriginal, DateTimeDigitized, DateTime


@dataclass
class Counts:
    """What an update did: pictures that passed through the model, were known, are copies of others, moved, or are gone;
    and the bad ones, of which an update before this one has named those in `named_before`."""

    encoded: int = 0
    same: int = 0
    copies: int = 0
    moved: int = 0
    removed: int = 0
    captioned: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    named_before: int = 0

    @property
    def pictures(self) -> int:
        return self.encoded + self.same + self.copies + self.moved


class Progress(NamedTuple):
    """How many of the folder's pictures are in the index now."""

    done: int
    total: int


def update(
    folder: Path,
    predictor: Predictor,
    model_name: str,
    *,
    index: Path | None = None,
    captions: bool | None = None,
    anew: bool = False,
    on_bad: OnBad = lambda path, error: None,
    on_named: OnBad | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    listing: Listing | None = None,
) -> Counts:
    """Makes the index of a folder say what is in it now; what was done so far is kept when this is interrupted.

    Args: index is its place (by default where one is, else in the user's cache). captions: whether to write captions;
      None does as the index did so far, and a new one gets none. anew: forget what is there. on_named gets the bad
      pictures that an update before this one gave to on_bad, unless None: then on_bad gets them again.
    Raises: DataError where another process is indexing, the index is damaged, or another model made it.
    """
    index = index or index_folder(folder)
    with only_writer(index, folder):
        found = None if anew else manifest.read(index, folder)
        fingerprint = predictor.fingerprint()
        if found is not None:
            check_model(folder, found, fingerprint, model_name)
        else:
            found = Manifest(str(folder.resolve()), fingerprint, model_name, predictor.model.config.embed_dim)
        wanted = found.captions if captions is None else captions
        update = _Update(folder, predictor, Writer(index, folder, found), wanted, on_bad, on_named, on_progress)
        with contextlib.closing(update.writer):
            return update.run(listing or listed(folder))


def check_model(folder: Path, found: Manifest, fingerprint: str, model_name: str) -> None:
    """Refuses an index that another model made.

    Raises: DataError with the commands that help.
    """
    if found.model == fingerprint:
        return
    if found.model_name == model_name:
        raise DataError(
            f"the model {model_name} is not any more what it was when it made the index of {folder}; make it anew: "
            f"coca index {folder} --model {model_name} --anew"
        )
    raise DataError(
        f"the index of {folder} was made by the model {found.model_name} and not by {model_name}; search with "
        f"--model {found.model_name}, or make it anew: coca index {folder} --model {model_name} --anew"
    )


class _Digested(NamedTuple):
    seen: Seen
    digest: bytes
    taken: int | None


class _Update:
    """One update: the state that its steps share."""

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        writer: Writer,
        captions: bool,
        on_bad: OnBad,
        on_named: OnBad | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.folder, self.predictor, self.writer, self.captions = folder, predictor, writer, captions
        self.on_bad, self.on_named, self.on_progress = on_bad, on_named or on_bad, on_progress
        self.counts = Counts()
        self.known = writer.table.known()
        self.waiting: dict[bytes, list[_Digested]] = {}  # files whose contents are on their way through the model
        self.digest_of: dict[Path, bytes] = {}
        self.added: dict[bytes, int] = {}  # rows of contents that came into the table since it was last asked
        self.gone: dict[int, list[tuple[int, str]]] = {}
        self.total = self.unreadable = 0
        self.changed = False
        self.interval_s, self.committed = FIRST_COMMIT_S, 0.0

    def run(self, listing: Listing) -> Counts:
        for path, what in listing.skipped:
            self._bad(path, what)
        there = {seen.path for seen in listing.files}
        missing = self._missing(listing, there)
        for path in missing:
            if path in self.known:
                id_, _, _, row = self.known[path]
                self.gone.setdefault(row, []).append((id_, path))
        todo = self._new(listing.files)
        self.total = len(listing.files)
        try:
            self._encode(todo)
            if self.captions:
                self._caption_the_rest()
        except (KeyboardInterrupt, SystemExit):
            if self.changed:
                self.writer.commit(complete=False, files=self.total - self.unreadable, captions=self.captions)
            raise
        table = self.writer.table
        left = {path for places in self.gone.values() for _, path in places}
        bad = table.bad()
        table.remove([path for path in missing if path in left or path in bad])
        self.counts.removed = len(left)
        before = self.writer.manifest
        self.changed |= bool(missing)
        said = (before.complete, before.captions, before.files)
        if self.changed or said != (True, self.captions, self.total - self.unreadable):
            if self.changed:
                self.writer.tidy()
            self._finish(before)
        return self.counts

    def _missing(self, listing: Listing, there: set[str]) -> list[str]:
        """Indexed files that are gone; those below a folder that can't be read now are not."""
        closed = tuple(f"{path}/" for path, what in listing.skipped if "can't be read" in what)
        paths = [*self.known, *self.writer.table.bad()]
        return [path for path in paths if path not in there and not path.startswith(closed or ("\0",))]

    def _new(self, files: Sequence[Seen]) -> list[Seen]:
        bad, todo = self.writer.table.bad(), []
        for seen in files:
            if seen.path in self.known and self.known[seen.path][1:3] == (seen.modified_ns, seen.bytes):
                self.counts.same += 1
            elif seen.path in bad and bad[seen.path][:2] == (seen.modified_ns, seen.bytes):
                self.unreadable += 1
                self.counts.named_before += 1
                self._bad(seen.path, bad[seen.path][2], self.on_named)
            else:
                todo.append(seen)
        return todo

    # --- through the model --------------------------------------------------------------------------------------

    def _encode(self, todo: Sequence[Seen]) -> None:
        self._tell()
        for paths, embeds, captions in self._passed(self._unknown(todo)):
            self.changed = True
            first = self.writer.add(embeds.float().cpu().numpy())
            for i, path in enumerate(paths):
                digest = self.digest_of.pop(path)
                files = self.waiting.pop(digest)
                self.writer.table.add_contents(first + i, digest, captions[i], files[0].taken)
                self.added[digest] = first + i
                for one in files:
                    self.writer.table.put_file(one.seen, first + i)
                self.counts.encoded += 1
                self.counts.copies += len(files) - 1
            self.counts.captioned += sum(caption is not None for caption in captions)
            self._tell()
            self._commit_now_and_then()

    def _passed(self, paths: Iterator[Path]) -> Iterator[tuple[list[Path], Tensor, list[str | None]]]:
        """Pictures, embeddings and, if wanted, captions, from one pass of the encoder."""
        for batch, features in encoded(self.predictor, paths, self._unreadable):
            captions: list[str | None] = [None] * len(batch)
            if self.captions:
                made = captioning.of_features(self.predictor, features, "", {"beams": 1}, 1, None)
                captions = [some[0].text for some in made]
            yield batch, features.embed, captions

    def _unknown(self, todo: Sequence[Seen]) -> Iterator[Path]:
        """The files whose contents the index doesn't know; the others get their place here."""
        digested = _digested(self.folder, todo)
        while some := list(itertools.islice(digested, LOOKED_UP)):
            files = [one for one in (self._file(*each) for each in some) if one is not None]
            rows, self.added = self.writer.table.rows_of([one.digest for one in files]), {}
            for one in files:
                row = rows.get(one.digest, self.added.get(one.digest))
                if row is not None:
                    self._place(one.seen, row)
                elif one.digest in self.waiting:
                    self.waiting[one.digest].append(one)
                else:
                    self.waiting[one.digest] = [one]
                    path = self.folder / one.seen.path
                    self.digest_of[path] = one.digest
                    yield path

    def _file(self, seen: Seen, found: Future[tuple[bytes, int | None]]) -> _Digested | None:
        """A file with its digest and date, or None where it can't be read, which is noted."""
        try:
            return _Digested(seen, *found.result())
        except OSError as error:
            self._mark_bad(seen, f"can't be opened ({error.strerror}); check the path and its permissions")
            return None

    def _place(self, seen: Seen, row: int) -> None:
        """A file whose contents are known: moved here, or a copy, or only touched."""
        self.changed = True
        moved = self.gone.get(row)
        if moved and seen.path not in self.known:
            id_, _ = moved.pop()
            if not moved:
                del self.gone[row]
            self.writer.table.move_file(id_, seen)
            self.counts.moved += 1
        else:
            self.writer.table.put_file(seen, row)
            if seen.path in self.known:
                self.counts.same += 1
            else:
                self.counts.copies += 1
        self._tell()

    def _caption_the_rest(self) -> None:
        rows = dict((self.folder / path, row) for row, path in self.writer.table.uncaptioned())
        skip: OnBad = lambda path, error: None  # noqa: E731
        for batch, features in encoded(self.predictor, list(rows), skip):
            made = captioning.of_features(self.predictor, features, "", {"beams": 1}, 1, None)
            for path, some in zip(batch, made, strict=True):
                self.writer.table.set_caption(rows[path], some[0].text)
                self.counts.captioned += 1
                self.changed = True
            self._commit_now_and_then()

    # --- what can't be read -------------------------------------------------------------------------------------

    def _unreadable(self, path: Path, error: DataError) -> None:
        digest = self.digest_of.pop(path)
        for one in self.waiting.pop(digest):
            name = self.folder / one.seen.path
            self._mark_bad(one.seen, str(error).removeprefix(f"{path} ").removeprefix(f"{name} "))

    def _mark_bad(self, seen: Seen, what: str) -> None:
        self.changed = True
        self.unreadable += 1
        self.writer.table.put_bad(seen, what)
        self._bad(seen.path, what)

    def _bad(self, path: str, what: str, tell: OnBad | None = None) -> None:
        self.counts.bad.append((path, what))
        (tell or self.on_bad)(self.folder / path, DataError(f"{self.folder / path} {what}"))

    # --- commits ------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self.on_progress(Progress(self.counts.pictures, self.total))

    def _commit_now_and_then(self) -> None:
        """The first batch at once, so that a search finds something; then more and more seldom."""
        now = time.monotonic()
        if now - self.committed >= self.interval_s or not self.committed:
            if self.committed:
                self.interval_s = min(2 * self.interval_s, LAST_COMMIT_S)
            self.writer.commit(complete=False, files=self.total - self.unreadable, captions=self.captions)
            self.committed = time.monotonic()

    def _finish(self, before: Manifest) -> None:
        found = self.writer.commit(complete=True, files=self.total - self.unreadable, captions=self.captions)
        covered = found.graph.rows if found.graph and graph.readable(found.graph.name) else 0
        if found.rows >= graph.WORTH_IT and found.rows > GROWN * covered and graph.is_there():
            found = self.writer.commit(graph=self.writer.graph())
        grown = max(found.rows, 1) / max(before.rows, 1)
        if before.level is None or not 1 / GROWN < grown < GROWN:
            store = Store(self.writer.index, self.folder, found)
            words = self.predictor.embed_texts(cutoff.NEUTRAL).numpy()
            if len(store):
                level = cutoff.level(words, lambda query: float(store.nearest(query, 1, Filters())[1][0]))
                self.writer.commit(level=level)


def _digested(folder: Path, todo: Sequence[Seen]) -> Iterator[tuple[Seen, Future[tuple[bytes, int | None]]]]:
    """Each file with its digest and date to come, in order; some are read ahead."""
    waiting: deque[tuple[Seen, Future[tuple[bytes, int | None]]]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="opencoca-digest") as pool:
        try:
            for seen in todo:
                waiting.append((seen, pool.submit(_contents, folder / seen.path)))
                if len(waiting) > 4 * READERS:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _contents(path: Path) -> tuple[bytes, int | None]:
    return contents_digest(path), _taken(path) if path.suffix.lower() in DATED else None


def _taken(path: Path) -> int | None:
    """When the picture was taken, by its EXIF data, in seconds of its own clock; None where it doesn't say."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
    except Exception:  # hostile headers make decoders raise whatever they like; reading the picture will say so
        return None
    for group, tag in TAKEN:
        text = (exif.get_ifd(group) if group else exif).get(tag)
        with contextlib.suppress(ValueError, TypeError):
            time_taken = datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
            return int(time_taken.timestamp())
    return None
