"""Row 30: files that somebody made to run code, to read or write elsewhere, or to eat memory. Each must be refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from tests.checkpoints import CONFIGURATION, seal, write

from opencoca import checkpoint, weights
from opencoca.checkpoint import CONFIG, MODEL, STATE, TOKENIZER, TRAINING
from opencoca.errors import OpenCoCaError

MOST_SECONDS, MOST_BYTES = 10.0, 1_000_000_000
BOMB = "OPENCOCA_BOMB"


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ[BOMB]),)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, of any claimed length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(offsets: list[int], shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, bytes] = {
    "header of 2^63 bytes": safetensors({}, length=2**63),
    "header of 2^40 bytes": safetensors({}, length=2**40),
    "header of 99 MB that isn't there": safetensors({}, length=99_000_000),
    "header that is no JSON": safetensors(b"\x80\x04."),
    "header nested 100,000 deep": safetensors(b'{"a":' * 100_000),
    "header that isn't an object": safetensors([]),
    "overlapping tensors": safetensors({"a": tensor([0, 8], [2]), "b": tensor([4, 12], [2])}, bytes(12)),
    "a gap between tensors": safetensors({"a": tensor([0, 4], [1]), "b": tensor([8, 12], [1])}, bytes(12)),
    "offsets behind the end": safetensors({"a": tensor([0, 2**40], [2**38])}, bytes(8)),
    "offsets backwards": safetensors({"a": tensor([8, 0], [2])}, bytes(8)),
    "negative offsets": safetensors({"a": tensor([-8, 0], [2])}, bytes(8)),
    "shape larger than its bytes": safetensors({"a": tensor([0, 8], [2**40])}, bytes(8)),
    "shape whose product overflows": safetensors({"a": tensor([0, 8], [2**33, 2**33])}, bytes(8)),
    "unknown dtype": safetensors({"a": tensor([0, 8], [2], "PICKLE")}, bytes(8)),
    "bytes behind the tensors": safetensors({"a": tensor([0, 8], [2])}, bytes(80)),
    "metadata that isn't text": safetensors({"__metadata__": {"x": {}}, "a": tensor([0, 8], [2])}, bytes(8)),
}
OUTSIDE = ("../secret", "/etc/passwd", "a/../../secret", "..", "~/secret", "a\\..\\b", "a\0b", "file:///etc/passwd")


def cases(work: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names, and what a user would call."""
    number = 0

    def folder() -> Path:
        nonlocal number
        number += 1
        return write(work / f"case-{number}")

    def loads(made: Path, name: str, content: bytes) -> Callable[[], object]:
        (made / name).write_bytes(content)
        seal(made)
        return lambda: checkpoint.load(made, training=True)

    def manifest(**changes: Any) -> Callable[[], object]:
        made = folder()
        seal(made, **changes)
        return lambda: checkpoint.load(made)

    bomb = pickle.dumps(Bomb())
    for name in (MODEL, TRAINING, CONFIG, TOKENIZER, STATE):
        yield f"a pickle as {name}", loads(folder(), name, bomb)
        made = folder()
        torch.save({"a": Bomb()}, made / name)
        yield f"torch.save as {name}", loads(made, name, (made / name).read_bytes())
    for suffix in (".pt", ".bin", ".pth", ".safetensors"):
        path = work / f"weights{suffix}"
        torch.save({"a": torch.ones(2), "b": Bomb()}, path)
        yield f"weights{suffix} with code", lambda path=path: weights.read(path)
        plain = work / f"plain{suffix}"
        plain.write_bytes(bomb)
        yield f"a bare pickle as {plain.name}", lambda plain=plain: weights.read(plain)
    for name, content in SAFETENSORS.items():
        path = work / f"{len(name)}-{abs(hash(name))}.safetensors"
        path.write_bytes(content)
        yield f"safetensors: {name}", lambda path=path: weights.read(path)
        yield f"{MODEL}: {name}", loads(folder(), MODEL, content)
    for name in OUTSIDE:
        yield f"manifest names {name!r}", manifest(files={name: {"bytes": 1, "sha256": "0"}})
    yield "manifest with a size of 2^70", manifest(files={MODEL: {"bytes": 2**70, "sha256": "0"}})
    yield "manifest of another format", manifest(format="pickle")
    for name in ("../../etc", "step-1/../..", "/etc", "step-00000001 00000000"):
        run = work / f"run-{abs(hash(name))}"
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(run, 1)), keep=1)
        (run / "checkpoints" / "latest").write_text(name)
        yield f"latest names {name!r}", lambda run=run: checkpoint.load(run)
    places = ("1e999, 0", "1, 0", "-2, 0", "0")
    for text in ("[" * 100_000, "{}", "null[", *(f'{{"a": {{"saved_offsets": [{place}]}}}}' for place in places)):
        made = folder()
        (made / MODEL).unlink()
        header = {"__metadata__": {"DCP_SHARDING_INFO": text}, "a": tensor([0, 8], [2, 1])}
        for part in (1, 2):
            (made / f"model-0000{part}-of-00002.safetensors").write_bytes(safetensors(header, bytes(8)))
        seal(made)
        yield f"pieces at {text[:40]}", lambda made=made: checkpoint.load(made)
    made = folder()
    (made / MODEL).rename(made / "model-00001-of-99999.safetensors")
    seal(made)
    yield "one of 99,999 parts", lambda made=made: checkpoint.load(made)
    for name in (CONFIG, STATE, TOKENIZER):
        yield f"{name} nested 100,000 deep", loads(folder(), name, b'{"a":' * 100_000)
    config = json.dumps(CONFIGURATION.to_dict()).replace('"depth": 2', '"depth": -2')
    yield "a configuration that contradicts itself", loads(folder(), CONFIG, config.encode())


def attacks(work: Path) -> dict[str, Any]:
    """Every case: refused with one line, soon, without much memory, and nothing ran; and what others did."""
    flag = work / "it-ran"
    os.environ[BOMB] = str(flag)
    (work / "secret").write_text("0")
    outcome, problems = Counter(), []
    for name, call in cases(work):
        began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused, raised = False, "nothing"
        try:
            call()
        except OpenCoCaError as error:
            refused, raised = "\n" not in str(error), "several lines"
        except Exception as error:
            raised = type(error).__name__
        ran = flag.exists()
        flag.unlink(missing_ok=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        good = refused and not ran and time.monotonic() - began < MOST_SECONDS and grown < MOST_BYTES
        outcome.update(trials=1, passes=int(good), silent_failures=int(ran or not refused))
        if not good:
            problems.append(f"{name}: {'ran, or took too much' if refused else raised}")
    beside = write(work / "beside")  # what isn't in the manifest isn't read
    for name in (".metadata", "data.pkl", "model.pt"):
        (beside / name).write_bytes(pickle.dumps(Bomb()))
        checkpoint.load(beside, training=True)
        outcome.update(trials=1, passes=int(not flag.exists()), silent_failures=int(flag.exists()))
    return {**outcome, "problems": problems, "others": _others(work, flag)}


def _others(work: Path, flag: Path) -> dict[str, dict[str, bool]]:
    """Whether code in their files ran."""
    path, folder = work / "others.pt", work / "others"
    torch.save({"a": Bomb()}, path)
    torch.save({"a": Bomb()}, work / "old.pt", _use_new_zipfile_serialization=False)
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    calls: dict[str, Callable[[], object]] = {
        "torch.load, weights_only=False": lambda: torch.load(path, weights_only=False),
        "torch.load": lambda: torch.load(path),
        "torch.distributed.checkpoint": lambda: dcp.load({"a": torch.ones(2)}, checkpoint_id=str(folder), no_dist=True),
    }
    ran = {}
    for name, call in calls.items():
        flag.unlink(missing_ok=True)
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.suppress(BaseException),
        ):  # torch's CheckpointException is no Exception
            call()
        ran[name] = {"code_ran": flag.exists()}
    flag.unlink(missing_ok=True)
    return ran
