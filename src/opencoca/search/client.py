"""The near end of a resident search process: a Unix socket that only its user can reach. Imports no torch.

The socket lies in a folder that nobody else may enter; who may open it may ask. Both ends send the length of their
message in 4 bytes, then JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from opencoca.errors import DataError

MAX_BYTES = 1 << 24
START_S = 120.0  # for a large model on a slow disk
ANSWER_S = 120.0


def can() -> bool:
    """Whether this system has what a resident process needs."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")


def socket_file(index: Path, model: str | None) -> Path:
    """Where the resident process for an index and a model listens.

    Raises: DataError where its folder is open to others.
    """
    name = hashlib.sha256(os.fsencode(index.absolute()) + b"\0" + os.fsencode(model or "")).hexdigest()[:16]
    return _private_folder() / f"{name}.sock"


def ask(index: Path, model: str | None, request: dict[str, Any]) -> dict[str, Any] | None:
    """The resident's answer; None where none is running.

    Raises: DataError for a refusal of it, or where its folder is open to others.
    """
    if not can():
        return None
    file = socket_file(index, model)
    if not file.exists():
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            with contextlib.chdir(file.parent):  # a socket's path may have some 100 bytes only
                connection.connect(file.name)
            send(connection, request)
            found = receive(connection)
        except (OSError, ValueError):  # it ended, or ends just now
            return None
    if "error" in found:
        raise DataError(str(found["error"]))
    return found


def start(folder: Path, index: Path, model: str | None, idle_minutes: float) -> None:
    """Starts the resident process and waits until it answers.

    Raises: DataError where it can't be started.
    """
    if not can():
        raise DataError("--resident needs Unix sockets, which this system doesn't have; leave it out")
    file = socket_file(index, model)
    log = file.with_suffix(".log")
    words = [os.fspath(folder.absolute()), os.fspath(index.absolute()), model or "", str(idle_minutes), os.fspath(file)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "opencoca.search.resident", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(DataError):
            if ask(index, model, {"ping": True}) is not None:
                process.returncode = 0  # it outlives us on purpose; without this Python would warn of that
                return
        if process.poll() is not None and not file.exists():
            break
        time.sleep(0.02)
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise DataError(f"the resident process didn't start ({lines[-1]}); search without --resident")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    connection.sendall(len(content).to_bytes(4, "big") + content)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Raises: ValueError for what isn't a message; OSError where none comes."""
    size = int.from_bytes(_exactly(connection, 4), "big")
    if size > MAX_BYTES:
        raise ValueError(f"a message of {size} bytes")
    found = json.loads(_exactly(connection, size))
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        piece = connection.recv(min(size - len(content), 1 << 16))
        if not piece:
            raise ValueError("the message ends early")
        content += piece
    return bytes(content)


def _private_folder() -> Path:
    parent = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(parent) / f"opencoca-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DataError(f"{folder} is open to others; remove it, or set XDG_RUNTIME_DIR to a folder of your own")
    return folder
