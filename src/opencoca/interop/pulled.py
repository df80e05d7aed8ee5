"""The models on this machine that are known by name: those pulled from the hub, and the one that ships.

Pulled models are folders of our own format under `$OPENCOCA_HOME`, or in the user's cache folder without it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from opencoca import checkpoint
from opencoca.errors import CheckpointError
from opencoca.interop import hub, open_clip_folder
from opencoca.model_card import Origin

SHIPPED = Path(__file__).parent.parent / "pretrained"


class Entry(NamedTuple):
    """A model that `load` knows by name. `problem` says what is wrong with a folder that can't be used."""

    name: str
    folder: Path
    bytes: int
    shipped: bool
    origin: Origin | None = None
    sha256: str = ""
    problem: str = ""


class Published(NamedTuple):
    """A CoCa on the hub, its number of parameters and its licence (None: see its page)."""

    name: str
    parameters: int
    licence: str | None


KNOWN = (  # docs/published_models.md says where each fact is from
    Published("laion/CoCa-ViT-B-32-laion2B-s13B-b90k", 253_560_000, "mit"),
    Published("laion/CoCa-ViT-L-14-laion2B-s13B-b90k", 638_450_000, "mit"),
    Published("laion/mscoco_finetuned_CoCa-ViT-B-32-laion2B-s13B-b90k", 253_560_000, "mit"),
    Published("laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", 638_450_000, "mit"),
    Published("apple/mobileclip2_coca_dfn2b_s13b_context77", 638_450_000, "apple-amlr"),
)


def home() -> Path:
    """The folder of pulled models.

    Raises: CheckpointError for a user without a home folder.
    """
    if chosen := os.environ.get("OPENCOCA_HOME"):
        return Path(chosen)
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "opencoca"
    except RuntimeError:
        raise CheckpointError("this user has no home folder; set OPENCOCA_HOME to a folder for models") from None


def entries() -> list[Entry]:
    """All models known by name, pulled ones first, the newest first."""
    pulled = [_entry(folder, shipped=False) for folder in _folders(home() / "models")]
    pulled.sort(key=lambda entry: entry.folder.stat().st_mtime, reverse=True)
    return [*pulled, *(_entry(folder, shipped=True) for folder in _folders(SHIPPED))]


def find(name: str) -> Entry | None:
    """The usable model of that name; the part behind the slash is enough where only one has it."""
    usable = [entry for entry in _called(name) if not entry.problem]
    return usable[0] if len(usable) == 1 else None


def pull(name: str) -> Entry:
    """Downloads a published model, verifies it, and keeps it in our format.

    One of that name that is whole and of the same commit stays; any other is replaced.

    Raises: CheckpointError where it can't be had, or isn't a CoCa.
    """
    wanted = hub.parse(name)
    folder = home() / "models" / wanted.repo.replace("/", "--")
    known = _entry(folder, shipped=False) if folder.is_dir() else None
    if known and known.origin and known.origin == _as_today(wanted, known.origin) and _is_whole(folder):
        return known
    downloads = home() / "downloads" / folder.name  # kept until the model is whole, so that a second try goes on
    fetched = hub.fetch(wanted, downloads)
    foreign = open_clip_folder.read_folder(fetched.folder)
    checkpoint.save(
        folder, foreign.config, foreign.tokenizer, dict(foreign.model.named_parameters()), origin=fetched.origin
    )
    checkpoint.verify(folder)
    shutil.rmtree(downloads, ignore_errors=True)
    return _entry(folder, shipped=False)


def remove(name: str) -> Entry:
    """Deletes a pulled model, a damaged one too, and returns what it was.

    Raises: CheckpointError where there is no such model, or it ships with the package.
    """
    found = _called(name)
    if not found:
        raise CheckpointError(f"no model {name!r} has been pulled; `coca models list` names those that have")
    if len(found) > 1:
        raise CheckpointError(f"{name!r} may be {' or '.join(entry.name for entry in found)}; write one of these")
    if found[0].shipped:
        raise CheckpointError(f"{found[0].name} is part of the package; it goes with pip uninstall opencoca")
    shutil.rmtree(found[0].folder)
    return found[0]


def verified(name: str) -> Entry:
    """The model of that name, after its digests have been checked.

    Raises: CheckpointError naming the file that differs, or where there is no such model.
    """
    found = next(iter(_called(name)), None)
    if found is None:
        raise CheckpointError(f"no model {name!r} is known by name; `coca models list` names those that are")
    checkpoint.verify(found.folder)
    return found


def _called(name: str) -> list[Entry]:
    """The models of that name; failing that, those that have it behind their slash."""
    known, name = entries(), name.removeprefix(hub.PREFIX)
    exact = [entry for entry in known if entry.name == name]
    return exact or [entry for entry in known if entry.name.rpartition("/")[2] == name]


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in sorted(parent.iterdir()) if path.is_dir() and path.name[0] not in "._")


def _as_today(wanted: hub.HubName, origin: Origin) -> Origin:
    """What the origin would be if it were pulled now."""
    return dataclasses.replace(origin, source=str(wanted), revision=hub.commit(wanted))


def _is_whole(folder: Path) -> bool:
    try:
        checkpoint.verify(folder)
    except CheckpointError:
        return False
    return True


def _entry(folder: Path, shipped: bool) -> Entry:
    name = folder.name if shipped else folder.name.replace("--", "/", 1)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        files = checkpoint.verify(folder, digest_up_to=0)
        origin = folder / checkpoint.ORIGIN
        known = Origin.from_json(origin.read_text(encoding="utf-8"), origin) if checkpoint.ORIGIN in files else None
        return Entry(name, folder, size, shipped, known, str(files[checkpoint.MODEL]["sha256"]))
    except (CheckpointError, OSError, KeyError) as error:
        return Entry(name, folder, size, shipped, problem=str(error))
