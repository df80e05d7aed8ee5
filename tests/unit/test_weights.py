"""Weights files: every form that is out there is read, nothing in them runs, and what doesn't fit is listed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests import tiny

from opencoca import weights
from opencoca.errors import CheckpointError
from opencoca.model.init import build

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path(os.environ["BOMB"]),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        weights.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    assert same(weights.read(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}, "name": "x"},
        {"model": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}},
        {"model": {"state_dict": TENSORS}},
    ],
    ids=["plain", "training checkpoint", "data parallel", "compiled too", "nested"],
)
def test_pytorch_files_are_read_however_they_are_wrapped(tmp_path, wrapped, zipped):
    torch.save(wrapped, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert same(weights.read(tmp_path / "m.pt"))


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "m.pt")
    assert set(weights.read(tmp_path / "m.pt")) == {"module.a", "b"}


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state_dict": TENSORS, "args": bomb}])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_malicious_pickles_never_run(tmp_path, monkeypatch, how, wrap):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "m.bin"
    if how == "pickle":
        path.write_bytes(pickle.dumps(wrap(Bomb())))
    else:
        torch.save(wrap(Bomb()), path, _use_new_zipfile_serialization=how == "zip")
    assert "could run anything" in refused(path)
    assert not (tmp_path / "exploded").exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert (tmp_path / "exploded").exists()  # so the bomb would have worked


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind):
    path = tmp_path / "m.bin"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in (0, 1, 7, 20, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert "fetch it again" in refused(path) or "no whole weights file" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "no whole weights file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"\xff" * 200, "no whole weights file"),
        ((2**62).to_bytes(8, "little") + b"{}", "no whole weights file"),
        (pickle.dumps([1, 2]), "holds no weights but list"),
        (pickle.dumps({}), "holds no weights"),
        (pickle.dumps({"a": 1, "b": "x"}), "2 that are no tensors (a, b)"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path, content, said):
    (tmp_path / "m.bin").write_bytes(content)
    if content[:1] == b"\x80":  # torch reads pickles of its own kind only
        torch.save(pickle.loads(content), tmp_path / "m.bin")
    assert said in refused(tmp_path / "m.bin")


def test_a_zip_of_something_else_is_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    (tmp_path / "m.pt").write_bytes(file.getvalue())
    assert "can't be read" in refused(tmp_path / "m.pt")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    assert "No such file" in refused(tmp_path / "nowhere.pt")
    assert "Is a directory" in refused(tmp_path)


# --- into a model -----------------------------------------------------------------------------------------------


def test_weights_are_taken_over_without_a_copy():
    own = build(tiny.CONFIG.model, seed=1).state_dict()
    model = weights.model_with(tiny.CONFIG.model, own, "it")
    assert not model.training and all(p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == own[name].data_ptr() and tensor.device.type == "cpu", name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype):
    own = build(tiny.CONFIG.model, seed=1).state_dict()
    model = weights.model_with(tiny.CONFIG.model, {name: tensor.to(dtype) for name, tensor in own.items()}, "it")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, own[name].to(dtype).float()), name


def test_halves_keep_vectors_whole():
    stored = weights.stored_as(TENSORS, torch.float16)
    assert (stored["a.weight"].dtype, stored["b"].dtype) == (torch.float16, torch.float32)


def test_everything_that_does_not_fit_is_listed():
    state = build(tiny.CONFIG.model).state_dict()
    state["foreign"] = torch.zeros(1)
    state["log_scale"] = torch.zeros(2)
    state["unimodal.cls_D"] = state["unimodal.cls_D"].to(torch.int8)
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    del state["encoder.positions_PD"]
    with pytest.raises(CheckpointError) as caught:
        weights.model_with(tiny.CONFIG.model, state, "the file")
    for words in (
        "the file doesn't fit",
        "1 missing (encoder.positions_PD)",
        "1 foreign (foreign)",
        "1 of another shape (log_scale (2,) instead of (1,))",
        "2 of another type (head.weight float8_e4m3fn instead of float32, unimodal.cls_D int8 instead of float32)",
    ):
        assert words in str(caught.value)
