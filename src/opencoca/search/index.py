"""Asking an index: queries to embeddings, the nearest pictures, why they match, and small pictures of them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from opencoca.data.pixels import open_picture
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import Picture as AnyPicture
from opencoca.search import cutoff
from opencoca.search.backend import Backend, Picture
from opencoca.search.files import inside
from opencoca.search.filters import Filters
from opencoca.search.lance import backend_of
from opencoca.search.places import index_folder
from opencoca.search.query import Term, parse, wanted_words, words
from opencoca.search.update import check_model, update

BLENDED = 1000  # so many of the nearest are ranked anew where captions count
SAMPLE = 4096  # pictures on which the level of a sum is measured
MAX_THUMBNAIL_PX = 1024


class Hit(NamedTuple):
    """A picture that was found: its cosine similarity, and whether that is more than unrelated words reach here."""

    id: int
    path: Path
    score: float
    caption: str
    why: str
    good: bool = True


@dataclass(frozen=True)
class Query:
    """A query as an embedding [E], the words that captions may share with it, and its level (see `cutoff`)."""

    embed: np.ndarray
    words: frozenset[str] = field(default_factory=frozenset)
    level: float = -1.0


class Index:
    """The pictures of a folder, to be searched; it never changes. See the package's docstring."""

    def __init__(
        self, backend: Backend, predictor: Predictor, folder: Path, level: float | None = None, total: int = 0
    ) -> None:
        """`folder` holds the pictures, whose files are needed for thumbnails only; `level` is of sentences, and `total`
        says how many pictures there will be when indexing is done."""
        made = predictor.model.config.embed_dim
        if backend.width != made:
            raise DataError(
                f"the index has embeddings of {backend.width} numbers and the model makes {made}; search with the "
                "model that made the index"
            )
        self.backend, self.predictor, self.folder = backend, predictor, folder
        self.total = max(total, len(backend))
        self._level = level

    @classmethod
    def open(
        cls, folder: str | Path, predictor: Predictor, index: Path | None = None, model_name: str = "NAME"
    ) -> Index:
        """The index of a folder as it is on disk.

        Raises: DataError where there is none, it is damaged, or another model made it; each with the repair.
        """
        folder = Path(folder)
        opened = backend_of(folder, index or index_folder(folder))
        if opened is None:
            raise DataError(f"{folder} has no index; make one: coca index {folder}")
        backend, found = opened
        check_model(folder, found, predictor.fingerprint(), model_name)
        return cls(backend, predictor, found.below(folder), found.level, found.files)

    @classmethod
    def make(cls, folder: str | Path, predictor: Predictor, model_name: str = "NAME", **options: Any) -> Index:
        """The index of a folder, brought up to date first; for the options see `update`."""
        update(Path(folder), predictor, model_name, **options)
        return cls.open(folder, predictor, options.get("index"), model_name)

    def __len__(self) -> int:
        return len(self.backend)

    # --- asking -------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str | Query | Tensor | np.ndarray,
        k: int = 10,
        filters: Filters | None = None,
        blend: float = 0.0,
    ) -> list[Hit]:
        """The k pictures that fit best, the best first.

        Args: query is a sentence or sum (see `query.py`), what `embed` made of one, or a unit-norm embedding [E], which
          counts as a picture's. blend, 0 to 1: how much the captions' words count, among the 1,000 nearest pictures.
        Raises: DataError for a query that can't be understood, or a width that is not the index's.
        """
        if not 0 <= blend <= 1:
            raise DataError(f"blend {blend} must be from 0, where only pictures count, to 1, where only captions do")
        if k < 1:
            raise DataError(f"k {k} finds nothing; ask for 1 picture or more")
        if isinstance(query, str):
            query = self.embed(query)
        elif not isinstance(query, Query):
            values = (
                query.detach().float().cpu().numpy() if isinstance(query, Tensor) else np.asarray(query, np.float32)
            )
            query = Query(_unit(values), level=self._level_of((1,), (False,)))
        if query.embed.shape != (self.backend.width,):
            shape = list(query.embed.shape)
            raise DataError(f"the embedding is {shape} and the index has [{self.backend.width}]; embed with its model")
        wanted = max(k, BLENDED) if blend else k
        ids, scores = self.backend.nearest(query.embed, wanted, filters or Filters())
        pictures = self.backend.pictures(ids.tolist())
        if blend:
            order = _blended(query, pictures, scores, blend)[:k]
            pictures, scores = [pictures[i] for i in order], scores[order]
        return [_hit(query, picture, float(score)) for picture, score in zip(pictures, scores, strict=True)]

    def embed(self, query: str, pictures: Callable[[str], AnyPicture] | None = None) -> Query:
        """What a query asks for.

        Args: pictures turns the name of a picture file in the query into the picture; without it such names are words.
        Raises: DataError for a query that can't be understood, an unknown id, or a picture that can't be read.
        """
        return self.embed_terms(parse(query), pictures)

    def embed_terms(self, terms: Sequence[Term], pictures: Callable[[str], AnyPicture] | None = None) -> Query:
        """`embed` of a parsed query."""
        terms = [term._replace(kind="text") if term.kind == "picture" and not pictures else term for term in terms]
        embeds: list[np.ndarray] = []
        for term in terms:
            if term.kind == "text":
                embeds.append(self.predictor.embed_texts(term.value)[0].numpy())
            elif term.kind == "id":
                embeds.append(np.asarray(self.backend.embeds([int(term.value)])[0], np.float32))
            else:
                assert pictures is not None
                found = pictures(term.value)
                if not isinstance(found, np.ndarray) or found.ndim != 1:  # it isn't an embedding [E] already
                    found = self.predictor.embed_images([found])[0].numpy()
                embeds.append(found)
        signs = tuple(term.sign for term in terms)
        level = self._level_of(signs, tuple(term.kind == "text" for term in terms))
        return Query(_sum(signs, embeds), wanted_words(terms), level)

    @functools.lru_cache(maxsize=32)  # noqa: B019  an index is as long-lived as its process
    def _level_of(self, signs: tuple[int, ...], is_text: tuple[bool, ...]) -> float:
        if signs == (1,) and is_text == (True,) and self._level is not None:
            return self._level
        return cutoff.level_of_sum(signs, is_text, self._words, self._sample, functools.partial(_sum, signs))

    @functools.cached_property
    def _words(self) -> np.ndarray:
        return self.predictor.embed_texts(cutoff.NEUTRAL).numpy()

    @functools.cached_property
    def _sample(self) -> np.ndarray:
        ids = self.backend.ids()
        chosen = np.sort(np.random.default_rng(0).permutation(len(ids))[:SAMPLE])
        return np.asarray(self.backend.embeds(ids[chosen].tolist()), np.float32)

    # --- pictures -----------------------------------------------------------------------------------------------

    def picture(self, id: int) -> Picture:
        """What is known of a picture.

        Raises: DataError for an unknown id.
        """
        return self.backend.pictures([id])[0]

    def thumbnail(self, id: int, size_px: int = 256) -> bytes:
        """A small JPEG of a picture, at most `size_px` wide and high, without any of its file's metadata.

        Raises: DataError for an unknown id, a file that can't be read any more or that leads out of the folder, or a
          size that is no thumbnail's.
        """
        if not 16 <= size_px <= MAX_THUMBNAIL_PX:
            raise DataError(f"a thumbnail of {size_px} px is not made; ask for 16 to {MAX_THUMBNAIL_PX}")
        file = inside(self.folder, self.picture(id).path)
        image = open_picture(file, name=f"picture {id}")
        image.thumbnail((size_px, size_px))
        image.info.clear()
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        return out.getvalue()


def _sum(signs: Sequence[int], embeds: Sequence[np.ndarray]) -> np.ndarray:
    return _unit(np.sum([sign * np.asarray(one, np.float64) for sign, one in zip(signs, embeds, strict=True)], axis=0))


def _unit(values: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(values))
    if not np.isfinite(norm) or norm < 1e-6:
        raise DataError("the terms of the query cancel each other out; leave one of them out")
    return (values / norm).astype(np.float32)


def _blended(query: Query, pictures: Sequence[Picture], scores: np.ndarray, blend: float) -> np.ndarray:
    """The order by similarity, stretched to 0 to 1 over these pictures, and by the share of the words in captions."""
    if not len(scores):
        return np.empty(0, np.int64)
    low, high = scores.min(), scores.max()
    seen = (scores - low) / max(high - low, 1e-6)
    count = max(len(query.words), 1)
    said = np.array([len(query.words & words(picture.caption)) / count for picture in pictures])
    return np.argsort(-((1 - blend) * seen + blend * said), kind="stable")


def _hit(query: Query, picture: Picture, score: float) -> Hit:
    shared = query.words & words(picture.caption)
    said = [word for word in dict.fromkeys(picture.caption.casefold().split()) if words(word) & shared]
    why = f"similarity {score:.3f}"
    if query.level > -1:
        why += f" (unrelated queries reach {query.level:.3f})"
    if said:
        why = f"its caption says {', '.join(said)}; {why}"
    return Hit(picture.id, picture.path, min(score, 1.0), picture.caption, why, score >= query.level)
