"""What a server is started with, and what it lets in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from opencoca.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
MIN_TOKEN = 16  # characters


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, one connection and all of them together may cost.

    header_s: from the connection, or the answer before, to the end of the headers. body_s: from the headers to the end
    of the body. write_s: how long a client may leave an answer unread. held_bytes: bodies of all requests together.
    queue: pictures that wait or are being read; 16 texts count as one. queue_s: how long one may wait. answer_s: how
    long captions with options of the client's own may be in the making. batch: pictures that are answered together;
    more would keep those who come next waiting for longer.
    """

    body_bytes: int = 20_000_000
    header_bytes: int = 16_384
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 20.0
    idle_s: int = 5
    drain_s: int = 30
    connections: int = 1_000
    held_bytes: int = 256_000_000
    pixels: int = 40_000_000
    images: int = 16
    labels: int = 256
    label_characters: int = 200
    texts: int = 256
    text_characters: int = 2_000
    queue: int = 256
    queue_s: float = 10.0
    answer_s: float = 30.0
    batch: int = 32
    batch_wait_s: float = 0.005
    features_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if not value > 0]
        if wrong:
            raise ConfigError(f"the limit {wrong[0]} is {getattr(self, wrong[0])}; it must be positive")


@dataclass(frozen=True)
class Settings:
    """One server. `token` None: nobody is asked for one. `hosts`: names that requests may address it by."""

    model: str | None = None
    index: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    workers: int = 1
    words: Path | None = None
    policy: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} must be from 0 to 65535; 0 takes a free one")
        if self.workers < 1:
            raise ConfigError(f"workers {self.workers} must be at least 1")
        if self.token is not None and (len(self.token) < MIN_TOKEN or not self.token.isascii() or " " in self.token):
            raise ConfigError(
                f"the token has {len(self.token)} characters; give at least {MIN_TOKEN}, ASCII without spaces, as "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'` prints"
            )
        if not self.loopback and self.token is None:
            raise ConfigError(
                f"host {self.host} can be reached from outside, and there is no token; give one with --token-file or "
                "COCA_TOKEN, or leave --host out"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own, by name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
