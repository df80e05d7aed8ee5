"""What holds for every test: no network but loopback, reproducible hypothesis runs, no debug switch from the shell."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("opencoca", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("opencoca")


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that connects to another machine fails with the address it wanted."""
    connect = socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not _is_loopback(str(address[0])):
            pytest.fail(f"this test wants the network: {address}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


@pytest.fixture(autouse=True)
def no_debug_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCA_DEBUG of the developer's shell would change what commands print."""
    monkeypatch.delenv("COCA_DEBUG", raising=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared between cores, four times over where something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and tests send that signal."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
