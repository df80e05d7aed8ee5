"""Requests that mean harm: too large, lying, from the wrong place, without a token, for other files and hosts."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator

import pytest
from tests import served
from tests.served import JSON, PNG, TOKEN, Client, picture, rest, serving

from opencoca.errors import ConfigError
from opencoca.serve.settings import Limits, Settings

LIMITS = Limits(body_bytes=300_000, held_bytes=3_000_000, body_s=1.0, header_s=1.0, idle_s=1)
HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(limits=LIMITS) as started:
        yield started


def status_of(client: Client, data: bytes) -> int:
    """The first status that comes back for these bytes."""
    with contextlib.closing(client.raw(data)) as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


# --- sizes ------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_before_it_comes(client: Client) -> None:
    with contextlib.closing(client.raw(HEAD + b"Content-Length: 99999999999\r\n\r\n")) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    large = client.post("/embed", bytes(400_000))  # sent whole, and the answer is still read
    assert large.status == 413 and "at most 300000 bytes" in large.json()["error"]["message"]
    chunks = b"".join(b"10000\r\n" + bytes(0x10000) + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
    assert status_of(client, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) == 413


def test_lengths_that_lie(client: Client) -> None:
    whole = picture()
    assert status_of(client, HEAD + b"Content-Length: 5000\r\n\r\n" + whole) == 408
    assert status_of(client, HEAD + b"Content-Length: 10\r\n\r\n" + whole) == 422  # and what is left is no request
    for header in (
        b"Content-Length: -5",
        b"Content-Length: 1e3",
        b"Content-Length: 10\r\nContent-Length: 20",
        b"Content-Length: 10\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip",
        b"Content-Length : 5",
        b"Host: other",
    ):
        status = status_of(client, HEAD + header + b"\r\n\r\n")
        assert status in (400, 501), header
    assert client.post("/embed", whole, {"Content-Encoding": "gzip"}).status == 415


def test_headers_that_are_too_many(client: Client) -> None:
    assert status_of(client, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n") in (
        400,
        431,
    )
    many = b"".join(b"X-%d: a\r\n" % i for i in range(5000))
    assert status_of(client, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n") in (400, 431)
    assert status_of(client, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n") == 400


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int = 13_000) -> bytes:
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bombs_go_off_nowhere(client: Client) -> None:
    bomb = png_bomb()
    assert len(bomb) < 30_000
    began = time.monotonic()
    answer = client.post("/caption", bomb)
    assert answer.status == 422 and time.monotonic() - began < 2
    deep = b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    numbers = b'{"images": ["AAAA"], "seed": ' + b"9" * 100_000 + b"}"
    for body in (deep, numbers, b'{"images": ["\\ud800"]}', b"\xff\xfe", b"", b"null", b'{"images": [NaN]}'):
        assert client.ask("POST", "/caption", body, JSON).status == 422, body[:40]
    for odd in (b"", b"GIF89a", b"\xff\xd8\xff", picture()[:60], b"<svg onload=alert(1)>", b"%PDF-1.7", bytes(1000)):
        answer = client.post("/caption", odd)
        assert answer.status == 422, odd
        message = answer.json()["error"]["message"]
        assert "can't be read as a picture" in message and "(" not in message  # what a decoder says stays here
    assert client.post("/caption", picture()).status == 200


# --- who asks, and from where ---------------------------------------------------------------------------------------


def test_the_token_is_asked_of_all_but_the_page() -> None:
    wrong = [
        None,
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"bearer  {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff",
    ]
    with serving(token=TOKEN, host="0.0.0.0", hosts=("pictures.example",)) as client:
        for method, path in [
            ("GET", "/about"),
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("GET", "/thumbnail/1"),
            ("POST", "/caption"),
            ("POST", "/classify"),
            ("POST", "/embed"),
            ("POST", "/ask"),
            ("POST", "/search"),
            ("POST", "/v1/embeddings"),
            ("GET", "/nowhere"),
            ("GET", "/static"),
            ("GET", "//livez"),
            ("DELETE", "/caption"),
        ]:
            for given in wrong:
                headers = {} if given is None else {"Authorization": given.encode("latin-1")}
                answer = client.ask(method, path, headers=headers)  # type: ignore[arg-type]
                assert (answer.status, answer.headers.get("www-authenticate")) == (401, "Bearer"), (path, given)
            assert client.ask(method, path, headers={"Authorization": f"Bearer {TOKEN}"}).status not in (401, 403)
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/policy", "/static/app.js"):
            assert client.ask("GET", path).status == 200, path
        for host, status in [
            ("127.0.0.1:80", 200),
            ("192.168.7.9:8000", 200),
            ("[fe80::1]:8000", 200),
            ("pictures.example", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
        ]:
            assert client.ask("GET", "/livez", headers={"Host": host}).status == status, host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.9", "example.org"])
def test_other_hosts_than_this_machine_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).token == TOKEN
    assert TOKEN not in repr(Settings(host=host, token=TOKEN))
    with pytest.raises(ConfigError, match="at least 16"):
        Settings(host=host, token="short")
    assert all(Settings(host=own).loopback for own in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))


def test_other_pages_and_names_are_refused(client: Client) -> None:
    here = f"127.0.0.1:{client.port}"
    for headers, status in [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "192.168.7.9"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": f"http://{here}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{here}.evil.example"}, 403),
        ({"Origin": f"http://evil.example/{here}"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link that leads here
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ]:
        answer = client.ask("GET", "/about", headers=headers)
        assert answer.status == status, headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.ask("OPTIONS", "/caption", headers=preflight).status == 403


# --- other hosts, other files -----------------------------------------------------------------------------------


def test_no_url_is_ever_fetched(client: Client) -> None:
    visits: list[int] = []
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as bait:
        bait.settimeout(0.1)
        ended = threading.Event()

        def count() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    bait.accept()[0].close()
                    visits.append(1)

        thread = threading.Thread(target=count)
        thread.start()
        at = f"127.0.0.1:{bait.getsockname()[1]}"
        urls = [f"http://{at}/a.png", f"HTTPS://{at}/", f"//{at}/", f"ftp://{at}/", "file:///etc/passwd", "/etc/passwd"]
        urls += [f"data:image/png,http://{at}/", f"data:image/svg+xml;base64,{base64.b64encode(svg(at)).decode()}"]
        for url in urls:
            for path, content in [
                ("/caption", {"images": [url]}),
                ("/search", {"image": url}),
                ("/v1/embeddings", {"input": [{"image": url}]}),
                ("/caption", {"images": [{"url": url}]}),
            ]:
                assert client.post(path, content).status in (404, 422), (url, path)
        ended.set()
        thread.join()
    assert not visits


def svg(at: str) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://{at}/a.png"/></svg>'.encode()


def test_no_path_leads_out(client: Client) -> None:
    for path in (
        "/static/../policy.txt",
        "/static/..%2fpolicy.txt",
        "/static/%2e%2e/%2e%2e/errors.py",
        "/static/....//policy.txt",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/app.js%00.png",
        "/static/..\\policy.txt",
        "/thumbnail/..%2f..%2fetc%2fpasswd",
        "/thumbnail/../../etc/passwd",
        "/thumbnail/1e3",
        "/thumbnail/-1",
        "/thumbnail/99999999999999999999999",
        "/../../etc/passwd",
        "/static",
        "/static/",
        "/static/app.js/",
        "/livez/",
    ):
        answer = client.ask("GET", path)
        assert answer.status in (404, 422), path
        assert b"root:" not in answer.body and b"Use policy" not in answer.body
        assert answer.headers["content-type"] == "application/json"


# --- too many, and gone again --------------------------------------------------------------------------------------


def slow_predictor(seconds: float):
    predictor = served.predictor(batch_size=4)
    whole = predictor.encode_squares

    def slowly(squares):
        time.sleep(seconds)
        return whole(squares)

    predictor.encode_squares = slowly  # type: ignore[method-assign]
    return predictor


def test_ten_times_too_much_is_turned_away_and_the_rest_served() -> None:
    limits = Limits(queue=8, queue_s=5, idle_s=1)
    with serving(slow_predictor(0.1), limits=limits) as client, concurrent.futures.ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda seed: client.post("/embed", picture(seed)), range(120)))
        after = client.post("/embed", picture(1))
    count = {status: sum(answer.status == status for answer in answers) for status in (200, 503)}
    assert count[200] + count[503] == 120 and count[200] >= 8 and count[503] >= 40, count
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status == 503)
    assert after.status == 200


def test_what_waits_too_long_is_turned_away() -> None:
    limits = Limits(queue=64, queue_s=0.2, idle_s=1)
    with serving(slow_predictor(0.4), limits=limits) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: client.post("/embed", picture(seed)), range(16)))
    assert {answer.status for answer in answers} == {200, 503}


def test_bodies_together_hold_no_more_than_they_may() -> None:
    limits = Limits(body_bytes=1_000_000, held_bytes=2_500_000, body_s=3, idle_s=1)
    head = HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(900_000)
    with serving(limits=limits) as client, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(contextlib.closing(client.raw(head)))
        time.sleep(0.3)
        refused = client.post("/embed", bytes(950_000))
        assert refused.status == 503 and refused.headers["retry-after"]


def test_nothing_is_done_for_clients_that_have_gone() -> None:
    predictor, done = slow_predictor(0.15), []
    slowly = predictor.encode_squares

    def counted(squares):
        done.append(len(squares))
        return slowly(squares)

    predictor.encode_squares = counted  # type: ignore[method-assign]
    with serving(predictor) as client:
        for i in range(40):
            body = picture(i)
            client.raw(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body).close()
        time.sleep(0.5)
        assert client.post("/embed", picture(99)).status == 200
        assert client.service.engine.batcher.depth == 0
    assert sum(done) <= 20  # those whose turn came before their client was known to have gone


def test_a_bug_is_answered_without_its_words_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    predictor = served.predictor()

    def broken(squares):
        raise RuntimeError("secret of the inside")

    with serving(predictor) as client:
        predictor.encode_squares = broken  # type: ignore[method-assign]
        with caplog.at_level("ERROR", "opencoca.serve"):
            answer = client.post("/embed", picture(), {"X-Request-Id": "mine-7"})
        assert (answer.status, answer.headers["x-request-id"]) == (500, "mine-7")
        assert b"secret" not in answer.body and "secret of the inside" in caplog.text
        del predictor.encode_squares
        assert client.post("/embed", picture()).status == 200  # and the thread lives on


def test_the_log_has_one_line_of_json_and_nothing_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    from opencoca.serve.logs import JsonLines

    with caplog.at_level("INFO", "opencoca.serve"), serving(token=TOKEN) as client:
        client.post(
            "/ask?question=private", picture(), {"Authorization": f"Bearer {TOKEN}", "X-Request-Id": 'a"\n'[:2]}
        )
        client.ask("GET", "/no\u0020thing%0aforged".replace(" ", "%20"), headers=PNG)
    lines = [JsonLines().format(record) for record in caplog.records if record.getMessage() == "request"]
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    found = [json.loads(line) for line in lines]
    assert [one["route"] for one in found] == ["/ask", "other"] and found[0]["status"] == 200
    assert "private" not in caplog.text and TOKEN not in "".join(lines) and "forged" not in "".join(lines)
