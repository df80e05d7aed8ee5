"""Damage to an index on disk: none of it may load."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.search import manifest
from opencoca.search.index import Index
from opencoca.search.store import Store

FLIPS = 200


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.set_num_threads(1)
    return tiny.predictor()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, predictor: Predictor) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("damage")
    for seed in range(4):
        tiny.save_picture(root / "pics" / f"{seed}.png", seed)
    Index.make(root / "pics", predictor, "tiny", index=root / "index", captions=True)
    return root / "pics", root / "index"


def parts(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.name != "lock")


def test_every_flipped_bit_is_noticed(folders):
    folder, place = folders
    draws = random.Random(0)
    for turn in range(FLIPS):
        file = parts(place)[turn % len(parts(place))]
        whole = file.read_bytes()
        at, bit = draws.randrange(len(whole)), draws.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            with pytest.raises(DataError, match=f"coca index {folder} --anew"):
                Store.open(folder, place)
        finally:
            file.write_bytes(whole)
    assert len(Store.open(folder, place)) == 4


def test_every_truncation_is_noticed(folders):
    folder, place = folders
    draws = random.Random(1)
    for file in parts(place):
        whole = file.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1, *(draws.randrange(len(whole)) for _ in range(10))}:
            file.write_bytes(whole[:length])
            if file.name == manifest.NAME and not whole[length:].strip():
                continue  # the newline at its end says nothing
            with pytest.raises(DataError, match="is damaged"):
                Store.open(folder, place)
        file.unlink()
        if file.name != manifest.NAME:
            with pytest.raises(DataError, match="is missing"):
                Store.open(folder, place)
        file.write_bytes(whole)


def test_a_damaged_index_is_made_anew_only_when_asked(folders, predictor, tmp_path):
    folder, place = folders
    copy = tmp_path / "index"
    copy.mkdir()
    for file in parts(place):
        (copy / file.name).write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="--anew"):
        Index.make(folder, predictor, "tiny", index=copy)
    assert len(Index.make(folder, predictor, "tiny", index=copy, anew=True)) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 3}, "has version 3"),
        ({"vectors": [{"name": "../../etc/passwd", "bytes": 1, "sha256": "", "rows": 1}]}, "is no file of an index"),
        ({"unknown": 1}, "unexpected keyword"),
        ({"table": None}, "no table"),
    ],
)
def test_a_manifest_that_asks_for_more_is_refused(folders, tmp_path, change, says):
    folder, place = folders
    for file in parts(place):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / manifest.NAME).read_text())
    del content["digest"]
    content |= change
    (tmp_path / manifest.NAME).write_text(json.dumps(content | {"digest": manifest._digest(content)}))
    with pytest.raises(DataError, match=says):
        Store.open(folder, tmp_path)


def test_a_hostile_table_reaches_no_other_file(folders, predictor, tmp_path):
    folder, place = folders
    secret = tiny.save_picture(tmp_path / "secret.png", 9)
    found = manifest.read(place, folder)
    for file in parts(place):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = tmp_path / found.table.name
    connection = sqlite3.connect(table)
    connection.execute("UPDATE files SET path = ? WHERE id = 1", (str(secret).encode(),))
    connection.execute("UPDATE files SET path = ? WHERE id = 2", (b"../" * 30 + str(secret).encode(),))
    connection.commit()
    connection.close()
    content = json.loads((tmp_path / manifest.NAME).read_text())
    del content["digest"]
    content["table"] |= {"bytes": table.stat().st_size, "sha256": manifest.file_digest(table)}
    (tmp_path / manifest.NAME).write_text(json.dumps(content | {"digest": manifest._digest(content)}))
    index = Index.open(folder, predictor, tmp_path, "tiny")
    for id in (1, 2):
        with pytest.raises(DataError, match="leads out of"):
            index.thumbnail(id, 64)
