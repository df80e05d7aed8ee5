"""The far end: a process that keeps a model and an index ready, answers searches, and ends by itself.

`python -m opencoca.search.resident FOLDER INDEX MODEL IDLE_MINUTES SOCKET`, started by `client.start`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from opencoca.errors import DataError, OpenCoCaError
from opencoca.search import client, manifest
from opencoca.search.answers import Request, answer
from opencoca.search.files import Listing, listed
from opencoca.search.index import Index
from opencoca.search.opening import predictor_for
from opencoca.search.update import update
from opencoca.search.writer import BusyError

REQUEST_S = 5.0  # for a client to say what it wants
QUICK_FILES = 20_000  # up to so many files, every search looks first for what changed
SELDOM_S = 60.0  # in larger folders, so often
FEW_NEW = 256  # more new pictures than these are left to `coca index`


class Resident:
    """A model, and the index of one folder as it is on disk now."""

    def __init__(self, folder: Path, index: Path, model: str | None) -> None:
        self.folder, self.place = folder, index
        self.predictor, self.name = predictor_for(folder, index, model)
        self._state: manifest.Manifest | None = None
        self._looked = 0.0
        self._taken: tuple[Listing, manifest.Manifest | None] | None = None  # what the last update saw, and made of it
        self._bad: list[tuple[str, str]] = []
        self._unnamed: list[tuple[str, str]] = []  # of these, those that no search has named yet
        self._total = 0
        self._index: Index | None = None
        self._embed_once()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("ping"):
            return {"ready": True}
        if request.get("update"):
            self._look()
        index, search = self._current(), Request.from_json(request["search"])
        readable = self._total - len(self._bad)
        if not request.get("update"):
            return answer(index, search, readable, []).to_json()
        before = len(self._bad) - len(self._unnamed)
        found = answer(index, search, readable, self._unnamed, before).to_json()
        self._unnamed = []
        return found

    def _current(self) -> Index:
        state = self._on_disk()
        if self._index is None or state != self._state:
            self._index = Index.open(self.folder, self.predictor, self.place, self.name)
            self._state = state
            self._total = max(self._total, self._index.total)
        return self._index

    def _look(self) -> None:
        """Takes in what changed in the folder, where that is quick."""
        if self._total > QUICK_FILES and time.monotonic() - self._looked < SELDOM_S:
            return
        listing = listed(self.folder)
        self._looked, self._total = time.monotonic(), len(listing.files)
        if self._taken == (listing, self._on_disk()):
            return
        if len(listing.files) - (len(self._current()) + len(self._bad)) > FEW_NEW:
            return
        named = set[Path]()
        with contextlib.suppress(BusyError):
            self._bad = update(
                self.folder,
                self.predictor,
                self.name,
                index=self.place,
                on_named=lambda path, error: named.add(path),
                listing=listing,
            ).bad
            waiting = set(self._unnamed)  # where the search that met them failed
            self._unnamed = [one for one in self._bad if one in waiting or self.folder / one[0] not in named]
            self._taken = listing, self._on_disk()

    def _on_disk(self) -> manifest.Manifest | None:
        return manifest.read(self.place, self.folder, check=False)

    def _embed_once(self) -> None:
        """So that the first search needn't wait for weights to be read."""
        self.predictor.embed_texts("warm up")


def serve(resident: Resident, listener: socket.socket, idle_s: float) -> None:
    """Answers one client after the other until nobody has come for `idle_s`."""
    listener.settimeout(idle_s)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(REQUEST_S)
            request = client.receive(connection)
            try:
                found = resident.answer(request)
            except OpenCoCaError as error:
                found = {"error": str(error)}
            except (KeyError, TypeError, ValueError) as error:
                found = {"error": f"the request can't be understood ({error}); end the resident process and try again"}
            client.send(connection, found)


def main(words: list[str]) -> int:
    """Serves until idle; see the module's docstring."""
    folder, index, model, minutes, file = words
    resident = Resident(Path(folder), Path(index), model or None)
    os.umask(0o077)
    path = Path(file)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)  # whoever comes later takes over; the other one ends by itself
        with contextlib.chdir(path.parent):  # a socket's path may have some 100 bytes only
            listener.bind(path.name)
        mine = path.stat().st_ino
        listener.listen(16)
        try:
            serve(resident, listener, float(minutes) * 60)
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == mine:
                    path.unlink()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OpenCoCaError, OSError) as error:
        print(DataError(str(error)), file=sys.stderr)
        sys.exit(2)
