"""What tests of commands on a folder share: three pictures, one of them in a subfolder, and an untrained model.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.infer.predictor import Predictor
from opencoca.loading import load

STATE = {"step": 20, "position": 3, "metrics": {"val/i2t_recall@1": 0.25}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny", state=STATE))


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return load(model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures in it: pics/2.png, pics/10.PNG, pics/sub/1.jpg."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("2.png", "10.PNG", "sub/1.jpg")):
        tiny.save_picture(Path("pics", name), seed)
    return tmp_path


ALL = ["pics/2.png", "pics/10.PNG", "pics/sub/1.jpg"]


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]
