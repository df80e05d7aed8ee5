"""Commands over many pictures as a user runs them: broken files, Ctrl-C, a kill, a rerun, and memory."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import tiny

PICTURES = 500
BROKEN = range(50, PICTURES, 100)  # 1%
RUN = "import sys; from opencoca.cli.main import main; code = main(sys.argv[1:])\n"
MEASURE = RUN + "from opencoca.train.machine import peak_memory_bytes\nprint(peak_memory_bytes(), file=sys.stderr)\n"
WORDS = ["caption", "pics", "--model", "model", "--beams", "2", "--max-tokens", "6"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and pictures, one in a hundred of which is broken."""
    folder = tmp_path_factory.mktemp("many")
    tiny.save_model(folder / "model")
    good = tiny.save_picture(folder / "0.png").read_bytes()
    (folder / "pics").mkdir()
    for number in range(PICTURES):
        (folder / "pics" / f"{number}.png").write_bytes(good[: 40 if number in BROKEN else None])
    return folder


def start(folder: Path, *words: str, program: str = RUN + "sys.exit(code)") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL] if os.name == "posix" else [])
def test_a_stopped_command_keeps_its_rows_and_a_rerun_completes_them(folder, stop):
    file = folder / f"{stop.name}.csv"
    process = start(folder, *WORDS, "--output", file.name)
    while not (file.exists() and len(rows(file)) > 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(stop)
    _, err = process.communicate(timeout=120)
    if stop == signal.SIGINT:
        assert process.returncode == 130, err
        assert err.endswith("coca: interrupted\n")
        assert "Traceback" not in err
    before = rows(file)
    assert 1 < len(before) < PICTURES - len(BROKEN)
    assert all(len(row) == 3 and row["log_prob"] for row in before)

    process = start(folder, *WORDS, "--output", file.name)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (3, ""), err
    after = rows(file)
    assert after[: len(before)] == before
    good = [f"pics/{number}.png" for number in range(PICTURES) if number not in BROKEN]
    assert [Path(row["path"]).as_posix() for row in after] == good
    said = err.splitlines()
    assert said[-1] == f"{len(good) - len(before)} done, {len(before)} there already, {len(BROKEN)} skipped"
    assert [line.split(":")[0] for line in said[:-1]] == [f"skipped {Path('pics', f'{n}.png')}" for n in BROKEN]


def test_memory_does_not_grow_with_the_number_of_pictures(folder):
    peaks = {}
    for count in (100, PICTURES):
        process = start(folder, "caption", "-", *WORDS[2:], "--json", program=MEASURE)
        listed = "\0".join(f"pics/{number}.png" for number in range(count))
        out, err = process.communicate(listed + "\0", timeout=300)
        peaks[count] = int(err.splitlines()[-1])
        assert len(json.loads(out)) == count - len([number for number in BROKEN if number < count])
    assert peaks[PICTURES] - peaks[100] < 12e6, peaks
