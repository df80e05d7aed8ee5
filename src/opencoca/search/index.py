"""The pictures of a folder as embeddings, ranked for a sentence; embeddings are kept between searches.

The cache is one safetensors file per folder: `embeds` float32 [I,E], and `facts`, the bytes of a JSON object with the
model's fingerprint and each picture's path, modification time and size. It only ever saves work: a file that is
missing, damaged, or of another model is made anew, and one that can't be written is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import OnBad, encoded
from opencoca.ranking import top_k

VERSION = 1


class Hit(NamedTuple):
    """A picture, and its cosine similarity to what was asked for."""

    path: Path
    score: float


class Index(NamedTuple):
    """Pictures and their unit-norm embeddings, float32 [I,E]."""

    paths: list[Path]
    embeds: Tensor

    def search(self, query: Tensor, k: int) -> list[Hit]:
        """The k pictures nearest to a unit-norm embedding [E], the nearest first."""
        if not self.paths:
            return []
        scores, rows = top_k(query[None], self.embeds, k)
        return [Hit(self.paths[row], score) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)]


def build(
    predictor: Predictor,
    paths: Sequence[Path],
    on_bad: OnBad,
    on_done: Callable[[int], None] = lambda count: None,
    cache: Path | None = None,
) -> Index:
    """The index of the readable pictures among `paths`, in their order.

    Args: on_bad is called with each picture that can't be read, on_done with the number of each batch that was; cache
      is the file to take embeddings from and keep them in, also where an interruption ends the work early.
    """
    model = predictor.fingerprint() if cache else ""
    stamps = {path: stamp for path in paths if (stamp := _stamp(path))}
    kept = _read(cache, model) if cache else {}
    found = {path: kept[stamp] for path, stamp in stamps.items() if stamp in kept}
    reused = len(found)
    if reused:
        on_done(reused)
    try:
        for batch, features in encoded(predictor, [path for path in paths if path not in found], on_bad):
            found |= zip(batch, features.embed.float().cpu(), strict=True)
            on_done(len(batch))
    finally:
        if cache and not reused == len(found) == len(kept):
            _write(cache, model, {stamps[path]: embed for path, embed in found.items() if path in stamps})
    return _index([(path, found[path]) for path in paths if path in found], predictor.model.config.embed_dim)


def cache_file(folder: Path) -> Path | None:
    """Where the embeddings of a folder's pictures are kept; None for a user without a home folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        parent = Path(root) if root else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return parent / "opencoca" / "embeddings" / f"{name}.safetensors"


class _Stamp(NamedTuple):
    """What tells one state of a file from another."""

    path: str
    modified_ns: int
    bytes: int


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:  # reading it will say so
        return None
    return _Stamp(os.path.abspath(path), status.st_mtime_ns, status.st_size)


def _index(pairs: list[tuple[Path, Tensor]], width: int) -> Index:
    embeds = [embed for _, embed in pairs]
    return Index([path for path, _ in pairs], torch.stack(embeds) if embeds else torch.empty(0, width))


def _read(file: Path, model: str) -> dict[_Stamp, Tensor]:
    try:
        tensors = load_file(file)
        facts = json.loads(tensors["facts"].numpy().tobytes())
        embeds = tensors["embeds"]
        if facts["version"] != VERSION or facts["model"] != model or not embeds.isfinite().all():
            return {}
        return dict(zip((_Stamp(*picture) for picture in facts["pictures"]), embeds, strict=True))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def _write(file: Path, model: str, embeds: dict[_Stamp, Tensor]) -> None:
    facts = {"version": VERSION, "model": model, "pictures": list(embeds)}
    tensors = {
        "facts": torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8),
        "embeds": torch.stack(list(embeds.values())) if embeds else torch.empty(0, 0),
    }
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")  # two searches at once must not share it
    with contextlib.suppress(OSError, SafetensorError):  # safetensors reports a full disk as its own error
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            save_file(tensors, partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
