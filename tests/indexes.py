"""What tests of indexes share: a folder of five pictures, and a count of those that the model reads.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.infer.predictor import Predictor
from opencoca.search import update
from opencoca.search.index import Index


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor(batch_size=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(5):
        tiny.save_picture(tmp_path / "pics" / f"{seed}.png", seed)
    return tmp_path / "pics"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


class Counting:
    """Stands in for `encoded` and remembers which pictures it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        real = update.encoded

        def counting(predictor, paths, on_bad):
            def told():
                for path in paths:
                    self.read.append(path.name)
                    yield path

            return real(predictor, told(), on_bad)

        monkeypatch.setattr(update, "encoded", counting)

    def since(self) -> list[str]:
        read, self.read = self.read, []
        return read


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def make(folder: Path, predictor: Predictor, place: Path, **options) -> Index:
    return Index.make(folder, predictor, "tiny", index=place, **options)


def names(index: Index, k: int = 100, query: str = "red circle", **options) -> list[str]:
    return [hit.path.name for hit in index.search(query, k, **options)]
