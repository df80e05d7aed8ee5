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
import functools
import http.client
import itertools
import json
import logging
import random
import resource
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.reliability.index_faults import INDEX_ROWS
from benchmarks.reliability.server_fuzz import fuzzed
from tests import served
from tests.e2e import test_serve as processes
from tests.served import JSON, PNG, TOKEN, Client, picture, rest, serving

from opencoca.serve.settings import Limits

HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
POSTS = ("/caption", "/ask", "/classify", "/embed", "/search", "/v1/embeddings")
GETS = (
    "/about",
    "/metrics",
    "/v1/models",
    "/thumbnail/1",
    "/livez",
    "/readyz",
    "/policy",
    "/openapi.json",
    "/",
    "/docs",
)
PUBLIC = ("/livez", "/readyz", "/policy", "/openapi.json", "/", "/docs")


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
    return summed(
        outcomes, allowed, slowest_good_client_s=round(max(good, default=0.0), 2), last_cut_s=round(slowest_s, 1)
    )


def row_33(trials: int) -> dict[str, Any]:
    """Bodies and headers that are too large or lie about their length, and picture bombs: an error of the client's."""
    from tests.unit.test_serve_attacks import png_bomb

    chance, outcomes = random.Random(0), Counter()
    limits = Limits(body_bytes=300_000, body_s=0.5, header_s=0.5, idle_s=1, queue=1000)
    whole, bomb = picture(), png_bomb()

    def requests() -> Iterator[tuple[str, bytes]]:
        while True:
            wrong = chance.choice([1, 5, 1000, 299_999])
            yield "too long a length", HEAD + b"Content-Length: %d\r\n\r\n" % (len(whole) + wrong) + whole
            yield "too short a length", HEAD + b"Content-Length: %d\r\n\r\n" % chance.randrange(len(whole)) + whole
            yield "too large", HEAD + b"Content-Length: %d\r\n\r\n" % chance.randrange(300_001, 10**18)
            chunk = b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n"
            yield "too large in chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + 4 * chunk + b"0\r\n\r\n"
            odd = bytes(chance.choice(b"0123456789-+eEx ,;abc\t\x0b") for _ in range(chance.randrange(1, 30)))
            yield "odd length", HEAD + b"Content-Length: x" + odd + b"\r\n\r\n" + whole
            yield (
                "large headers",
                b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: "
                + b"a" * chance.randrange(17_000, 90_000)
                + b"\r\n\r\n",
            )
            yield "bomb", HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(bomb) + bomb
            cut = bytearray(whole)
            for _ in range(chance.randrange(1, 9)):
                cut[chance.randrange(len(cut))] ^= 1 << chance.randrange(8)
            yield "flipped", HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(cut) + bytes(cut)

    def one(client: Client, kind: str, data: bytes) -> None:
        with contextlib.closing(client.raw()) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            try:
                answer = rest(connection)
            except TimeoutError:
                outcomes[f"{kind}: left open"] += 1
                return
        status = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "cut off"
        outcomes[f"{kind}: {status}"] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(limits=limits) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda pair: one(client, *pair), itertools.islice(requests(), trials)))
        outcomes[f"afterwards: {client.post('/embed', whole).status}"] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    good = {name for name in outcomes if name.endswith((" 400", " 408", " 413", " 422", " 431", " cut off"))}
    good |= {"flipped: 200", "afterwards: 200"}  # a picture with other colours is a picture
    return summed(outcomes, good, grown_by_MiB=round(grown))


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
    return summed(outcomes, {"200", "503", "afterwards 200"})


def row_35(trials: int) -> dict[str, Any]:
    """URLs in every place where a picture or text may stand, and a listener that counts visits."""
    outcomes: Counter[str] = Counter()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as bait, serving() as client:
        at = f"127.0.0.1:{bait.getsockname()[1]}"
        hosts = (at, at.replace("127.0.0.1", "localhost"), f"[::ffff:{at.split(':')[0]}]:{at.split(':')[1]}", f"x@{at}")
        schemes = (
            "http://",
            "HTTP://",
            "https://",
            "//",
            "ftp://",
            "gopher://",
            "file:///etc/passwd#",
            "jar:http://",
            "\thttp://",
        )
        urls = [f"{scheme}{host}/a.png" for scheme in schemes for host in hosts]
        urls += [f"data:image/png,{url}" for url in urls] + [f"data:text/html;base64,{url}" for url in urls]
        vector = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://{at}/"/></svg>'.encode()
        bodies: list[tuple[str, bytes, dict[str, str]]] = [("/caption", vector, PNG)]
        for url in urls:
            for content in ({"images": [url]}, {"images": [{"url": url}]}, {"images": [{"image_url": {"url": url}}]}):
                bodies += [(path, json.dumps(content).encode(), JSON) for path in POSTS]
            bodies.append(("/v1/embeddings", json.dumps({"input": [{"image": url}]}).encode(), JSON))
        for path, body, headers in itertools.islice(itertools.cycle(bodies), max(trials, len(bodies))):
            status = client.ask("POST", path, body, headers).status
            outcomes["refused" if status in (404, 422) else f"{path}: {status}"] += 1
        bait.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                bait.accept()[0].close()
                outcomes["visit"] += 1
    return summed(outcomes, {"refused"})


def row_36(trials: int) -> dict[str, Any]:
    """Paths that lead out, and scripts in names: no file of others, and nothing that a browser would run."""
    chance, outcomes = random.Random(0), Counter()
    parts = (
        "..",
        "%2e%2e",
        ".%2e",
        "....",
        "..%00",
        "..%252f",
        "%c0%ae%c0%ae",
        "..\\",
        "..%5c",
        "etc",
        "passwd",
        "policy.txt",
        "app.py",
    )
    joints = ("/", "//", "%2f", "%5c", "\\", "/./", "%252f")
    script = "<script>alert(1)</script>"
    with serving() as client:
        for _ in range(trials):
            tail = "".join(chance.choice(parts) + chance.choice(joints) for _ in range(chance.randrange(1, 7)))
            path = (
                chance.choice(("/static/", "/thumbnail/", "/", "/docs/", "/policy/"))
                + tail
                + chance.choice(("", "passwd"))
            )
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
            with contextlib.closing(connection):
                connection.putrequest("GET", path.replace("\\", "%5c") + f"?q={script}", skip_accept_encoding=True)
                connection.endheaders()
                answer = connection.getresponse()
                body, kind = answer.read(), answer.getheader("content-type", "")
            safe = answer.getheader("x-content-type-options") == "nosniff" and kind == "application/json"
            leaked = b"root:" in body or b"Use policy" in body or b"import" in body or script.encode() in body
            outcomes[
                "refused" if answer.status in (404, 422) and safe and not leaked else f"{path}: {answer.status}"
            ] += 1
        for path, name in itertools.product(POSTS, (script, '"><img src=x onerror=alert(1)>', "javascript:alert(1)")):
            answer = client.post(path, {name: name, "images": [name]})
            safe = (
                answer.headers["content-type"] == "application/json"
                and answer.headers["x-content-type-options"] == "nosniff"
            )
            outcomes["refused" if answer.status == 422 and safe else f"{path} {name}: {answer.status}"] += 1
    return summed(outcomes, {"refused"})


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
    return summed(outcomes, {"exit code 0", "200", "503"})


def row_38(trials: int) -> dict[str, Any]:
    """Every route with every kind of wrong token, host and origin: 401, 421 and 403, else neither."""
    outcomes: Counter[str] = Counter()
    right = f"Bearer {TOKEN}"
    tokens = (None, "", TOKEN, right[:-1], right + "x", f"Basic {TOKEN}", right.upper(), f"Bearer  {TOKEN[1:]}", right)
    hosts = (None, "127.0.0.1", "pictures.example", "evil.example", "127.0.0.1.evil.example")
    origins = (None, "same", "http://evil.example", "null")
    routes = [("POST", path) for path in POSTS] + [("GET", path) for path in GETS]
    every = list(itertools.product(routes, tokens, hosts, origins))
    with serving(token=TOKEN, host="0.0.0.0", hosts=("pictures.example",)) as client:
        for (method, path), token, host, origin in itertools.islice(itertools.cycle(every), max(trials, len(every))):
            named = host or f"127.0.0.1:{client.port}"
            headers = {"Host": named, **({"Authorization": token} if token is not None else {})}
            if origin:
                headers["Origin"] = f"http://{named}" if origin == "same" else origin
            status = client.ask(method, path, headers=headers).status
            if "evil" in named:
                wanted = status == 421
            elif origin not in (None, "same"):
                wanted = status == 403
            elif path not in PUBLIC and token != right:
                wanted = status == 401
            else:
                wanted = status in (200, 404, 415)
            outcomes["as it must" if wanted else f"{path} {token} {host} {origin}: {status}"] += 1
    return summed(outcomes, {"as it must"})


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
    return summed(+outcomes, {"gone", "afterwards 200"})


def row_31(trials: int) -> dict[str, Any]:
    """The whole API, by its own description: what it allows, and what it doesn't (schemathesis)."""
    outcomes = fuzzed(trials)
    return summed(outcomes, {name for name in outcomes if not name.startswith(("failed", "5"))})


def of_index(row: Callable[[int], dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
    """A row of `index_faults`, summed up."""

    @functools.wraps(row)
    def summed_row(trials: int) -> dict[str, Any]:
        found = row(trials)
        return summed(found["outcomes"], found["good"])

    return summed_row


ROWS: dict[str, tuple[Callable[[int], dict[str, Any]], float]] = {  # and so many of the trials
    "31": (row_31, 1),
    "32": (row_32, 0.5),
    "33": (row_33, 1),
    "34": (row_34, 1),
    "35": (row_35, 1),
    "36": (row_36, 1),
    "37": (row_37, 0.02),
    "38": (row_38, 1),
    "39": (row_39, 1),
    **{name: (of_index(row), part) for name, (row, part) in INDEX_ROWS.items()},
}


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
        rows[name] = {"trial": (row.__doc__ or "").splitlines()[0], **row(max(1, int(part * args.trials)))}
        print(name, f"{time.perf_counter() - began:.0f} s", json.dumps(rows[name])[:600], flush=True)
    if args.write or (args.rows == list(ROWS) and args.trials == parser.get_default("trials")):
        write_result("reliability_server", {"rows": rows})


if __name__ == "__main__":
    main()
