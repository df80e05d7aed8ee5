"""A server in a thread, and a client that says exactly what it is told to: for tests of `opencoca.serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tests import tiny

from opencoca import checkpoint
from opencoca.config import Config
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build
from opencoca.serve.app import make_app
from opencoca.serve.run import Server, config_of
from opencoca.serve.service import Service
from opencoca.serve.settings import Limits, Settings

TIMEOUT_S = 20
TOKEN = "a-token-that-is-long-enough"
PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def roomy_config() -> Config:
    """`recipes.tiny`, with a context that a question fits into."""
    text = dataclasses.replace(tiny.CONFIG.model.text, context_length=40)
    return dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, text=text))


def predictor(batch_size: int = 8) -> Predictor:
    """An untrained model that can be asked, too."""
    config = roomy_config()
    return Predictor(build(config.model, 0), tiny.tokenizer(), config, batch_size)


def save_model(folder: Path) -> Path:
    """The same, as a model folder."""
    config = roomy_config()
    checkpoint.save(folder, config, tiny.tokenizer(), dict(build(config.model, 0).named_parameters()))
    return folder


@dataclass
class Client:
    """Where a server is, and its parts."""

    port: int
    service: Service
    server: Server | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, content: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """JSON, or the bytes of a picture."""
        if isinstance(content, bytes):
            return self.ask("POST", path, content, {**PNG, **(headers or {})})
        return self.ask("POST", path, json.dumps(content).encode(), {**JSON, **(headers or {})})

    def raw(self, data: bytes = b"") -> socket.socket:
        """A connection that has sent `data`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        connection.sendall(data)
        return connection


def rest(connection: socket.socket) -> bytes:
    """All that a connection still says, until the other side ends it."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def serving(
    model: Predictor | None = None,
    index: Any = None,
    limits: Limits | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    hosts: tuple[str, ...] = (),
    words: Path | None = None,
) -> Iterator[Client]:
    """A server that really listens, at a free port of this machine's own address whatever `host` says."""
    settings = Settings(
        model="tiny", host=host, port=0, token=token, hosts=hosts, words=words, limits=limits or Limits(idle_s=1)
    )
    service = Service(model or predictor(), settings, "tiny", index)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    server = Server(config_of(make_app(service), settings, service.cut), service)
    thread = threading.Thread(target=server.run, args=([listening],), name="test-server")
    thread.start()
    try:
        until = time.monotonic() + TIMEOUT_S
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield Client(listening.getsockname()[1], service, server)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(TIMEOUT_S)
        service.close()
        listening.close()
        assert not thread.is_alive()


def picture(seed: int = 0, size: tuple[int, int] = (24, 18), form: str = "PNG") -> bytes:
    """The file of a picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def events(body: bytes) -> list[tuple[str, Any]]:
    """The events of a stream."""
    blocks = [block.split("\n") for block in body.decode().split("\n\n") if block]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]
