"""Writing the index of a set of tars, so that nobody ever has to say how many samples they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opencoca.data import storage
from opencoca.data.sources import tar_index
from opencoca.data.sources.recognise import recognise
from opencoca.errors import DataError


def index(
    location: str,
    out: Path | None = None,
    *,
    on_damage: str = "stop",
    http: bool = False,
) -> dict[str, Any]:
    """Reads every byte of the tars at a location and writes where each sample lies, with digests; gives what was found.

    The index goes beside the tars, where `open_source` finds it, or into the file `out`, a location of its own.

    Raises: DataError if there are no tars, if one is damaged, or if the index can't be written.
    """
    place = storage.checked(location, http)
    parts = [part for part in recognise(place) if part.kind == "tars"]
    if not parts:
        raise DataError(f"{place} holds no tars; other data are read without an index")
    root, names = parts[0].root, sorted(name for part in parts for name in part.files)
    remote = storage.is_url(root)
    if remote and out is None:
        raise DataError(f"{root} is on another machine; name a file here for the index (--out)")
    path = out or Path(root) / tar_index.INDEX
    beside = not remote and path.parent.resolve() == Path(root).resolve()
    if not remote and not beside:
        raise DataError(f"{path} isn't in {root}; an index of tars on this machine lies beside them")
    built = tar_index.build(root, names, on_damage, digests=True)
    tar_index.save(built, path, root if remote else None)
    return {
        "location": location,
        "index": str(path),
        "tars": built.tars,
        "samples": len(built.keys),
        "bytes": sum(tar["bytes"] for tar in built.tars),
        "index_bytes": path.stat().st_size,
        "skipped": [list(entry) for entry in built.skipped],
        "ignored": dict(built.ignored.most_common()),
    }
