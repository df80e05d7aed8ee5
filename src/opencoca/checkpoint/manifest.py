"""The manifest: every file's size and sha256, and its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opencoca.errors import CheckpointError
from opencoca.files import file_digest

FORMAT, VERSION = "opencoca-model", 3
MODEL, TRAINING, CONFIG, TOKENIZER, STATE, ORIGIN, CARD, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "config.json",
    "tokenizer.json",
    "state.json",
    "origin.json",
    "README.md",
    "manifest.json",
)


def entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size in bytes and its sha256, taken from the file itself."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def sealed(files: Mapping[str, Any], version: int = VERSION) -> str:
    """A manifest's text: the file table, sorted, and a digest of it."""
    manifest = {"format": FORMAT, "version": version, "files": dict(sorted(files.items()))}
    return json.dumps({**manifest, "sha256": _own_digest(manifest)}, indent=2) + "\n"


def verify(folder: Path, digest_up_to: int | None = None, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """The manifest's file table, after checking every file's size and digest against it.

    digest_up_to: of larger files (in bytes) only the size is checked; None takes every file's digest.
    part, parts: several processes can share the digests: this one takes every `parts`-th file, largest first.

    Raises: CheckpointError naming the file that is missing or differs.
    """
    files, expected = _read(folder)
    for name, (size, _) in expected.items():
        path = folder / name
        if not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
            raise CheckpointError(
                f"{folder / MANIFEST} names {name!r}, which is no file of a model; restore it from a copy"
            )
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}; copy the folder again, whole")
        if path.stat().st_size != size:
            raise _differs(path)
    shared = sorted(expected, key=lambda name: (-expected[name][0], name))[part::parts]
    for name in sorted(shared):
        size, digest = expected[name]
        if (digest_up_to is None or size <= digest_up_to) and file_digest(folder / name) != digest:
            raise _differs(folder / name)
    return files


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """The file table as it stands, and as sizes and digests."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise KeyError("format")
        version = int(manifest["version"])
        if version < 1:
            raise ValueError("version")
        if version > VERSION:  # before anything else is read: a newer manifest may look otherwise
            raise CheckpointError(
                f"{folder} has format version {version}, this is {VERSION}: upgrade with pip install -U opencoca"
            )
        own = manifest.pop("sha256", None)
        if (version >= 3 or own is not None) and own != _own_digest(manifest):
            raise ValueError("sha256")
        files = manifest["files"]
        return files, {name: (int(fact["bytes"]), str(fact["sha256"])) for name, fact in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it isn't a whole OpenCoCa model folder") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(
            f"{folder / MANIFEST} isn't an OpenCoCa manifest; restore the folder from a copy"
        ) from None


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _differs(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} isn't the file that was saved (size or sha256 differs from {MANIFEST}): it is damaged or comes from "
        "another model; restore it from a copy"
    )
