"""No damage to a checkpoint goes unnoticed, and nothing in one is run."""

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints import CONFIGURATION, FILES, VOCABULARY, refused, seal, value_of, write

from opencoca import checkpoint
from opencoca.checkpoint import CONFIG, MANIFEST, MODEL, STATE, TOKENIZER, TRAINING, Piece, Stored
from opencoca.errors import CheckpointError
from opencoca.train.state import fresh_state, load_state, save_state


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    refused(tmp_path / "c", name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_missing_from_the_manifest_is_named(tmp_path, name):
    write(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    seal(tmp_path / "c")
    refused(tmp_path / "c", name)


def test_every_flipped_bit_is_noticed(tmp_path):
    """About 1,000 flips: every byte of the manifest, and first, last and random places of each other file."""
    folder, chance = write(tmp_path / "c"), random.Random(1)
    checkpoint.verify(folder)
    for name in [*FILES, MANIFEST]:
        path = folder / name
        whole = path.read_bytes()
        places = range(len(whole))
        if name != MANIFEST:
            places = [0, 1, 8, len(whole) // 2, len(whole) - 1, *chance.choices(places, k=30)]
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << chance.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError) as caught:
                checkpoint.verify(folder)
            assert "\n" not in str(caught.value)
            assert name == MANIFEST or name in str(caught.value)
        path.write_bytes(whole)
    assert value_of(folder) == 1.0


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_truncation_is_noticed(tmp_path, name):
    folder = write(tmp_path / "c")
    whole = (folder / name).read_bytes()
    for length in (0, 1, 7, len(whole) // 2, len(whole) - 1 - (name == MANIFEST)):  # the manifest ends with a newline
        (folder / name).write_bytes(whole[:length])
        refused(folder, name)


def test_a_file_of_another_checkpoint_is_noticed(tmp_path):
    folder, other = write(tmp_path / "c", 1.0), write(tmp_path / "other", 2.0)
    shutil.copy(other / MODEL, folder / MODEL)
    refused(folder, MODEL, "another model")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (MODEL, b"not safetensors"),
        (MODEL, b"\xff" * 64),
        (MODEL, b""),
        (TRAINING, (2**40).to_bytes(8, "little") + b"{}"),
        (CONFIG, b"[]"),
        (CONFIG, b"{}"),
        (CONFIG, b"\xff"),
        (CONFIG, b"[" * 100_000),
        (TOKENIZER, b"{}"),
        (TOKENIZER, b"nothing"),
        (STATE, b"{"),
    ],
)
def test_foreign_files_are_refused_though_the_manifest_agrees(tmp_path, name, content):
    folder = write(tmp_path / "c")
    (folder / name).write_bytes(content)
    seal(folder)
    refused(folder, str(folder))


@pytest.mark.parametrize("state", ["[]", "{}", '{"step": "3"}', "null"])
def test_a_foreign_state_is_refused(tmp_path, state):
    started = fresh_state(CONFIGURATION, torch.device("cpu"))
    save_state(tmp_path / "c", started, CONFIGURATION, VOCABULARY)
    (tmp_path / "c" / STATE).write_text(state)
    seal(tmp_path / "c")
    with pytest.raises(CheckpointError, match=STATE):
        load_state(tmp_path / "c", CONFIGURATION, VOCABULARY, torch.device("cpu"))


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["BOMB"]),)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(tmp_path, monkeypatch, name):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    folder = write(tmp_path / "c")
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    seal(folder)
    refused(folder)
    torch.save({"a": Bomb()}, folder / name)
    seal(folder)
    refused(folder)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists()  # so the bomb would have worked


def test_a_newer_format_says_upgrade(tmp_path):
    folder = write(tmp_path / "c")
    seal(folder, version=checkpoint.VERSION + 1)
    refused(folder, "version 4", "upgrade")
    seal(folder, version=7, files=["a list, as some later version might have it"])
    refused(folder, "version 7", "upgrade")


ENTRY = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 0},
        {"version": -1},
        {"version": None},
        {"version": "one"},
        {"version": float("inf")},
        {"files": None},
        {"files": []},
        {"files": {MODEL: 3}},
        {"files": {MODEL: {"bytes": float("inf"), "sha256": "0"}}},
        {"files": {MODEL: {"bytes": 1}}},
        *({"files": {name: ENTRY}} for name in ("../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b")),
        *({"files": {name: ENTRY}} for name in ("c:con", "a\nb", "-" * 5000, "~", ".hidden")),
    ],
    ids=lambda changes: repr(changes)[:40],
)
def test_a_manifest_that_is_odd_or_points_elsewhere_is_refused(tmp_path, changes):
    folder = write(tmp_path / "c")
    (tmp_path / "secret").write_text("0")
    seal(folder, **changes)
    refused(folder)


def test_a_path_out_of_the_folder_is_refused_even_with_the_right_digest(tmp_path):
    folder = write(tmp_path / "c")
    (tmp_path / "secret").write_bytes(b"0")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    seal(folder, files=files | {"../secret": {"bytes": 1, "sha256": hashlib.sha256(b"0").hexdigest()}})
    refused(folder, "../secret")


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", "[" * 100_000, "{}"])
def test_a_foreign_manifest_is_refused(tmp_path, text):
    folder = write(tmp_path / "c")
    (folder / MANIFEST).write_text(text)
    refused(folder, MANIFEST)


def test_a_path_without_a_model_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "doesn't exist", "coca quickstart")
    refused(tmp_path, "holds no model")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "holds no model")
    (tmp_path / "c" / MANIFEST).mkdir(parents=True)
    refused(tmp_path / "c", "holds no model")


def test_a_flip_that_makes_the_version_an_older_one_is_noticed(tmp_path):
    folder = write(tmp_path / "c")
    text = (folder / MANIFEST).read_text()
    for older in (1, 2):
        assert text.count('"version": 3') == 1
        (folder / MANIFEST).write_text(text.replace('"version": 3', f'"version": {older}'))
        refused(folder, MANIFEST)
    without = {name: value for name, value in json.loads(text).items() if name != "sha256"}
    (folder / MANIFEST).write_text(json.dumps(without))
    refused(folder, MANIFEST)


def cut(folder: Path, rows: int = 5, parts: int = 2) -> Path:
    """A model folder with a tensor that is cut up into as many files as there are `parts`."""
    checkpoint.begin(folder)
    whole, size, files = torch.arange(rows * 3.0).view(rows, 3), -(-rows // parts), {}
    for part in range(parts):
        pieces = {"a": Piece(whole[part * size : (part + 1) * size], (part * size, 0))}
        files |= checkpoint.write_part(folder, pieces, None, part, parts)
    checkpoint.finish(folder, files, CONFIGURATION, VOCABULARY)
    return folder


def test_cut_up_tensors_come_back_whole_or_in_other_pieces(tmp_path):
    folder = cut(tmp_path / "c", rows=7, parts=3)
    whole = checkpoint.load(folder).weights["a"]
    assert torch.equal(whole, torch.arange(21.0).view(7, 3))
    stored = Stored(folder, [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)])
    assert stored.shape("a") == (7, 3) == tuple(stored.described()["a"].shape)
    for first in range(8):
        for count in range(8 - first):
            for left in range(3):
                read = stored.read("a", (first, left), (count, 3 - left))
                assert torch.equal(read, whole[first : first + count, left:])


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_missing_part_is_named(tmp_path, part):
    folder, name = cut(tmp_path / "c", parts=3), f"model-0000{part}-of-00003.safetensors"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(folder)
    seal(folder)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(folder)


def test_parts_of_two_models_are_not_mixed(tmp_path):
    folder = cut(tmp_path / "c")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / MODEL)
    seal(folder)
    with pytest.raises(CheckpointError, match="two sets"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "offsets",
    [[0, 0], [2, 0], [4, 0], [3, 1], [-3, 0], [3], [3, 0, 0], ["x", 0], [float("inf"), 0], [2**70, 0], None, 2**70],
)
def test_pieces_that_overlap_or_leave_gaps_are_refused(tmp_path, offsets):
    folder, name = cut(tmp_path / "c"), "model-00002-of-00002.safetensors"
    sharding = json.dumps({"a": {"saved_offsets": offsets}})
    save_file({"a": torch.zeros(2, 3)}, folder / name, {"DCP_SHARDING_INFO": sharding})
    seal(folder)
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "3", "{", "[" * 100_000])
def test_foreign_metadata_is_refused(tmp_path, text):
    folder, name = cut(tmp_path / "c"), "model-00002-of-00002.safetensors"
    save_file({"a": torch.zeros(2, 3)}, folder / name, {"DCP_SHARDING_INFO": text})
    seal(folder)
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
