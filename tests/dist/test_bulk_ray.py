"""A bulk run by Ray Data: the bytes of a local run, also where a worker is killed. Needs the extra `distributed`."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.bulk_runs import contents, write_tar
from tests.support import samples

from opencoca.errors import DataError
from opencoca.jobs import bulk, bulk_ray
from opencoca.jobs.bulk_input import open_input
from opencoca.jobs.bulk_output import Place
from opencoca.jobs.bulk_shard import Task
from opencoca.loading import load


def workers_of(folder: Path) -> list[int]:
    """The processes below this one that Ray keeps a `Worker` in."""
    found, parents = [], {}
    for entry in folder.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    found.append(int(entry.name))
            except (OSError, ValueError):
                continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in found if ours(pid)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    torch.set_num_threads(1)
    model = str(tiny.save_model(tmp_path / "model"))
    for number, sample in enumerate(samples()):
        write_tar(tmp_path / "tars" / f"{number:05d}.tar", [("picture", sample.picture)])
    predictor, found = load(model), open_input(str(tmp_path / "tars"))
    task = Task(model, predictor.fingerprint(), ("embed", "caption"), generation={"beams": 1}, threads=1)
    bulk.run(found, Place(str(tmp_path / "local")), task, model_name="tiny", predictor=predictor)
    out, killed = tmp_path / "ray", []

    def kill_one() -> None:
        pids: list[int] = []
        while not pids:
            pids = workers_of(Path("/proc"))
        while not (out / "shards").is_dir() or not list((out / "shards").glob("*.json")):
            time.sleep(0.001)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(len(list((out / "shards").glob("*.json"))))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    options = bulk_ray.Options(workers=1)
    report = bulk.run(found, Place(str(out)), task, model_name="tiny", runner="ray", ray=options)
    killer.join(10)
    assert killed and killed[0] < report.done == 72
    assert contents(out) == contents(tmp_path / "local")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    write_tar(tmp_path / "tars" / "0.tar", [("a", samples()[0].picture)])
    predictor = tiny.predictor()
    task = Task("tiny", predictor.fingerprint(), ("embed",))
    found = open_input(str(tmp_path / "tars"))
    with pytest.raises(DataError, match=r"--runner ray needs Ray Data: pip install 'opencoca\[distributed\]'"):
        bulk.run(found, Place(str(tmp_path / "out")), task, runner="ray")
