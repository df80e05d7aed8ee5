"""Files on this machine and behind fsspec URLs, read by range; nothing is ever run, and nothing is fetched unasked."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from opencoca.errors import DataError

REMOTE = frozenset(
    [
        "memory",
        "s3",
        "s3a",
        "gs",
        "gcs",
        "az",
        "abfs",
        "abfss",
        "adl",
        "hf",
        "oci",
        "oss",
        "hdfs",
        "webhdfs",
        "sftp",
        "ssh",
        "smb",
    ]
)  # what fsspec knows besides can run other protocols inside (::), fetch from anywhere, or isn't storage
WEB = frozenset({"http", "https"})
MOST_OPEN = 64
LARGEST_FILE = 1 << 30  # bytes of a file that is read as a whole
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
BRACES = re.compile(r"\{([^{}]*)\}")
MOST_NAMES = 1_000_000


def is_url(location: str) -> bool:
    """True for what has a scheme of two letters or more, as in s3://...; a single letter is a drive."""
    return SCHEME.match(location) is not None and not Path(location).exists()


def checked(location: str | os.PathLike[str], http: bool = False) -> str:
    """The location as text, if we read from such places.

    Raises: DataError for pipe: and other commands, chained URLs (::), unknown protocols, and http unless it is allowed.
    """
    text = os.fspath(location)
    if not text or "\0" in text:
        raise DataError(f"{text!r} is no place for data; give a file, a folder or a URL")
    if not is_url(text):
        return text
    found = SCHEME.match(text)
    assert found
    scheme = found[1].lower()
    if scheme in WEB and found[2] and not http:
        raise DataError(f"{text} would be fetched from the web; download it first, or allow it (http=True, --http)")
    if "::" in text or not found[2] or scheme not in REMOTE | WEB:
        known = ", ".join(sorted(REMOTE))
        raise DataError(f"{text} is not a place that data is read from; give a file, a folder or a URL of {known}")
    return text


def file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path within it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(location)
    except ImportError as error:
        raise DataError(f"{location} needs another package: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise DataError(f"{location} can't be opened ({_reason(error)}); check the URL and its credentials") from error


def joined(root: str, name: str) -> str:
    """A name below a root, with the separators that the root takes; an absolute name stays as it is."""
    if is_url(root):
        return f"{root.rstrip('/')}/{name}"
    return name if root == "." else os.path.join(root, name)


def parent(location: str) -> str:
    """The folder of a file."""
    return location.rpartition("/")[0] if is_url(location) else os.path.dirname(location) or "."


def stem(location: str) -> str:
    """A file's name without folders and its last suffix."""
    return PurePosixPath(location).stem if is_url(location) else Path(location).stem


def suffix(location: str) -> str:
    """A file's last suffix in small letters, with its dot."""
    return (PurePosixPath(location) if is_url(location) else Path(location)).suffix.lower()


def kind(location: str) -> str | None:
    """'file', 'folder', or None if there is nothing."""
    if is_url(location):
        fs, path = file_system(location)
        with _named(location):
            return "file" if fs.isfile(path) else "folder" if fs.isdir(path) else None
    try:
        mode = os.stat(location).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{location} can't be opened ({_reason(error)}); check the path") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"{location} is not a plain file; give a file or a folder")
    return "folder" if stat.S_ISDIR(mode) else "file"


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path below the folder with /, its folders, its files), hidden ones left out, in one order everywhere."""
    if is_url(folder):
        fs, path = file_system(folder)
        with _named(folder):
            for place, folders, files in sorted(fs.walk(path), key=lambda found: str(found[0])):
                below = str(place)[len(path) :].strip("/")
                if not any(part.startswith(".") for part in below.split("/")):
                    yield below, _shown(folders), _shown(files)
        return
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = _shown(folders)
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        yield "" if below == "." else below, list(folders), _shown(files)


def listing(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's folders and files, hidden ones left out, sorted."""
    if not is_url(folder):
        return next(((folders, files) for _, folders, files in walk(folder)), ([], []))
    fs, path = file_system(folder)
    with _named(folder):
        found = [(PurePosixPath(str(facts["name"])).name, facts["type"]) for facts in fs.ls(path, detail=True)]
    folders = [name for name, what in found if what == "directory"]
    return _shown(folders), _shown([name for name, what in found if what != "directory"])


def expand(location: str) -> list[str]:
    """The files that a location means: {000..012} counts, {a,b} lists, and * ? [] match what is there.

    Raises: DataError if a pattern matches nothing.
    """
    if not is_url(location) and Path(location).exists():
        return [location]
    names = list(_braces(location))
    found: list[str] = []
    for name in names:
        if not glob.has_magic(name):
            found.append(name)
        elif is_url(name):
            fs, path = file_system(name)
            with _named(name):
                found += sorted(fs.unstrip_protocol(str(match)) for match in fs.glob(path))
        else:
            found += sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"{location} matches no file; check the pattern")
    return found


def _braces(location: str) -> Iterator[str]:
    found = BRACES.search(location)
    if not found:
        yield location
        return
    count = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if count:
        first, last = int(count[1]), int(count[2])
        if last < first or last - first >= MOST_NAMES:
            raise DataError(f"{location} counts from {first} to {last}; give a rising range of at most {MOST_NAMES}")
        choices = [f"{number:0{len(count[1])}d}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from _braces(location[: found.start()] + choice + location[found.end() :])


def read_file(location: str) -> bytes:
    """A file's bytes. Raises: DataError if it isn't there, isn't a plain file, or has more than 1 GiB."""
    if is_url(location):
        return Files().read(location, 0, size_of(location, LARGEST_FILE))
    try:
        descriptor = os.open(location, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:  # non-blocking: opening a pipe would wait for ever
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"{location} is not a plain file; give a picture or text file")
            if facts.st_size > LARGEST_FILE:
                raise DataError(f"{location} has {facts.st_size} bytes, more than {LARGEST_FILE}; make it smaller")
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{location} can't be read ({_reason(error)}); check the path") from error


def size_of(location: str, most: int | None = None) -> int:
    """A file's size in bytes."""
    try:
        if is_url(location):
            fs, path = file_system(location)
            size = fs.size(path)
        else:
            size = os.stat(location).st_size
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist; check the path") from error
    except Exception as error:
        raise DataError(f"{location} can't be read ({_reason(error)}); check the path") from error
    if size is None:
        raise DataError(f"{location} doesn't tell its size; download it first")
    if most is not None and size > most:
        raise DataError(f"{location} has {size} bytes, more than {most}; make it smaller")
    return int(size)


@contextlib.contextmanager
def open_stream(location: str) -> Iterator[IO[bytes]]:
    """A file to be read from its beginning."""
    try:
        if is_url(location):
            fs, path = file_system(location)
            with fs.open(path, "rb") as file:
                yield file
            return
        if kind(location) == "folder":
            raise DataError(f"{location} is a folder; give a file in it")
        with open(location, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist; check the path") from error
    except OSError as error:
        raise DataError(f"{location} can't be read ({_reason(error)}); check the path") from error


class _Handle:
    """An open local file; it closes once nobody reads from it any more."""

    def __init__(self, location: str) -> None:
        self._lock = threading.Lock()
        self._descriptor = -1
        self._descriptor = os.open(location, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Files:
    """Reads ranges of files by many threads, with at most 64 of them open; pickled, it opens them again."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, location: str, offset: int, size: int) -> bytes:
        """The bytes from `offset` on. Raises: DataError if there aren't so many."""
        if size == 0:
            return b""
        try:
            if is_url(location):
                fs, path = file_system(location)
                content = fs.cat_file(path, start=offset, end=offset + size)
            else:
                handle, parts = self._handle(location), []
                while size > sum(map(len, parts)):
                    part = handle.read(offset + sum(map(len, parts)), size - sum(map(len, parts)))
                    if not part:
                        break
                    parts.append(part)
                content = parts[0] if len(parts) == 1 else b"".join(parts)
        except FileNotFoundError as error:
            raise DataError(f"{location} does not exist any more; copy it again") from error
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{location} can't be read any more ({_reason(error)}); copy it again") from error
        if len(content) != size:
            raise DataError(f"{location} became shorter while it was read; copy it again")
        return content

    def _handle(self, location: str) -> _Handle:
        with self._lock:
            handle = self._open.pop(location, None) or _Handle(location)
            self._open[location] = handle
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
            return handle

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Files.__init__(self)


@contextlib.contextmanager
def _named(location: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # every remote file system has errors of its own
        raise DataError(f"{location} can't be read ({_reason(error)}); check the URL and its credentials") from error


def _shown(names: list[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename} can't be read ({error.strerror}); change its permissions") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(f"{type(error).__name__} {error}".split())
