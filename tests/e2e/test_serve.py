"""`coca serve` as a process: it says where it is, drains on SIGTERM, and starts only where it is safe to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import served
from tests.served import PNG, picture

from opencoca.cli.main import main

START_S, END_S = 60, 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.save_model(tmp_path_factory.mktemp("models") / "tiny")


@contextlib.contextmanager
def process(*words: str, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen, int]]:
    """The server's process and its port."""
    command = [sys.executable, "-m", "opencoca", "serve", "--port", "0", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as started:
        timer = threading.Timer(START_S + END_S, started.kill)
        timer.start()
        try:
            assert started.stdout is not None
            said = started.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:(\d+)  ", said)
            assert found, (said, started.stderr.read() if started.stderr and started.poll() is not None else "")
            yield started, int(found[1])
        finally:
            timer.cancel()
            started.kill()


def status_of(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_S)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, PNG)
        response = connection.getresponse()
        return response.status, response.read()


def load(port: int, ended: threading.Event, outcomes: Counter[str], seed: int) -> None:
    """Asks again and again; a connection that nobody took is no loss, an answer that breaks off is."""
    while not ended.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_S)
        try:
            connection.connect()
        except OSError:
            outcomes["not taken"] += 1
            time.sleep(0.01)
            continue
        try:
            connection.request("POST", "/caption", picture(seed), PNG)
            response = connection.getresponse()
            outcomes[str(response.status)] += bool(json.loads(response.read())) or 1
        except (http.client.HTTPException, OSError) as error:
            outcomes[
                "reset before an answer" if not isinstance(error, http.client.IncompleteRead) else "broken off"
            ] += 1
        except ValueError:
            outcomes["broken off"] += 1
        finally:
            connection.close()


@pytest.mark.timeout(120)
def test_sigterm_under_load_loses_no_answer(model: Path) -> None:
    outcomes: Counter[str] = Counter()
    with process("--model", str(model)) as (server, port):
        ended = threading.Event()
        threads = [threading.Thread(target=load, args=(port, ended, outcomes, seed)) for seed in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        before = outcomes.copy()
        server.send_signal(signal.SIGTERM)
        code = server.wait(END_S)
        ended.set()
        for thread in threads:
            thread.join()
        lines = [json.loads(line) for line in server.stderr.read().splitlines()]  # type: ignore[union-attr]
    assert code == 0
    assert before["200"] > 0 and not set(before) - {"200", "503"}
    assert not set(outcomes) - {"200", "503", "not taken", "reset before an answer"}
    assert outcomes["reset before an answer"] <= 2  # in the kernel's queue when the socket was closed
    assert all(line["whole"] and line["status"] in (200, 503) for line in lines if line["event"] == "request")


def test_sigterm_as_soon_as_the_address_is_there(model: Path) -> None:
    for _ in range(2):
        with process("--model", str(model)) as (server, port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_S)
            with contextlib.closing(connection):
                connection.request("POST", "/embed", picture(1), PNG)  # perhaps before anybody looks
                server.send_signal(signal.SIGTERM)
                assert connection.getresponse().status == 200
            assert server.wait(END_S) == 0


def test_a_server_is_not_started_where_it_is_not_safe(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COCA_TOKEN", raising=False)
    (tmp_path / "short").write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, said in [
            (["--host", "0.0.0.0"], "there is no token"),
            (["--host", "::"], "there is no token"),
            (["--host", "0.0.0.0", "--token-file", str(tmp_path / "short")], "at least 16"),
            (["--host", "0.0.0.0", "--token-file", str(tmp_path / "none")], "no token file"),
            (["--port", str(taken.getsockname()[1])], "it is taken"),
            (["--port", "70000"], "65535"),
            (["--port", "0", "--index", str(tmp_path)], "has no index"),
            (["--port", "0", "--word-list", str(tmp_path / "none")], "no word list"),
            (["--port", "0", "--workers", "0"], "workers 0"),
            (["--port", "0", "--max-queue", "0"], "must be positive"),
        ]:
            code = main(["serve", "--model", str(model), *words])
            out, err = capsys.readouterr()
            assert (code, out) == (2, "") and err.startswith("coca: error: ") and said in err, (words, err)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_share_a_socket_and_are_replaced(model: Path) -> None:
    with process("--model", str(model), "--workers", "2", env={"COCA_TOKEN": ""}) as (server, port):
        until = time.monotonic() + START_S
        while len(workers := children(server.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        for seed in range(8):
            assert status_of(port, "/embed", picture(seed))[0] == 200
        figures = status_of(port, "/metrics")[1].decode()
        assert sum(float(n) for n in re.findall(r'requests_total\{route="/embed",status="200"\} (\S+)', figures)) == 8
        os.kill(workers[0], signal.SIGSTOP)  # the other one answers alone
        os.kill(workers[0], signal.SIGCONT)
        time.sleep(6)  # a worker that dies sooner has failed to start
        os.kill(workers[0], signal.SIGKILL)
        while set(children(server.pid)) == set(workers) or len(children(server.pid)) < 2:
            assert time.monotonic() < until + START_S
            time.sleep(0.1)
        assert status_of(port, "/livez")[0] == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(END_S) == 0
    with pytest.raises(OSError):
        status_of(port, "/livez")


def children(pid: int) -> list[int]:
    """The workers of a server: multiprocessing's own resource tracker isn't one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in listed if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
