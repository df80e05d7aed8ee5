"""`opencoca.load`: every name that means a model, and one line with the repair for those that don't."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import published, tiny
from tests.published import DESCRIPTION, WEIGHTS

import opencoca
from opencoca import checkpoint
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.errors import CheckpointError, ConfigError, OpenCoCaError
from opencoca.interop import open_clip_folder, pulled
from opencoca.interop.open_clip import to_open_clip
from opencoca.loading import load, newest, open_model
from opencoca.model_card import Origin

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> Path:
    """An empty working folder, no pulled models, no shipped one."""
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pulled, "SHIPPED", tmp_path / "pretrained")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    return published.write(tmp_path_factory.mktemp("foreign") / "coca")


def holds(coca: opencoca.Predictor, seed: int = 0) -> bool:
    """Whether it is the published model of that seed."""
    expected = published.model(seed).state_dict()
    found = coca.model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refused(name: str | Path, kind: type[OpenCoCaError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names ------------------------------------------------------------------------------------------------------


def test_a_folder_as_the_hub_has_it(foreign):
    coca = load(foreign, device="cpu")
    assert holds(coca) and coca.tokenizer.fingerprint == published.tokenizer().fingerprint
    assert coca.embed_images([PICTURE]).shape == (1, 16)
    assert open_model(foreign).origin == Origin("coca")


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"])
def test_other_names_of_the_weights(foreign, tmp_path, name):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    (folder / WEIGHTS).unlink()
    state = load_file(foreign / WEIGHTS)
    save_file(state, folder / name) if name.endswith("s") else torch.save({"state_dict": state}, folder / name)
    assert holds(load(folder, device="cpu"))
    assert holds(load(folder / name, device="cpu"))


def test_a_file_with_its_description_beside_it(foreign, tmp_path):
    shutil.copy(foreign / DESCRIPTION, tmp_path)
    shutil.copy(foreign / "tokenizer.json", tmp_path)
    state = {f"module.{name}": tensor for name, tensor in load_file(foreign / WEIGHTS).items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "epoch_1.pt")
    assert holds(load(tmp_path / "epoch_1.pt", device="cpu"))


def test_a_lone_file_whose_shapes_say_too_little(foreign, tmp_path):
    shutil.copy(foreign / WEIGHTS, tmp_path)
    assert f"put the {DESCRIPTION}" in refused(tmp_path / WEIGHTS)


def test_a_lone_file_whose_shapes_tell_the_model(tmp_path):
    layout = dict(image_size_px=32, patch_size_px=16, vision_width=512, vision_depth=1, vision_heads=8)
    text = dict(
        text_width=512, text_depth=1, multimodal_depth=1, text_heads=8, vocab_size=published.tokenizer().vocab_size
    )
    config = published.recipes.layout(**layout, **text, num_queries=3, context_length=10)
    model = published.build(config)
    _, state = to_open_clip(model)
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "coca.pt")
    published.tokenizer().save(tmp_path / "tokenizer.json")
    opened = open_model(tmp_path / "coca.pt")
    assert opened.config.model == config
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().float()), name


def test_clips_own_vocabulary_is_there_without_a_file(tmp_path):
    model = published.model(vocab_size=ClipTokenizer.published().vocab_size)
    config = published.config(model.config.text.vocab_size)
    folder = tmp_path / "coca"
    open_clip_folder.write_folder(folder, model, config, ClipTokenizer.published(), Origin("x"))
    (folder / "tokenizer.json").unlink()
    coca = load(folder, device="cpu")
    assert coca.tokenizer.fingerprint == ClipTokenizer.published().fingerprint
    assert coca.embed_texts("a red dot").shape == (1, 16)


def test_the_weights_file_of_one_of_our_folders_means_the_folder(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    assert load(folder / checkpoint.MODEL, device="cpu").config == tiny.CONFIG


def test_pulled_and_shipped_models_have_names(places):
    tiny.save_model(places / "home" / "models" / "some--coca", seed=1)
    tiny.save_model(places / "pretrained" / "small", seed=2)
    for name, seed in (("some/coca", 1), ("coca", 1), ("small", 2)):
        assert torch.equal(load(name, device="cpu").model.log_scale, tiny.predictor(seed).model.log_scale)
        found = load(name, device="cpu").model.head.weight
        assert torch.equal(found, tiny.predictor(seed).model.head.weight), name
    tiny.save_model(Path("small"), seed=3)  # a folder that is here comes first
    assert torch.equal(load("small", device="cpu").model.head.weight, tiny.predictor(3).model.head.weight)


def test_no_name_is_the_newest_run_or_pulled_model_then_the_shipped_one(places):
    with pytest.raises(CheckpointError, match="coca quickstart"):
        load()
    shipped = tiny.save_model(places / "pretrained" / "small")
    assert newest() == shipped
    coca = tiny.save_model(places / "home" / "models" / "some--coca")
    assert newest() == coca
    step = tiny.save_model(checkpoint.checkpoint_folder(Path("runs/mine"), 5))
    checkpoint.mark_latest(step, keep=1)
    os.utime("runs/mine/checkpoints/latest", (2e9, 2e9))
    assert newest() == Path("runs/mine")
    os.utime(coca, (3e9, 3e9))
    assert newest() == coca
    (coca / checkpoint.MANIFEST).unlink()  # damaged ones are passed over
    assert newest() == Path("runs/mine")


def test_a_name_that_means_nothing_gets_a_hint(places):
    tiny.save_model(places / "home" / "models" / "some--coca")
    assert "the nearest is coca;" in refused("cocoa") and "coca models pull" in refused("cocoa")
    assert "hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k" in refused("CoCa-ViT-B-32-laion2B-s13B-b90k")
    assert "doesn't exist" in refused("models/x.safetensors")
    (places / "work" / "empty").mkdir()
    assert "holds no model" in refused("empty")


# --- what doesn't fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("text.cls_emb"), "1 missing (text.cls_emb)"),
        (lambda state: state.update(extra=torch.ones(1)), "1 foreign (extra)"),
        (lambda state: state.update({"text.cls_emb": torch.ones(3)}), "text.cls_emb (3,) instead of (16,)"),
        (
            lambda state: state.update({"text.cls_emb": torch.ones(16, dtype=torch.int32)}),
            "text.cls_emb int32 instead of float32",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(foreign, tmp_path, change, said):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    state = load_file(foreign / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    assert said in refused(folder) and str(folder / WEIGHTS) in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model_cfg": 3}',
        '{"model_cfg": {"vision_cfg": {}}}',
        '{"model_cfg": {"multimodal_cfg": {"width": "x"}, "text_cfg": {}, "vision_cfg": {}}}',
    ],
)
def test_a_description_that_is_none_is_refused(foreign, tmp_path, text):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    (folder / DESCRIPTION).write_text(text)
    assert str(folder) in refused(folder, OpenCoCaError)


def test_a_description_of_another_type_is_refused(foreign, tmp_path):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    described = json.loads((foreign / DESCRIPTION).read_text())
    described["preprocess_cfg"] = {"mean": 0.5}
    (folder / DESCRIPTION).write_text(json.dumps(described))
    assert "preprocess_cfg.mean is 0.5" in refused(folder, ConfigError)


def test_a_description_without_weights_is_refused(foreign, tmp_path):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    (folder / WEIGHTS).unlink()
    assert "add the weights" in refused(folder)


def test_the_tokenizer_of_another_model_is_refused(foreign, tmp_path):
    folder = shutil.copytree(foreign, tmp_path / "coca")
    tiny.tokenizer().save(folder / "tokenizer.json")
    assert "they belong to different models" in refused(folder)
    model = tiny.save_model(tmp_path / "model")
    text = published.tokenizer().to_json().encode()
    files = json.loads((model / checkpoint.MANIFEST).read_text())
    (model / checkpoint.TOKENIZER).write_bytes(text)
    files["files"][checkpoint.TOKENIZER] = {"bytes": len(text), "sha256": published.sha256(text)}
    (model / checkpoint.MANIFEST).write_text(checkpoint.sealed(files["files"]))
    assert "belong to different models" in refused(model, ConfigError)


def test_a_clip_is_no_coca(foreign, tmp_path):
    torch.save({"visual.conv1.weight": torch.ones(8, 3, 4, 4)}, tmp_path / "clip.pt")
    assert "aren't an OpenCLIP CoCa" in refused(tmp_path / "clip.pt")


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no other way to ask for mapped files")
def test_float32_weights_stay_in_their_file(tmp_path):
    coca = load(tiny.save_model(tmp_path / "model"), device="cpu")
    assert str(tmp_path / "model" / checkpoint.MODEL) in Path("/proc/self/maps").read_text()
    before = coca.embed_images([PICTURE])
    shutil.rmtree(tmp_path / "model")
    assert torch.equal(coca.embed_images([PICTURE]), before)


def test_a_model_that_is_replaced_meanwhile_goes_on(tmp_path):
    coca = load(tiny.save_model(tmp_path / "model"), device="cpu")
    tiny.save_model(tmp_path / "model", seed=5)
    assert torch.equal(coca.model.head.weight, tiny.predictor(0).model.head.weight)


def test_changing_a_loaded_model_leaves_its_file_alone(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    with torch.no_grad():
        load(folder, device="cpu").model.head.weight.zero_()
    assert torch.equal(load(folder, device="cpu").model.head.weight, tiny.predictor(0).model.head.weight)
    checkpoint.verify(folder)


def test_digests_of_large_files_are_left_to_verify(tmp_path, monkeypatch):
    folder = tiny.save_model(tmp_path / "model")
    path = folder / checkpoint.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "isn't the file that was saved" in refused(folder)
    monkeypatch.setattr(checkpoint.folders, "ALWAYS_DIGESTED_BYTES", len(content) - 1)
    load(folder, device="cpu")
    with pytest.raises(CheckpointError, match="isn't the file that was saved"):
        open_model(folder, digests=True)
    path.write_bytes(content[:-4])
    assert "isn't the file that was saved" in refused(folder)  # its size is always looked at


@pytest.mark.parametrize("layout", ["ours", "OpenCLIP's"])
def test_loading_imports_no_compiler(layout, tmp_path, foreign):
    """Drawing or joining tensors on "meta" once took longer than all else: it imports torch._dynamo."""
    folder = tiny.save_model(tmp_path / "model") if layout == "ours" else foreign
    code = f"import sys, opencoca; opencoca.load({str(folder)!r}); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
