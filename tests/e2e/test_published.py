"""A published model from the hub to captions, with the commands a user types, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from tests import published, tiny
from tests.published import WEIGHTS, Hub

from opencoca.loading import load

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def coca(tmp_path) -> Command:
    """Runs `coca WORDS` with folders of its own."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"OPENCOCA_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "opencoca", *words],
            cwd=tmp_path,
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
            timeout=280,
        )

    return run


def test_from_the_hub_to_captions_offline(tmp_path, coca):
    tiny.save_picture(tmp_path / "cat.png")
    with published.serving(Hub({"some/coca": published.files()})) as hub:
        done = coca("models", "pull", "some/coca", HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 0, done.stderr
    words = ["caption", "cat.png", "--model", "coca", "--json"]
    done = coca(*words, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["path"] == "cat.png" and isinstance(row["caption"], str)
    done = coca("convert", "coca", "exported", "--to", "open_clip", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "exported", device="cpu").model.state_dict()
    for name, tensor in published.model().state_dict().items():
        assert torch.equal(found[name], tensor.half().float() if tensor.dim() > 1 else tensor), name


def test_a_malicious_file_is_one_line_and_never_runs(tmp_path, coca):
    exploded = tmp_path / "exploded"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(exploded),)

    torch.save({"state_dict": published.model().state_dict(), "args": Bomb()}, tmp_path / "open_clip_pytorch_model.bin")
    tiny.save_picture(tmp_path / "cat.png")
    for name in (str(tmp_path), "open_clip_pytorch_model.bin"):
        done = coca("caption", "cat.png", "--model", name)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("coca: error: ") and done.stderr.count("\n") == 1
        assert "could run anything" in done.stderr and not exploded.exists()
    torch.load(tmp_path / "open_clip_pytorch_model.bin", weights_only=False)
    assert exploded.exists()  # so it would have worked


def test_without_a_connection_it_says_what_to_download_and_that_works(tmp_path, coca):
    tiny.save_picture(tmp_path / "cat.png")
    done = coca("caption", "cat.png", "--model", "hf:some/coca", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "models/coca" in done.stderr
    published.write(tmp_path / "models" / "coca", without="training_log.txt")
    assert (tmp_path / "models" / "coca" / WEIGHTS).exists()
    done = coca("caption", "cat.png", "--model", "models/coca")
    assert done.returncode == 0, done.stderr
