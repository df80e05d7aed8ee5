"""What tests of checkpoints share: small ones whose content is known, and saves that fail or are killed half way."""

import contextlib
import errno
import hashlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support import tiny_tokenizer

from opencoca import checkpoint, recipes
from opencoca.checkpoint import CONFIG, MANIFEST, MODEL, STATE, TOKENIZER, TRAINING, pieces
from opencoca.errors import CheckpointError

DISK_CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")
FILES = [MODEL, TRAINING, CONFIG, TOKENIZER, STATE]
CONFIGURATION, VOCABULARY = recipes.tiny.tiny(), tiny_tokenizer()


def write(folder: Path, value: float = 1.0, size: int = 50) -> Path:
    """A checkpoint of the right form with few weights, all of them `value`."""
    weights = {"a": torch.full((size,), value), "b": torch.full((3, 2), value)}
    state = {"step": int(value)}
    checkpoint.save(folder, CONFIGURATION, VOCABULARY, weights, {"raw.a": weights["a"] + 0.5}, state)
    return folder


def value_of(folder: Path) -> float:
    """The `value` of a checkpoint, which must be one and the same in all its files."""
    saved = checkpoint.load(folder, training=True)
    assert saved.training is not None and saved.state is not None
    values = {*saved.weights["a"].tolist(), *saved.weights["b"].flatten().tolist()}
    values |= {v - 0.5 for v in saved.training["raw.a"].tolist()} | {float(saved.state["step"])}
    (value,) = values
    return value


def seal(folder: Path, **changes: object) -> None:
    """Makes the manifest, with its own digest, agree with whatever now lies in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    manifest = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "files": files} | changes
    own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": own}))


def refused(folder: Path, *words: str) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, training=True)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


class Killed(BaseException):
    """Ends a save as a kill does: no `except` of ours catches it."""


@contextlib.contextmanager
def failing(monkeypatch, at: int, error: BaseException | None, after: bool):
    """Raises `error` at the `at`-th call that touches the disk, before it (writes half done) or after; counts calls."""
    count = [0]

    def wrapped(function, half=None):
        def call(*args, **kwargs):
            count[0] += 1
            mine = count[0] == at
            if mine and error and not after:
                if half:
                    half(*args)
                raise error
            try:
                return function(*args, **kwargs)
            finally:
                if mine and error:
                    raise error

        return call

    write_text = Path.write_text
    with monkeypatch.context() as patch:
        for name in DISK_CALLS:
            patch.setattr(os, name, wrapped(getattr(os, name)))
        patch.setattr(pieces, "save_file", wrapped(save_file, lambda _, path, __: path.write_bytes(b"half")))
        patch.setattr(
            Path,
            "write_text",
            wrapped(write_text, lambda path, text, *_: write_text(path, text[: len(text) // 2], encoding="utf-8")),
        )
        yield count


def calls_of(monkeypatch, action) -> int:
    with failing(monkeypatch, 0, None, False) as count:
        action()
    return count[0]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process can't grow beyond `size` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Nothing that is written reaches the disk, which is full."""

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield
