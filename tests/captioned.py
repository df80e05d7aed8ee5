"""What the tests of captioned pictures share: three pictures, a table of two, and what must hold of every source."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tests.support import drawing, png

from opencoca.data.sources import captions_of

RED, BLUE, GREEN = (png(drawing(colour, "circle")) for colour in ("red", "blue", "green"))
WANTED = {"a.png": ("a red circle", "red"), "b.png": ("blue, they say",)}
CSV = 'path,caption\na.png,a red circle\nb.png,"blue, they say"\na.png,red\n'


def pictures(folder: Path, **files: bytes) -> Path:
    for name, content in ({"a": RED, "b": BLUE, "c": GREEN} | files).items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def all_of(source) -> dict:
    """Captions by key, after what must hold of every source."""
    copy = pickle.loads(pickle.dumps(source))  # as a spawned worker gets it
    found = [source[i] for i in range(len(source))]
    assert [copy[i] for i in range(len(copy))] == found and copy.fingerprint == source.fingerprint
    assert [sample.key for sample in found] == list(source.keys) == list(source.keys[:])
    assert [sample.caption for sample in found] == list(captions_of(source))
    assert [i for run in source.shards for i in run] == list(range(len(source)))
    assert source[-1].key == found[-1].key and len(set(source.keys)) == len(source)
    with pytest.raises(IndexError):
        source[len(source)]
    return {sample.key: sample.captions for sample in found}
