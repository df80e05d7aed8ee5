"""What tests of refusals share: a good picture and a good model to damage, and what a refusal looks like.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.cli.main import main

COMMANDS = {
    "caption": ["caption", "good.png"],
    "classify": ["classify", "good.png", "--labels", "cat,dog"],
    "search": ["search", "pictures", "a boat"],
    "info": ["info"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    state = {"step": 1, "position": 1, "metrics": {}}
    return tiny.save_model(tmp_path_factory.mktemp("models") / "good", state=state)


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a good picture, a folder of one, a good model called `model`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save_picture(Path("good.png"), size=(60, 60))
    tiny.save_picture(Path("pictures/good.png"))
    shutil.copytree(model, "model")
    return tmp_path


def assert_refused(words: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """`coca WORDS` exits with 2, prints nothing, and says one line that holds every part of `said`."""
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("coca: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    for part in said:
        assert part in err
