"""`coca index` and `coca search` as a user has them, on drawn pictures and the model that ships."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support import COLOURS, SHAPES, drawing

from opencoca.cli.main import main
from opencoca.search import client, places
from opencoca.search.store import Store

pytestmark = pytest.mark.timeout(300)  # a fifth of it on a busy machine
WITHOUT_TORCH = """
import sys
from opencoca.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
STUCK = """
import itertools, sys, time
from opencoca.cli.main import main
from opencoca.infer import captioning, predictor
quick, made, turn = captioning.of_features, predictor.Predictor.__init__, itertools.count()
def stuck(*words):
    if next(turn):
        time.sleep(100)
    return quick(*words)
def small(self, *words):
    made(self, *words)
    self.batch_size = 5
captioning.of_features, predictor.Predictor.__init__ = stuck, small
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `pics`, 24 drawings; the user's cache and sockets are here too."""
    for colour in COLOURS:
        for shape in SHAPES:
            path = tmp_path / "pics" / shape / f"{colour}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing(colour, shape, size_px=72).save(path)
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def coca(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command in this process, which has torch already."""

    def run(*words: str, code: int = 0) -> Done:
        found = main(list(words))
        done = Done(*capsys.readouterr())
        assert found == code, done.stderr
        return done

    return run


def test_index_search_sort_and_go_on_after_a_kill(home: Path, coca: Callable[..., Done]) -> None:
    place = places.cached(home / "pics")
    words = ["index", "pics", "--model", "drawings"]
    victim = subprocess.Popen([sys.executable, "-c", STUCK, *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while Store.open(home / "pics", place) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = coca("index", "pics", code=2)
        assert "another process is indexing pics" in refused.stderr and len(refused.stderr.splitlines()) == 1
        meanwhile = coca("search", "pics", "red", "circle")
        assert "searched 5 of 24 pictures; the others aren't indexed yet" in meanwhile.stderr
        assert len(meanwhile.stdout.splitlines()) == 5
    finally:
        victim.kill()
        victim.wait()
    facts = json.loads(coca(*words, "--json").stdout)
    assert (facts["pictures"], facts["known"], facts["new"]) == (24, 5, 19)
    assert not [path for path in place.iterdir() if path.name.startswith((".partial", "work"))]

    albums = json.loads(coca("index", "pics", "--albums", "--albums-count", "4", "--json").stdout)
    assert sum(len(album["paths"]) for album in albums) == 24 and all(album["title"] for album in albums)
    (home / "pics" / "copy.png").write_bytes((home / "pics" / "bar" / "red.png").read_bytes())
    groups = coca("index", "pics", "--duplicates", "--threshold", "0.9999").stdout.strip().split("\n\n")
    assert any({"pics/copy.png", "pics/bar/red.png"} <= set(group.splitlines()) for group in groups)


def test_pictures_sums_filters_pages_and_a_resident_process(home: Path, coca: Callable[..., Done]) -> None:
    found = json.loads(coca("search", "pics", "pics/circle/red.png", "--top", "2", "--json").stdout)
    assert found[0]["path"] == "pics/circle/red.png" and found[0]["good"]
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    words = ["search", "pics", "pics/circle/red.png", "+", "green", "-", "red", "--within", "circle", "--json"]
    first = coca(*words, "--resident", "--html", "page.html")
    assert all(hit["path"].startswith("pics/circle/") for hit in json.loads(first.stdout))
    page = (home / "page.html").read_text()
    assert page.count("data:image/jpeg") == 6 and "<script" not in page
    try:
        quick = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, timeout=60
        )
        assert (quick.returncode, quick.stdout) == (0, first.stdout), quick.stderr
        drawing("pink", "circle", " on the left").save(home / "pics" / "circle" / "new.png")
        again = json.loads(coca(*words).stdout)
        assert len(again) == 7  # the resident process notices what changed
        [socket_file] = (home / "run").glob("*/*.sock")
        assert socket_file.parent.stat().st_mode & 0o077 == 0
        refused = coca("search", "pics", "nosuch.png", code=2)
        assert "nosuch.png does not exist" in refused.stderr
    finally:
        end_resident(home)
    socket_file.parent.chmod(0o755)
    assert "is open to others" in coca(*words, code=2).stderr


def test_a_resident_process_ends_by_itself(home: Path, coca: Callable[..., Done]) -> None:
    coca("search", "pics", "red")
    place = places.cached(home / "pics")
    client.start(home / "pics", place, None, idle_minutes=0.01)
    file = client.socket_file(place, None)
    deadline = time.monotonic() + 20
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not file.exists()
    assert client.ask(place, None, {"ping": True}) is None


def end_resident(home: Path) -> None:
    """Ends the resident process of this test by its command line, which names its own folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"opencoca.search.resident" in line and os.fsencode(home) in line:
            os.kill(int(folder.name), signal.SIGTERM)
