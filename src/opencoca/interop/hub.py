"""Published models from the hub, through `huggingface_hub`: its cache, its settings, only the files that are needed.

HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to every program that uses the hub.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opencoca.errors import CheckpointError
from opencoca.files import file_digest
from opencoca.interop.open_clip_folder import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILES
from opencoca.model_card import Origin

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class HubName(NamedTuple):
    """A model on the hub: "org/name", and a branch, tag or commit."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision != "main" else "")


class Fetched(NamedTuple):
    """A folder on this machine with a model's files, and what the hub says of them."""

    folder: Path
    origin: Origin


class _Published(NamedTuple):
    """What the hub lists: its commit, its licence, and each needed file with its sha256 (None for small files)."""

    commit: str
    licence: str | None
    files: dict[str, str | None]


def parse(name: str) -> HubName:
    """The model that "hf:org/name" or "hf:org/name@revision" means.

    Raises: CheckpointError for anything else.
    """
    repo, at, revision = name.removeprefix(PREFIX).strip("/").partition("@")
    if not _NAME.fullmatch(repo) or (at and not revision):
        raise CheckpointError(f"{name!r} names no model on the hub; write hf:org/name or hf:org/name@revision")
    return HubName(repo, revision or "main")


def fetch(name: HubName, folder: Path | None = None) -> Fetched:
    """The model's files: in the hub's cache, or, given one, below `folder`.

    Without a connection the cache is used as it is. What is downloaded is verified against the hub's sha256.

    Raises: CheckpointError in one line: no such model, a gated one, no connection (what to download where), no package.
    """
    hub = _library(name)
    try:
        published = _published(hub, name)
    except CheckpointError:
        raise
    except Exception as error:  # which transport errors there are depends on the version of huggingface_hub
        cached = _cached(hub, name)
        if cached is None:
            raise CheckpointError(_unreachable(hub, name, error)) from error
        return Fetched(cached, Origin(str(name), revision=_commit_of(cached)))
    paths = [_download(hub, name, published, file, folder) for file in published.files]
    sha256 = next(published.files[file] for file in published.files if file in WEIGHTS_FILES)
    return Fetched(paths[0].parent, Origin(str(name), published.commit, published.licence, sha256))


def commit(name: HubName) -> str:
    """The commit that the name means today.

    Raises: CheckpointError as `fetch`.
    """
    hub = _library(name)
    try:
        return _published(hub, name).commit
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(_unreachable(hub, name, error)) from error


def _library(name: HubName) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError as error:
        raise CheckpointError(
            f"{name} needs the package huggingface_hub; install it with: pip install 'opencoca[hub]'"
        ) from error
    return huggingface_hub


def _published(hub: Any, name: HubName) -> _Published:
    try:
        info = hub.HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    except Exception as error:
        _refuse(hub, name, error)
        raise
    sizes = {file.rfilename: file for file in info.siblings or []}
    weights = next((file for file in WEIGHTS_FILES if file in sizes), None)
    if weights is None:
        raise CheckpointError(
            f"{name} has none of {', '.join(WEIGHTS_FILES)}, so it is no model in OpenCLIP's layout; it has "
            f"{', '.join(sorted(sizes)[:8]) or 'no files'}"
        )
    wanted = [file for file in (CONFIG_FILE, *TOKENIZER_FILES) if file in sizes] + [weights]
    card = info.card_data.to_dict() if info.card_data else {}
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return _Published(
        str(info.sha),
        str(licence) if licence else None,
        {file: sizes[file].lfs.sha256 if sizes[file].lfs else None for file in wanted},
    )


def _download(hub: Any, name: HubName, published: _Published, file: str, folder: Path | None) -> Path:
    known = hub.try_to_load_from_cache(name.repo, file, revision=published.commit)
    try:
        if folder is None:
            # The weights come last and by the name of their revision: then the cache knows it, and is whole.
            revision = name.revision if file in WEIGHTS_FILES else published.commit
            path = Path(hub.hf_hub_download(name.repo, file, revision=revision))
        else:
            path = folder / published.commit / file  # a file of another commit may have the same size
            _resume(hub, hub.hf_hub_url(name.repo, file, revision=published.commit), path)
    except Exception as error:
        _refuse(hub, name, error)
        raise CheckpointError(_unreachable(hub, name, error)) from error
    sha256 = published.files[file]
    if sha256 is not None and (folder or not isinstance(known, str)) and file_digest(path) != sha256:
        path.resolve().unlink()  # in the cache it is a link
        raise CheckpointError(
            f"{file} of {name} arrived damaged (its sha256 isn't the hub's) and was removed; try again"
        )
    return path


def _resume(hub: Any, url: str, path: Path) -> None:
    """Downloads a file, going on where an earlier process was cut off, which huggingface_hub's own call doesn't."""
    metadata = hub.get_hf_file_metadata(url)
    if path.is_file() and path.stat().st_size == metadata.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = hub.utils.build_hf_headers()
    if not metadata.location.startswith(hub.constants.ENDPOINT):  # a storage host, which the token isn't for
        headers.pop("authorization", None)
    etag = re.sub(r"\W", "", metadata.etag or "")[:64]
    part = path.with_name(f"{path.name}.{etag}.part")
    with part.open("ab") as file:
        hub.file_download.http_get(
            metadata.location, file, resume_size=file.tell(), headers=headers, expected_size=metadata.size
        )
    part.replace(path)


def _cached(hub: Any, name: HubName) -> Path | None:
    """The folder of the hub's cache that holds this model, if it is whole."""
    for file in WEIGHTS_FILES:
        found = hub.try_to_load_from_cache(name.repo, file, revision=name.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _commit_of(folder: Path) -> str | None:
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None  # the cache's snapshots/<commit>


def _refuse(hub: Any, name: HubName, error: Exception) -> None:
    """Raises a line of our own for what the hub has answered; returns where it has not been reached."""
    kinds, page = hub.errors, f"{hub.constants.ENDPOINT}/{name.repo}"
    if isinstance(error, kinds.GatedRepoError):
        raise CheckpointError(
            f"{name} is gated: accept its terms at {page}, then log in with `hf auth login`, and try again"
        ) from error
    if isinstance(error, kinds.RepositoryNotFoundError):
        raise CheckpointError(
            f"the hub has no model {name.repo}, or it is private: check the spelling at {page}; for a private one log "
            "in with `hf auth login`"
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        raise CheckpointError(
            f"{name} can't be stored ({error.strerror}); make room, or set HF_HOME and OPENCOCA_HOME to other folders"
        ) from error
    if isinstance(error, kinds.RevisionNotFoundError):
        raise CheckpointError(
            f"{name.repo} has no revision {name.revision!r}; leave @{name.revision} out, or choose one at {page}"
        ) from error


def _unreachable(hub: Any, name: HubName, error: Exception) -> str:
    files: Sequence[str] = (f"{' or '.join(WEIGHTS_FILES)}", f"{CONFIG_FILE} if there is one")
    target = f"models/{name.repo.rpartition('/')[2]}"
    page = f"{hub.constants.ENDPOINT}/{name.repo}/tree/{name.revision}"
    offline = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else _one_line(error)
    return (
        f"{name} isn't on this machine and the hub can't be reached ({offline}): where there is a connection, download "
        f"{' and '.join(files)} from {page} into a folder {target} here, and use {target} as the model's name"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
