"""Requests that are made to break in or to break something: rows 33, 35, 36 and 38 of `server_faults`.

Every row gives its outcomes by name, which of them are good, and what else was measured.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import random
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

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
    return {"outcomes": outcomes, "good": good, "grown_by_MiB": round(grown)}


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
    return {"outcomes": outcomes, "good": {"refused"}}


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
    return {"outcomes": outcomes, "good": {"refused"}}


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
    return {"outcomes": outcomes, "good": {"as it must"}}


ATTACK_ROWS = {"33": (row_33, 1), "35": (row_35, 1), "36": (row_36, 1), "38": (row_38, 1)}
