"""Requests that mean harm: too large, lying, too many, from clients that have gone; what is logged of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import struct
import time
import zlib
from collections.abc import Iterator

import pytest
from tests import served
from tests.served import JSON, PNG, TOKEN, Client, picture, rest, serving

from opencoca.serve.settings import Limits

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
