"""The manifest of a folder of shards: what should be there."""

import json
import re
from pathlib import Path

from opencoca.errors import DataError

FORMAT, VERSION = "opencoca-shards", 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"  # stands in a folder while shards are written; without a manifest, none are to be read
MORE_CAPTIONS = "more_captions"  # among the attributes of a sample
KEY = re.compile(r"\w[\w+-]{0,89}")  # with its extension below the 100 bytes that a plain tar header has room for
SPLIT = re.compile(r"[a-z][a-z0-9_]{0,40}")


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a folder of shards, checked for form.

    Raises: DataError if it is missing, foreign, or of a newer version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        what = "is missing: the shards were never finished" if Path(folder).is_dir() else "is missing, as is its folder"
        raise DataError(f"{path} {what}; prepare the data again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}); prepare the data again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not a manifest of {FORMAT}; point to a folder that opencoca prepared")
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise DataError(f"{path} has version {found}, this opencoca reads {VERSION}; prepare the data again")
    shards = manifest.get("shards")
    good = isinstance(shards, list) and all(map(_is_shard, shards)) and isinstance(manifest.get("source"), dict)
    good = good and isinstance(manifest.get("skipped"), list) and isinstance(manifest.get("samples"), dict)
    if not good:
        raise DataError(f"{path} has a damaged list of shards; prepare the data again")
    return manifest


def _is_shard(facts) -> bool:
    if not isinstance(facts, dict) or not all(isinstance(facts.get(k), str) for k in ("file", "split", "sha256")):
        return False
    counts = (facts.get("samples"), facts.get("bytes"))
    # The name is rebuilt from safe parts, so a manifest can't point out of its folder.
    named = SPLIT.fullmatch(facts["split"]) and re.fullmatch(re.escape(facts["split"]) + r"-\d{6}\.tar", facts["file"])
    return bool(named) and all(isinstance(count, int) and count >= 0 for count in counts)
