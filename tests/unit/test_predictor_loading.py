"""Predictors from runs and model folders: alike, whole in memory, the newest by default, and never a misfit."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.predictors import PICTURES
from tests.support import tiny_config, train_tiny, write_shards

import opencoca
from opencoca import checkpoint
from opencoca.errors import CheckpointError
from opencoca.loading import load, newest_run
from opencoca.train import loop


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(write_shards(folder / "data"), optim={"steps": 2, "warmup_steps": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_rate", lambda *_, **__: 1e11)
        train_tiny(config, folder / "runs" / "one")
    torch.set_num_threads(threads)
    return folder / "runs" / "one"


def test_a_run_and_a_model_folder_load_alike(run, tmp_path):
    saved = checkpoint.load(run)
    checkpoint.save(tmp_path / "model", saved.config, saved.tokenizer, saved.weights)
    of_run, of_model = opencoca.load(run, device="cpu"), opencoca.load(str(tmp_path / "model"), device="cpu")
    assert isinstance(of_run, opencoca.Predictor) and not of_run.model.training
    for name, tensor in of_run.model.state_dict().items():
        assert torch.equal(tensor, of_model.model.state_dict()[name])
        assert torch.equal(tensor, saved.weights[name])  # the moving average, not the raw weights
    training = checkpoint.load(run, training=True).training
    assert training is not None and not torch.equal(training["raw.head.weight"], saved.weights["head.weight"])
    assert of_run.caption(PICTURES[:2], beams=1) == of_model.caption(PICTURES[:2], beams=1)


def test_a_model_loads_when_its_files_go_away(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    coca = load(tmp_path / "copy", device="cpu")
    before = coca.embed_images(PICTURES)
    shutil.rmtree(tmp_path / "copy")
    assert torch.equal(coca.embed_images(PICTURES), before)


def test_the_newest_run_is_the_default(run, tmp_path, monkeypatch):
    older = shutil.copytree(run, run.parent / "older")
    os.utime(older / "checkpoints" / "latest", (1, 1))
    assert newest_run(run.parent) == run
    monkeypatch.chdir(run.parent.parent)
    assert opencoca.load(device="cpu").config == checkpoint.load(run).config
    with pytest.raises(CheckpointError, match="coca quickstart"):
        newest_run(tmp_path / "none")


def test_weights_that_do_not_fit_their_configuration_are_refused(run, tmp_path):
    saved = checkpoint.load(run)
    text = dataclasses.replace(saved.config.model.text, unimodal_depth=1)
    config = dataclasses.replace(saved.config, model=dataclasses.replace(saved.config.model, text=text))
    checkpoint.save(tmp_path / "model", config, saved.tokenizer, saved.weights)
    with pytest.raises(CheckpointError, match=r": \d+ foreign \(unimodal\.blocks\.1"):
        opencoca.load(tmp_path / "model")
