"""Slow clients are cut, in time, and take nothing from the others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tests.served import Client, picture, rest, serving

from opencoca.serve.settings import Limits

LIMITS = Limits(header_s=0.5, body_s=0.8, write_s=0.6, idle_s=1, connections=40)
SLACK_S = 1.5  # the sweep comes twice a second, and this machine may be busy
HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


class LargeThumbnails:
    """An index with one picture, which is large."""

    folder = SimpleNamespace()

    def __len__(self) -> int:
        return 1

    def embed_terms(self, terms, pictures=None):
        return terms

    def search(self, query, k: int, filters=None, blend: float = 0.0) -> list:
        return []

    def thumbnail(self, id: int, size_px: int) -> bytes:
        return bytes(8_000_000)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(limits=LIMITS, index=LargeThumbnails()) as started:
        yield started


@contextlib.contextmanager
def dripping(connection: socket.socket, data: bytes, every_s: float = 0.1) -> Iterator[None]:
    """A thread that sends `data` again and again, a byte at a time, until the connection or the block ends."""
    ended = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for i in range(10_000):
                if ended.wait(every_s):
                    return
                connection.sendall(data[i % len(data) :][:1])

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def seconds_until_cut(connection: socket.socket) -> tuple[float, bytes]:
    began = time.monotonic()
    said = rest(connection)
    return time.monotonic() - began, said


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_headers_that_never_end(client: Client, said: bytes) -> None:
    with contextlib.closing(client.raw(said)) as connection, dripping(connection, b"a"):
        took, answer = seconds_until_cut(connection)
    assert answer == b"" and took < LIMITS.header_s + SLACK_S
    assert client.service.cut["header"] >= 1


def test_headers_that_drip_after_an_answer(client: Client) -> None:
    with contextlib.closing(client.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET ")
        with dripping(connection, b"a"):
            took, _ = seconds_until_cut(connection)
    assert took < LIMITS.header_s + LIMITS.idle_s + SLACK_S


@pytest.mark.parametrize("length", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_a_body_that_drips(client: Client, length: bytes) -> None:
    with contextlib.closing(client.raw(HEAD + length)) as connection, dripping(connection, b"a"):
        took, answer = seconds_until_cut(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer
    assert took < LIMITS.body_s + 1.0 + SLACK_S  # and what it still sends is read for a second


def test_a_body_that_drips_on_after_it_was_refused(client: Client) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.closing(client.raw(head)) as connection, dripping(connection, b"a"):
        took, answer = seconds_until_cut(connection)
    assert answer.startswith(b"HTTP/1.1 404") and took < 1.0 + SLACK_S


def test_requests_that_are_sent_before_their_turn_end_the_connection(client: Client) -> None:
    before = client.service.cut["pipelined"]
    with contextlib.closing(client.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)) as connection:
        answers = rest(connection)
    assert answers.count(b"HTTP/1.1 200") == 1 and b"connection: close" in answers
    assert client.service.cut["pipelined"] == before + 1


def test_a_client_that_does_not_read_its_answer(client: Client) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.closing(connection):
        connection.connect(("127.0.0.1", client.port))
        connection.sendall(b"GET /thumbnail/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until = time.monotonic() + LIMITS.write_s + 2 * SLACK_S
        while not client.service.cut["write"] and time.monotonic() < until:
            time.sleep(0.05)
        assert client.service.cut["write"] == 1


def test_good_clients_are_served_while_slow_ones_hold_all_places(client: Client) -> None:
    with contextlib.ExitStack() as stack:
        evicted = client.service.cut["evicted"]
        for _ in range(3 * LIMITS.connections):
            stack.enter_context(contextlib.closing(client.raw(b"GET / HTTP/1.1\r\nX: ")))
        for i in range(5):
            began = time.monotonic()
            assert client.post("/embed", picture(i)).status == 200
            assert time.monotonic() - began < 2
        assert client.service.cut["evicted"] > evicted
        there = client.server.server_state.connections  # type: ignore[union-attr]
        until = time.monotonic() + SLACK_S
        while len(there) > LIMITS.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert len(there) <= LIMITS.connections


def test_a_request_that_came_before_a_burst_of_silent_connections_is_answered(client: Client) -> None:
    assert client.server is not None
    loop = client.server.servers[0].get_loop()
    body = picture(7)
    with contextlib.ExitStack() as stack:
        loop.call_soon_threadsafe(time.sleep, 0.5)  # so that the server sees all of them at once
        good = stack.enter_context(
            contextlib.closing(client.raw(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
        )
        for _ in range(LIMITS.connections + 20):
            stack.enter_context(contextlib.closing(client.raw()))
        assert good.recv(65536).startswith(b"HTTP/1.1 200")
