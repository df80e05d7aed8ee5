"""Packages that hold data: fetched by the tools that deliver them (pip, npm, apt-get), checked, read member by member.

No archive is ever unpacked whole. Of each, the regular files under named folders are written, one by one, where we say;
links, devices, and names that lead out of the folder are passed over.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from opencoca.errors import DataError
from opencoca.files import file_digest

Facts = Mapping[str, str]  # of a package: source ("pip", "npm" or "debian"), version, file, sha256, licence
Say = Callable[[str], None]
TIMEOUT_S = 3600.0
MOST_FILES, MOST_BYTES = 100_000, 4 << 30  # that one archive may hold of what is wanted
AR_MAGIC, AR_HEAD = b"!<arch>\n", 60
ROOTS = {"npm": "package/"}  # inside an archive of that kind, everything is below this


class Wanted(NamedTuple):
    """What is read of an archive: files at or below these places, with one of these endings (all, if there is none)."""

    places: tuple[str, ...]
    endings: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        under = any(name == place or name.startswith(f"{place}/") for place in self.places)
        return under and (not self.endings or name.lower().endswith(self.endings))


def fetch(folder: Path, packages: Mapping[str, Facts], say: Say | None = None) -> dict[str, Path]:
    """The file of every package in `folder`: fetched where it isn't there yet, and checked.

    A file gets its name only once its digest is right, so what an interrupted run leaves is fetched again, and what it
    had finished is not.

    Raises: DataError where the tool is missing or fails, or a file isn't the one of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _file(folder, name, facts, say) for name, facts in packages.items()}


def unpacked(folder: Path, packages: Mapping[str, Facts], wanted: Mapping[str, Wanted]) -> dict[str, Path]:
    """The folder of each fetched package with the wanted files of it, below `folder`; one that is there is kept."""
    found = {}
    for name, facts in packages.items():
        path = folder / facts["file"]
        found[name] = target = folder / path.name.removesuffix(".tgz").removesuffix(".deb").removesuffix(".whl")
        if not target.is_dir():
            write_members(path, target, wanted[name], ROOTS.get(facts["source"], ""))
    return found


def write_members(path: Path, target: Path, wanted: Wanted, root: str = "") -> int:
    """Writes an archive's wanted files into the new folder `target`, whole or not at all; says how many there are.

    root: begins every name in the archive, and no name on disk.
    Raises: DataError where the archive is damaged, holds none of them, or more than may be.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as temporary:
        count, size = 0, 0
        try:
            for name, file in members(path):
                name = name.removeprefix(root) if name.startswith(root) else ""
                if not wanted(name) or not _inside(name):
                    continue
                place = Path(temporary, "out", *PurePosixPath(name).parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
                count, size = count + 1, size + place.stat().st_size
                if count > MOST_FILES or size > MOST_BYTES:
                    raise DataError(f"{path} holds over {MOST_FILES} files or {MOST_BYTES} bytes; fetch another")
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} can't be read, or {target} written ({error}); fetch it again") from error
        if not count:
            raise DataError(f"{path} has no file at {', '.join(wanted.places)}; fetch another version of it")
        Path(temporary, "out").rename(target)
    return count


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a wheel or zip, an npm package or tar, or a Debian package, with the names they have there.

    Raises: DataError where it is none of these.
    """
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as file:
                        yield info.filename, file
    else:
        with path.open("rb") as file:
            yield from _files(_Window(file, *_data_part(path, file)) if path.suffix == ".deb" else file)


def _files(stream: Any) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a tar, compressed or not, read in one pass."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                yield member.name.removeprefix("./"), file


def _data_part(path: Path, file: IO[bytes]) -> tuple[int, int]:
    """Where a Debian package's `data.tar.*` begins and how long it is. Source: deb(5), an ar archive."""
    file.seek(0)
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise DataError(f"{path} is no Debian package; remove it and fetch it again")
    while len(head := file.read(AR_HEAD)) == AR_HEAD and head[58:] == b"`\n" and head[48:58].strip().isdigit():
        size = int(head[48:58])
        if head[:16].startswith(b"data.tar"):
            return file.tell(), size
        file.seek(size + size % 2, 1)
    raise DataError(f"{path} has no data.tar inside; remove it and fetch it again")


class _Window:
    """A part of a file, read forward: all that a streamed tar asks for."""

    def __init__(self, file: IO[bytes], first: int, size: int) -> None:
        file.seek(first)
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        some = self._file.read(min(size, self._left))
        self._left -= len(some)
        return some


def _inside(name: str) -> bool:
    """Whether a name stays in the folder that it is written into, on every system."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not PurePosixPath(name).is_absolute() and ".." not in parts and not set(name) & set("\\:\0")


def _file(folder: Path, name: str, facts: Facts, say: Say | None) -> Path:
    path = folder / facts["file"]
    if not path.is_file():
        fetching = folder / ".fetching"
        fetching.mkdir(exist_ok=True)
        command = _command(name, facts)
        if say:
            say(f"fetching {name} {facts['version']} ({facts['licence']}) by {command[0]}")
        _call(command, fetching, f"or put {path.name} into {folder}")
        if not (fetching / path.name).is_file():
            raise DataError(f"`{' '.join(command)}` left no {path.name}; put it into {folder} by hand")
        _check(fetching / path.name, facts)
        (fetching / path.name).replace(path)
        with contextlib.suppress(OSError):
            fetching.rmdir()  # where the tool left nothing else
    _check(path, facts)
    return path


def _check(path: Path, facts: Facts) -> None:
    digest = file_digest(path)
    if digest != facts["sha256"]:
        raise DataError(f"{path} has sha256 {digest}, {facts['sha256']} is wanted; remove it and fetch again")


def _command(name: str, facts: Facts) -> list[str]:
    if facts["source"] == "pip":
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
        return ["pip", "download", *options, f"{name}=={facts['version']}"]
    if facts["source"] == "npm":
        return ["npm", "pack", "--silent", f"{name}@{facts['version']}"]
    return ["apt-get", "download", "--quiet", f"{name}={facts['version']}"]


def _call(command: list[str], folder: Path, otherwise: str) -> None:
    """Runs a tool in a folder; pip is this Python's own."""
    shown = " ".join(command)
    tool = [sys.executable, "-m", "pip"] if command[0] == "pip" else [shutil.which(command[0]) or command[0]]
    try:
        subprocess.run([*tool, *command[1:]], cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed, which `{shown}` needs; install it, {otherwise}") from error
    except subprocess.SubprocessError as error:
        said = " ".join((getattr(error, "stderr", None) or str(error)).split())[-300:]
        raise DataError(f"`{shown}` failed ({said}); run it by hand in {folder.parent}, {otherwise}") from error
