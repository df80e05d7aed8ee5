"""Hostile and unlucky clients against the server: rows 31 to 39 of the reliability sheet, and the index behind it.

Run from the repository's root: `python -m benchmarks.reliability.server_faults`, which takes 6 minutes. Every row has
its trials, those that went as they must, and silent failures: what got through, stayed open, or was lost without an
error. The model is a tiny one with random weights, so that the server is what is tried.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import itertools
import json
import logging
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.reliability.index_faults import INDEX_ROWS
from benchmarks.reliability.server_attacks import ATTACK_ROWS, HEAD
from benchmarks.reliability.server_fuzz import fuzzed
from tests import served
from tests.e2e import test_serve as processes
from tests.served import picture, serving

from opencoca.serve.settings import Limits


def summed(outcomes: Counter[str], good: set[str], **more: Any) -> dict[str, Any]:
    """Outcomes that aren't in `good` are failures, all of them silent: nobody but this script would have noticed."""
    bad = sum(count for name, count in outcomes.items() if name not in good)
    trials = outcomes.total()
    return {"trials": trials, "passes": trials - bad, "silent_failures": bad, "outcomes": dict(outcomes), **more}


def row_32(trials: int) -> dict[str, Any]:
    """Connections that send nothing, drip headers or drip bodies: cut in time, while good clients are served."""
    limits = Limits(header_s=2.0, body_s=3.0, idle_s=1, connections=max(64, trials // 2))
    outcomes: Counter[str] = Counter()
    starts = {"silent": b"", "headers": b"GET / HTTP/1.1\r\nX: ", "body": HEAD + b"Content-Length: 9999\r\n\r\n"}
    most_s = limits.body_s + 20.0  # on an idle machine 2 are enough: one for the rest of a body, one for the sweep
    slowest_s = 0.0
    good: list[float] = []
    with serving(limits=limits) as client:
        ended = threading.Event()

        def be_good() -> None:
            seed = 0
            while not ended.is_set():
                began, seed = time.monotonic(), seed + 1
                try:
                    outcomes[f"good client {client.post('/embed', picture(seed % 50)).status}"] += 1
                    good.append(time.monotonic() - began)
                except OSError as error:
                    outcomes[f"good client {type(error).__name__}"] += 1

        thread = threading.Thread(target=be_good)
        thread.start()
        began = time.monotonic()
        kinds = itertools.islice(itertools.cycle(starts), trials)
        there: dict[socket.socket, str] = {}
        for kind in kinds:
            with contextlib.suppress(OSError):
                connection = client.raw(starts[kind])
                connection.setblocking(False)
                there[connection] = kind
        opened_s = time.monotonic() - began
        while there and time.monotonic() - began < opened_s + most_s:
            for connection, kind in list(there.items()):
                try:
                    if kind != "silent":
                        connection.send(b"a")
                    if not connection.recv(65536):
                        raise ConnectionError
                except BlockingIOError:
                    continue
                except OSError:
                    outcomes[f"{there.pop(connection)} cut"] += 1
                    slowest_s = time.monotonic() - began
                    connection.close()
            time.sleep(0.1)
        for connection, kind in there.items():
            outcomes[f"{kind} still open"] += 1
            connection.close()
        ended.set()
        thread.join()
    allowed = {"silent cut", "headers cut", "body cut", "good client 200"}
    times = {"slowest_good_client_s": round(max(good, default=0.0), 2), "last_cut_s": round(slowest_s, 1)}
    return {"outcomes": outcomes, "good": allowed, **times}


def row_34(trials: int) -> dict[str, Any]:
    """Ten times as many clients as the queue has room for: answered, or told when to come again."""
    from tests.unit.test_serve_attacks import slow_predictor

    outcomes: Counter[str] = Counter()
    limits = Limits(queue=16, queue_s=5, idle_s=1)
    with serving(slow_predictor(0.05), limits=limits) as client:
        with concurrent.futures.ThreadPoolExecutor(10 * limits.queue) as pool:
            for answer in pool.map(lambda seed: client.post("/embed", picture(seed % 500)), range(trials)):
                told = answer.status != 503 or 1 <= int(answer.headers.get("retry-after", 0)) <= 60
                outcomes[str(answer.status) if told else "503 without a time"] += 1
        outcomes[f"afterwards {client.post('/embed', picture()).status}"] += 1
    return {"outcomes": outcomes, "good": {"200", "503", "afterwards 200"}}


def row_37(trials: int) -> dict[str, Any]:
    """SIGTERM while 12 clients ask without a pause: what was begun is answered, and the exit code is 0."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model = served.save_model(Path(folder) / "tiny")
        for trial in range(trials):
            found: Counter[str] = Counter()
            with processes.process("--model", str(model)) as (server, port):
                ended = threading.Event()
                threads = [
                    threading.Thread(target=processes.load, args=(port, ended, found, seed)) for seed in range(12)
                ]
                for thread in threads:
                    thread.start()
                time.sleep(0.3 + (trial % 10) / 10)
                server.send_signal(signal.SIGTERM)
                outcomes[f"exit code {server.wait(processes.END_S)}"] += 1
                ended.set()
                for thread in threads:
                    thread.join()
            del found["not taken"]
            outcomes.update(found)
    return {"outcomes": outcomes, "good": {"exit code 0", "200", "503"}}


def row_39(trials: int) -> dict[str, Any]:
    """Clients that go away at any byte, or while the answer is being made: nothing stays behind."""
    chance, outcomes = random.Random(0), Counter()
    files = [picture(seed) for seed in range(20)]
    encoded = base64.b64encode(files[0]).decode()
    stream = json.dumps({"images": [encoded] * 3, "stream": True}).encode()
    with serving(limits=Limits(idle_s=1, header_s=1.0, body_s=1.0)) as client:
        for trial in range(trials):
            file = chance.choice(files)
            whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(file) + file
            if trial % 3 == 0:
                head = HEAD.replace(b"/embed", b"/caption").replace(b"image/png", b"application/json")
                whole = head + b"Content-Length: %d\r\n\r\n" % len(stream) + stream
            connection = client.raw(whole[: chance.randrange(len(whole) + 1)] if trial % 2 else whole)
            if trial % 5 == 0:
                time.sleep(chance.random() / 50)
            connection.close()
            outcomes["gone"] += 1
        until = time.monotonic() + 20
        batcher = client.service.engine.batcher
        while (batcher.depth or client.server.server_state.connections) and time.monotonic() < until:  # type: ignore[union-attr]
            time.sleep(0.1)
        outcomes["left in the queue"] += batcher.depth
        outcomes["left open"] += len(client.server.server_state.connections)  # type: ignore[union-attr]
        outcomes["left at work"] += len(client.server.server_state.tasks)  # type: ignore[union-attr]
        outcomes[f"afterwards {client.post('/embed', files[0]).status}"] += 1
    return {"outcomes": +outcomes, "good": {"gone", "afterwards 200"}}


def row_31(trials: int) -> dict[str, Any]:
    """The whole API, by its own description: what it allows, and what it doesn't (schemathesis)."""
    outcomes = fuzzed(trials)
    return {"outcomes": outcomes, "good": {name for name in outcomes if not name.startswith(("failed", "5"))}}


CLIENT_ROWS = {"31": (row_31, 1), "32": (row_32, 0.5), "34": (row_34, 1), "37": (row_37, 0.02), "39": (row_39, 1)}
# What makes a row of so many trials, and the share of --trials that it gets.
ROWS: dict[str, tuple[Callable[[int], dict[str, Any]], float]]
ROWS = dict(sorted((CLIENT_ROWS | ATTACK_ROWS).items())) | INDEX_ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of each row; fewer where one takes seconds")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--write", action="store_true", help="the result, whatever --trials and --rows")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows: dict[str, Any] = {}
    for name in args.rows:
        began = time.perf_counter()
        row, part = ROWS[name]
        found = summed(**row(max(1, int(part * args.trials))))
        rows[name] = {"trial": (row.__doc__ or "").splitlines()[0], **found}
        print(name, f"{time.perf_counter() - began:.0f} s", json.dumps(rows[name])[:600], flush=True)
    if args.write or (args.rows == list(ROWS) and args.trials == parser.get_default("trials")):
        write_result("reliability_server", {"rows": rows})


if __name__ == "__main__":
    main()
