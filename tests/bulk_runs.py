"""What the tests of bulk runs share: a model, tars of which one holds a torn picture, runs and what they leave.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.support import samples, write_shards

from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk
from opencoca.jobs.bulk_input import Input, open_input
from opencoca.jobs.bulk_output import Place
from opencoca.jobs.bulk_shard import Task


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=4)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of five pictures each, without captions; the second holds a torn one."""
    for number in range(3):
        members = [(f"{number}{i}", sample.picture) for i, sample in enumerate(samples()[5 * number : 5 * number + 5])]
        if number == 1:
            members[2] = (members[2][0], members[2][1][:40])
        write_tar(tmp_path / "tars" / f"{number:05d}.tar", members)
    return tmp_path / "tars"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, picture in members:
            entry = tarfile.TarInfo(f"{key}.png")
            entry.size = len(picture)
            tar.addfile(entry, io.BytesIO(picture))


def task_of(predictor: Predictor, *do: str, **changes: Any) -> Task:
    options: dict[str, Any] = {"generation": {"beams": 1, "max_tokens": 8, "temperature": 0.0}, "batch_size": 4}
    return Task("tiny", predictor.fingerprint(), do or ("embed",), **{**options, **changes})


def run(found: Input | Path, out: Path, predictor: Predictor, task: Task | None = None, **options: Any) -> bulk.Report:
    found = found if isinstance(found, Input) else open_input(str(found))
    options = {"max_bad": 0.5, **options}
    return bulk.run(
        found, Place(str(out)), task or task_of(predictor), model_name="tiny", predictor=predictor, **options
    )


def contents(out: Path) -> dict[str, bytes]:
    """All files of an output, but for the lock and what is this machine's alone: times of the input's files."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".lock":
            facts = json.loads(path.read_bytes()) if path.suffix == ".json" else {}
            if "stamp" in facts:
                del facts["stamp"], facts["digest"]
            name = path.relative_to(out).as_posix()
            found[name] = json.dumps(facts).encode() if facts else path.read_bytes()
    return found


def prepared(folder: Path) -> Path:
    return write_shards(folder)
