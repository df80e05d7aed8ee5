"""The wheel that a release would be: what is in it, and that it runs where nothing else of this repository is."""

from __future__ import annotations

import email
import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tests import tiny

import opencoca

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(opencoca.__file__).parent
LARGEST_BYTES = 40_000_000
SHIPPED = PACKAGE / "pretrained" / "drawings"
PROGRAM = """
import importlib, pkgutil, sys
import opencoca
print(opencoca.__file__)
for module in pkgutil.walk_packages(opencoca.__path__, "opencoca."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.openmoji import load_table
print(ClipTokenizer.published().vocab_size, len(load_table()))
"""


class Installed(NamedTuple):
    """The folder of an environment with the wheel in it, and the environment variables that its programs get."""

    folder: Path
    variables: dict[str, str]

    def run(self, command: Sequence[object], where: Path) -> str:
        program = self.folder / ("Scripts" if os.name == "nt" else "bin") / str(command[0])
        done = subprocess.run(
            [str(program), *map(str, command[1:])],
            cwd=where,
            env=self.variables,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no leftover of earlier builds gets in and none of this one stays."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "src" / "opencoca", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "unit", source / "tests" / "unit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "native", source / "native")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "made", source)
    (made,) = (source / "made").iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment that sees this one's dependencies and not this repository, for a user without a home."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    shown = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Of folders that a .pth file names, no .pth files are read: the editable install of this repository isn't seen.
    lines = "".join(f"{packages}\n" for packages in site.getsitepackages())
    (Path(shown.stdout.strip()) / "dependencies.pth").write_text(lines)
    pip("--python", python, "install", "--no-deps", "--force-reinstall", wheel)
    empty = tmp_path_factory.mktemp("home")
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TEMP", "TMP") if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "HOME": str(empty), "XDG_CACHE_HOME": str(empty / "cache")}
    return Installed(folder, {**kept, **offline, "PYTHONUTF8": "1"})


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    about = f"opencoca-{wheel.name.split('-')[1]}.dist-info/"
    ours = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(about)} == ours
    assert {about + "METADATA", about + "entry_points.txt", about + "licenses/LICENSE"} <= set(names)
    assert wheel.stat().st_size < LARGEST_BYTES


def test_its_metadata_is_a_release_s(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("torch>=2.10") for line in required)
    assert not any(line.startswith(("torchvision", "transformers")) for line in required)
    assert {"demo", "train", "export"} <= set(metadata.get_all("Provides-Extra", []))
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"


def test_the_command_runs_elsewhere(installed: Installed, tmp_path: Path) -> None:
    version = installed.run(["coca", "--version"], tmp_path)
    assert version == f"coca {version.split()[1]}\n" and version.split()[1][0].isdigit()
    assert installed.run(["coca", "--help"], tmp_path).startswith("usage: coca COMMAND")


def test_every_module_imports_and_finds_its_data(installed: Installed, tmp_path: Path) -> None:
    where, sizes = installed.run(["python", "-W", "error", "-c", PROGRAM], tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.folder)
    assert sizes == "49408 3944"


def test_a_model_folder_works_with_it(installed: Installed, tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_picture(tmp_path / "picture.png")
    line = installed.run(["coca", "caption", "picture.png", "--model", "model", "--beams", "1"], tmp_path)
    assert line.startswith("picture.png\t")


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no model is shipped in this tree")
def test_the_shipped_model_describes_a_picture_at_once(installed: Installed, tmp_path: Path) -> None:
    tiny.save_picture(tmp_path / "picture.png")
    line = installed.run(["coca", "caption", "picture.png"], tmp_path)
    name, _, caption = line.strip().partition("\t")
    assert name == "picture.png" and caption
