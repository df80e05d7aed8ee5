"""`coca doctor`: what it finds, and that it works where something is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import json

import pytest

from opencoca.cli import checkup
from opencoca.cli.main import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(checkup, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(checkup, "DECODE_S", 0.01)
    monkeypatch.setattr(checkup, "PICTURE_PX", (64, 48))
    monkeypatch.setattr("opencoca.train.machine.matmul_rate", lambda device, *_, **__: 12.345e9)


def test_a_sound_installation(quick, capsys):
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert list(report) == ["versions", "extras", "models", "device", "disk", "speed", "problems"]
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    assert report["speed"]["matrix product GFLOP/s"] == 12.3
    assert all(value > 0 for value in report["speed"].values())
    assert report["disk"]["free here GB"] > 0
    assert (report["problems"], err) == ([], "")
    assert "dev" not in report["extras"]


def test_text_is_a_fact_a_line(capsys):
    assert main(["doctor", "--no-speed"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert all(len(row) == 3 for row in rows)
    assert "speed" not in {row[0] for row in rows}


REQUIRES = [
    "torch>=2.10",
    "nosuchpackage>=1.5",
    "numpy>=99",
    "nosuchextra>=1; extra == 'shiny'",
    "pillow; extra == 'fine'",
]


def test_what_is_missing_or_old_is_said_with_its_repair(monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    assert main(["doctor", "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["extras"] == {"shiny": "lacks nosuchextra; pip install 'opencoca[shiny]'", "fine": "installed"}
    missing, old = report["problems"]
    assert missing == "nosuchpackage is not installed; run: pip install -U opencoca"
    assert old.startswith("numpy ") and old.endswith("is older than 99; run: pip install -U 'numpy>=99'")
    assert err.splitlines() == [f"coca: {missing}", f"coca: {old}"]
    assert "speed" not in report


def test_a_gpu_that_is_there_but_unused_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert checkup._device()["gpu"] is None or "MPS" in checkup._device()["gpu"]
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert "MPS" in checkup._device()["gpu"]


def test_a_package_that_does_not_load_is_a_problem_and_not_the_end(monkeypatch, capsys):
    real = importlib.import_module

    def load(name, *rest):
        if name == "tokenizers":
            raise OSError("libfoo.so: wrong ELF class")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", load)
    assert main(["doctor", "--no-speed"]) == 2
    assert "tokenizers can't be imported (libfoo.so: wrong ELF class); install it again" in capsys.readouterr().err


@pytest.mark.parametrize(("low", "high"), [("2.9.1", "2.10"), ("1.0", "1.0.1"), ("2.13.0+cpu", "2.14"), ("9", "10a1")])
def test_versions_compare_as_numbers(low, high):
    assert checkup._numbers(low) < checkup._numbers(high)
