"""What tests of `coca` on pictures share: three pictures, an untrained model, and Ctrl-C at a chosen moment.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.cli.main import main
from opencoca.infer.predictor import Predictor
from opencoca.loading import load

ALL = ["pics/2.png", "pics/10.png", "pics/sub/1.jpg"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return load(model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> Path:
    """The current folder, with three pictures in it; commands share one loaded model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opencoca.loading.load", lambda name: predictor)
    for seed, name in enumerate(ALL):
        tiny.save_picture(Path(name), seed)
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """What `coca WORDS` prints, on both streams."""
    ended = main(list(words))
    assert ended == code, f"{words} ended with {ended}"
    return capsys.readouterr()


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, batches: int) -> None:
    """Ctrl-C comes when that many batches of one picture have been encoded."""
    real, seen = Predictor.encode_squares, []

    def encode(self, squares):
        if len(seen) == batches:
            raise KeyboardInterrupt
        seen.append(squares)
        return real(self, squares)

    monkeypatch.setattr(Predictor, "encode_squares", encode)
    monkeypatch.setattr(predictor, "batch_size", 1)
