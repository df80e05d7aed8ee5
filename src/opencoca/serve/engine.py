"""What requests ask of the model, done together: one pass of the encoder for all pictures that wait, whoever sent them.

Pictures are read by a few threads. One thread owns the model: of every batch it encodes each different picture once,
then answers what was asked of them, what is quick before what takes long. Features of the last pictures are kept, so
that a question about a picture that was captioned before costs no encoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from opencoca.data.pixels import open_picture, to_square
from opencoca.data.prompts import asked
from opencoca.errors import DataError, OpenCoCaError, TooLargeError
from opencoca.infer import heads
from opencoca.infer.captioning import Caption, changed, encode_prompt, num_proposals
from opencoca.infer.predictor import Predictor
from opencoca.infer.zeroshot import ZeroShot
from opencoca.serve.batcher import Batcher, BusyError
from opencoca.serve.settings import Limits
from opencoca.types import ImageFeatures

READERS = max(1, min(4, (os.cpu_count() or 2) // 2))  # each may hold a whole picture: `Limits.pixels` times 12 bytes
LABEL_SETS = 64  # of which embeddings are kept
TEXTS_A_JOB = 16  # so many texts take as much of the queue as a picture
log = logging.getLogger("opencoca.serve")
Partial = Callable[[str], None]


class PictureError(Exception):
    """A picture that can't be read. Its message names its place and says nothing that a decoder said."""


class TooLongError(Exception):
    """Captions that took longer than they may, or for which nobody waits any more."""


class Square(NamedTuple):
    """A picture as the model takes it, uint8 [H,W,3], and what tells it from others."""

    pixels: np.ndarray
    digest: bytes

    @property
    def key(self) -> int:
        """What seeds the sampling of its captions: the same as `Predictor.caption` takes."""
        return zlib.crc32(self.pixels.tobytes())


class Labels(NamedTuple):
    """What `classify` is asked for, all but the picture."""

    labels: tuple[str, ...]
    templates: tuple[str, ...] | str = ("{}",)
    unknown: bool = False
    multi_label: bool = False


class Wording(NamedTuple):
    """What captions are asked for; `lead`: so many ids of the caption belong to the prompt, and are left out."""

    prompt: str = ""
    num_captions: int = 1
    changes: tuple[tuple[str, Any], ...] = ()
    lead: int = 0


class Question(NamedTuple):
    """What a head for questions is asked."""

    text: str


Want = Labels | Wording | Question | None  # None: the embedding


@dataclass
class Job:
    """One thing that is wanted of one picture, or of texts."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future
    square: Square | None = None
    texts: Sequence[str] = ()
    want: Want = None
    partial: Partial | None = None

    def abandoned(self) -> bool:
        """Whether nobody waits for it."""
        return self.future.cancelled() or self.loop.is_closed()

    def too_late(self) -> None:
        """Tells that it waited too long."""
        _settle([(self, BusyError(1))])


class Engine:
    """A Predictor for many requests at once. All methods but `close` are of the event loop."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.fingerprint = predictor.fingerprint()
        self.batches: list[int] = []  # sizes, which the metrics take away
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="opencoca-read")
        self._label_sets: OrderedDict[Hashable, ZeroShot] = OrderedDict()
        self._features: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self._features_bytes = 0
        self.batcher: Batcher[Job] = Batcher(
            self._run, min(predictor.batch_size, limits.batch), limits.batch_wait_s, limits.queue, limits.queue_s
        )

    # --- for requests -------------------------------------------------------------------------------------------

    def start(
        self, pictures: Sequence[Callable[[], bytes]], want: Want = None, partials: Sequence[Partial] = ()
    ) -> list[Job]:
        """Jobs for what is wanted of each picture, a function that gives its file's bytes and is called by a reader.

        Raises: BusyError where there is no room. The jobs' futures: PictureError, or BusyError after too long a wait.
        """
        loop = asyncio.get_running_loop()
        self.batcher.reserve(len(pictures))
        jobs = [
            Job(loop, loop.create_future(), want=want, partial=partials[i] if partials else None)
            for i in range(len(pictures))
        ]
        for i, (job, picture) in enumerate(zip(jobs, pictures, strict=True)):
            self._readers.submit(self._read, job, picture, i)
        return jobs

    def ask(self, pictures: Sequence[Callable[[], bytes]], want: Want = None) -> asyncio.Future[list[Any]]:
        """What is wanted of each picture; see `start`."""
        return together(self.start(pictures, want))

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm embeddings float32 [U,E]. Raises: BusyError."""
        loop = asyncio.get_running_loop()
        parts = [texts[first : first + TEXTS_A_JOB] for first in range(0, len(texts), TEXTS_A_JOB)]
        self.batcher.reserve(len(parts))
        jobs = [Job(loop, loop.create_future(), texts=part) for part in parts]
        for job in jobs:
            self.batcher.submit(job)
        return np.concatenate(await together(jobs))

    def wording(self, prompt: str, num_captions: int, changes: dict[str, Any]) -> Wording:
        """The options of captions, checked. Raises: ConfigError, DataError with the repair."""
        settings = changed(self.predictor.config.generation, changes)
        num_proposals(settings, num_captions, self.predictor.tokenizer.vocab_size)
        encode_prompt(self.predictor, prompt, settings)
        return Wording(prompt, num_captions, tuple(sorted(changes.items())))

    @property
    def has_answers(self) -> bool:
        """Whether the model has a head for questions; else it goes on with a caption that is a question."""
        return any(head.reads == "decoder" and head.pictures == 1 for head in self.predictor.model.config.heads)

    def question(self, question: str, changes: dict[str, Any]) -> Wording | Question:
        """The options of an answer, checked; see `Predictor.answer`. Raises: ConfigError, DataError with the repair."""
        if self.has_answers and not changes:
            heads.question_ids(self.predictor, question)
            return Question(question)
        settings = changed(self.predictor.config.generation, changes)
        num_proposals(settings, 1, self.predictor.tokenizer.vocab_size)
        prompt = asked(question)
        lead = len(encode_prompt(self.predictor, prompt, settings))
        return Wording(prompt, 1, tuple(sorted(changes.items())), lead)

    def text(self, ids: Sequence[int]) -> str:
        """The words of token ids."""
        return self.predictor.tokenizer.decode(ids).strip()

    @property
    def ready(self) -> bool:
        """Whether a request would be let in now."""
        return self.batcher.alive and not self.batcher.full()

    def close(self) -> None:
        """Ends the threads, once what waits is done."""
        self.batcher.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, job: Job, picture: Callable[[], bytes], place: int) -> None:
        """Makes a job's picture ready and puts the job in the queue; in a reader's thread."""
        try:
            if job.abandoned():
                return self.batcher.release()
            job.square = self._square(picture, place)
        except Exception as error:
            self.batcher.release()
            return self._failed([job], error)
        self.batcher.submit(job)

    def _square(self, picture: Callable[[], bytes], place: int) -> Square:
        name = f"images[{place}]"
        try:
            image = open_picture(picture(), self.limits.pixels, name)
            pixels = to_square(image, self.predictor.config.model.vision.image_size_px, self.predictor.config.pixels)
        except TooLargeError:
            raise PictureError(f"{name} has more than {_pixels(self.limits.pixels)}; make it smaller") from None
        except DataError:
            raise PictureError(
                f"{name} can't be read as a picture; give a whole JPEG, PNG, WebP, GIF, BMP or AVIF file"
            ) from None
        return Square(pixels, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())

    # --- the model's thread -------------------------------------------------------------------------------------

    def _run(self, jobs: list[Job]) -> None:
        self.batches.append(len(jobs))
        groups: dict[Hashable, list[Job]] = defaultdict(list)
        for job in jobs:
            groups[_kind(job)].append(job)
        try:
            features = self._encoded([job.square for job in jobs if job.square is not None])
        except Exception as error:
            return self._failed(jobs, error)
        for group in sorted(groups.values(), key=lambda some: isinstance(some[0].want, Wording)):
            try:
                _settle(list(zip(group, self._answers(group, features), strict=True)))
            except Exception as error:
                self._failed(group, error)

    def _failed(self, jobs: list[Job], error: Exception) -> None:
        if not isinstance(error, OpenCoCaError | PictureError | TooLongError):
            log.exception("a batch of %d failed", len(jobs))
        _settle([(job, error) for job in jobs])

    def _answers(self, jobs: list[Job], features: dict[bytes, ImageFeatures]) -> Iterable[Any]:
        """One answer to each of the jobs, which want the same."""
        want = jobs[0].want
        if jobs[0].square is None:
            embeds = self.predictor.embed_texts([text for job in jobs for text in job.texts]).numpy()
            return np.split(embeds, np.cumsum([len(job.texts) for job in jobs])[:-1])
        squares = [job.square for job in jobs if job.square is not None]
        rows = [features[square.digest] for square in squares]
        joined = ImageFeatures(torch.stack([row.embed for row in rows]), torch.stack([row.tokens for row in rows]))
        if want is None:
            return joined.embed.float().cpu().numpy()
        if isinstance(want, Labels):
            return self._label_set(want).probabilities(joined).numpy()
        if isinstance(want, Question):
            head = heads.head_for(self.predictor, "decoder", pictures=1)
            questions = [job.want.text for job in jobs if isinstance(job.want, Question)]
            best = heads.answer_logits(self.predictor, head, joined.tokens, questions).argmax(dim=1)
            return [head.labels[label] for label in best.tolist()]
        return self._captions(jobs, joined, [square.key for square in squares])

    def _captions(self, jobs: list[Job], features: ImageFeatures, keys: list[int]) -> list[list[Caption]]:
        wants = [job.want for job in jobs if isinstance(job.want, Wording)]
        until = time.monotonic() + self.limits.answer_s
        watched = bool(wants[0].changes) or wants[0].num_captions > 1  # who asks for much may wait in vain

        def tell(row: int, ids: list[int]) -> None:
            if all(job.abandoned() for job in jobs):
                raise TooLongError("nobody waits for it")
            if watched and time.monotonic() > until:
                raise TooLongError(
                    f"the captions took more than {self.limits.answer_s:g} s; ask for fewer or shorter ones"
                )
            partial = jobs[row].partial
            if partial is not None and not jobs[row].abandoned():
                _call(jobs[row].loop, partial, self.text(ids[wants[row].lead :]))

        found = self.predictor.caption_features(
            features,
            prompt=[want.prompt for want in wants],
            num_captions=wants[0].num_captions,
            keys=keys,
            on_step=tell if watched or any(job.partial for job in jobs) else None,
            **dict(wants[0].changes),
        )
        return [
            [one._replace(text=self.text(one.ids[want.lead :])) for one in captions] if want.lead else captions
            for want, captions in zip(wants, found, strict=True)
        ]

    def _label_set(self, want: Labels) -> ZeroShot:
        if want not in self._label_sets:
            self._label_sets[want] = self.predictor.zero_shot(
                want.labels, templates=want.templates, unknown=want.unknown, multi_label=want.multi_label
            )
            if len(self._label_sets) > LABEL_SETS:
                self._label_sets.popitem(last=False)
        self._label_sets.move_to_end(want)
        return self._label_sets[want]

    def _encoded(self, squares: list[Square]) -> dict[bytes, ImageFeatures]:
        """The features of each different picture, by digest; those that are kept cost nothing."""
        found = {square.digest: self._features[square.digest] for square in squares if square.digest in self._features}
        for digest in found:
            self._features.move_to_end(digest)
        new = {square.digest: square.pixels for square in squares if square.digest not in found}
        if new:
            batch = self.predictor.encode_squares(np.stack(list(new.values())))
            for digest, embed, tokens in zip(new, batch.embed, batch.tokens, strict=True):
                found[digest] = self._keep(digest, ImageFeatures(embed.clone(), tokens.clone()))
        return found

    def _keep(self, digest: bytes, features: ImageFeatures) -> ImageFeatures:
        self._features[digest] = features
        self._features_bytes += _bytes(features)
        while self._features_bytes > self.limits.features_bytes:
            self._features_bytes -= _bytes(self._features.popitem(last=False)[1])
        return features


def together(jobs: Sequence[Job]) -> asyncio.Future[list[Any]]:
    """The outcomes of all jobs. Where one fails or nobody waits any more, the others are given up."""
    futures = [job.future for job in jobs]
    found = asyncio.gather(*futures)

    def give_up(_: asyncio.Future) -> None:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # it is looked at, and needn't be logged

    found.add_done_callback(give_up)
    return found


def _kind(job: Job) -> Hashable:
    """What jobs that can be answered together have in common."""
    if isinstance(job.want, Wording):
        return job.want._replace(prompt="", lead=0)
    return Question if isinstance(job.want, Question) else "texts" if job.square is None else job.want


def _pixels(number: int) -> str:
    return f"{number / 1e6:g} million pixels" if number >= 1e6 else f"{number:,} pixels"


def _bytes(features: ImageFeatures) -> int:
    return sum(part.numel() * part.element_size() for part in features)


def _settle(outcomes: list[tuple[Job, Any]]) -> None:
    """Gives the jobs their outcomes, exceptions among them, in the event loop: one call for those of one loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future, Any]]] = defaultdict(list)
    for job, outcome in outcomes:
        by_loop[job.loop].append((job.future, outcome))

    def give(pairs: list[tuple[asyncio.Future, Any]]) -> None:
        for future, outcome in pairs:
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    for loop, pairs in by_loop.items():
        _call(loop, give, pairs)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
        loop.call_soon_threadsafe(function, value)
