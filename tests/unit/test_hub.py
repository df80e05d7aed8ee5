"""The hub: which files are fetched and from where, and one clear line for everything that can go wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from tests import published
from tests.published import COMMIT, DESCRIPTION, WEIGHTS, Hub

from opencoca.errors import CheckpointError
from opencoca.interop import hub, pulled
from opencoca.interop.open_clip import from_open_clip
from opencoca.loading import load, open_model

NAME = "some/coca"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub with one model, an empty cache, and this process pointed to both."""
    with published.serving(Hub({NAME: published.files()})) as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": running.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "DOWNLOAD_CHUNK_SIZE": 500,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("time.sleep", lambda _: None)  # between two tries
        yield running
    huggingface_hub.close_session()


def refused(name: str = f"hf:{NAME}") -> str:
    with pytest.raises(CheckpointError) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("hf:laion/CoCa-ViT-B-32", "laion/CoCa-ViT-B-32", "main"),
        ("laion/CoCa-ViT-B-32", "laion/CoCa-ViT-B-32", "main"),
        ("hf:some/coca@v1", "some/coca", "v1"),
        ("hf:some/coca@refs/pr/1", "some/coca", "refs/pr/1"),
    ],
)
def test_names_are_understood(name, repo, revision):
    assert hub.parse(name) == hub.HubName(repo, revision)
    assert hub.parse(str(hub.parse(name))) == hub.parse(name)


@pytest.mark.parametrize("name", ["hf:", "hf:coca", "hf:a/b/c", "hf:a/b@", "hf:../../etc", "hf:a/", "hf:a b/c"])
def test_other_names_are_refused(name):
    with pytest.raises(CheckpointError, match="write hf:org/name"):
        hub.parse(name)


def test_only_what_is_needed_is_fetched_and_once(server):
    coca = load(f"hf:{NAME}", device="cpu")
    assert sorted(server.fetched()) == sorted([DESCRIPTION, WEIGHTS, "tokenizer.json"])
    for name, tensor in published.model().state_dict().items():
        assert torch.equal(coca.model.state_dict()[name], tensor), name
    load(f"hf:{NAME}@{COMMIT}", device="cpu")
    assert len(server.fetched()) == 3
    assert open_model(f"hf:{NAME}").origin == pulled.Origin(
        f"hf:{NAME}", COMMIT, "mit", published.sha256(server.models[NAME][WEIGHTS])
    )


def test_what_another_program_published_computes_what_it_computed(server):
    server.models["other/tiny"] = published.fixture()
    folder = hub.fetch(hub.parse("other/tiny")).folder
    model = from_open_clip(json.loads((folder / DESCRIPTION).read_text())["model_cfg"], load_file(folder / WEIGHTS))
    cases = load_file(published.FIXTURE / "open_clip_tiny.cases.safetensors")
    with torch.no_grad():
        embed = model.encode_image(cases["input.images"]).embed
    name = next(name for name in cases if "image" in name and cases[name].shape == embed.shape)
    assert (embed - cases[name]).abs().max() < 1e-5  # measured: 2e-7
    assert "its model 99" in refused("hf:other/tiny")  # it has no tokenizer, and CLIP's isn't its own


def test_an_older_file_name_and_no_configuration_say_what_is_missing(server):
    server.models["old/coca"] = {"open_clip_pytorch_model.bin": server.models[NAME][WEIGHTS]}
    assert f"put the {DESCRIPTION}" in refused("hf:old/coca").replace("\n", " ")
    assert server.fetched() == ["open_clip_pytorch_model.bin"]


def test_without_a_connection_the_cache_is_used(server, monkeypatch):
    load(f"hf:{NAME}", device="cpu")
    asked = len(server.log)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    opened = open_model(f"hf:{NAME}")
    assert len(server.log) == asked
    assert opened.origin is not None and (opened.origin.source, opened.origin.revision) == (f"hf:{NAME}", COMMIT)
    said = refused("hf:another/coca")
    assert "HF_HUB_OFFLINE is set" in said and f"{server.endpoint}/another/coca/tree/main" in said


def test_unreachable_says_what_to_download_where(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused()
    assert "can't be reached" in said
    for words in (WEIGHTS, DESCRIPTION, f"http://127.0.0.1:9/{NAME}/tree/main", "models/coca"):
        assert words in said


def test_a_hub_that_is_down_is_unreachable(server):
    server.down = True
    assert "can't be reached (" in refused() and "503" in refused()


def test_unknown_gated_and_empty_models_are_told_apart(server):
    assert "the hub has no model some/cocoa" in refused("hf:some/cocoa")
    assert "no revision 'v9'" in refused(f"hf:{NAME}@v9")
    server.models["empty/model"] = {"README.md": b"", "pytorch_model.bin": b""}
    assert "no model in OpenCLIP's layout" in refused("hf:empty/model")
    server.gated = True
    said = refused()
    assert "gated" in said and f"{server.endpoint}/{NAME}" in said and "hf auth login" in said


def test_without_the_package_one_line_has_the_command(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'opencoca[hub]'" in refused()


def test_a_full_disk_is_told_from_a_broken_line(server, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "can't be stored (No space left on device)" in refused()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_on_the_way_is_noticed(server):
    server.damage = True
    assert "arrived damaged" in refused()
    server.damage = False
    load(f"hf:{NAME}", device="cpu")


def test_a_connection_that_breaks_is_taken_up_again(server):
    server.break_after = 1000
    load(f"hf:{NAME}", device="cpu")
    ranges = [wanted for method, path, wanted in server.log if method == "GET" and path.endswith(WEIGHTS)]
    assert ranges == ["", "bytes=1000-"]


def test_a_killed_download_goes_on_in_the_next_process(server, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(_):
        raise Killed

    server.break_after = 1000
    monkeypatch.setattr("time.sleep", killed)  # where it would wait before it tries again
    with pytest.raises(Killed):
        pulled.pull(NAME)
    monkeypatch.setattr("time.sleep", lambda _: None)
    entry = pulled.pull(NAME)
    ranges = [wanted for method, path, wanted in server.log if method == "GET" and path.endswith(WEIGHTS)]
    assert ranges == ["", "bytes=1000-"]
    assert not entry.problem and not list((pulled.home() / "downloads").iterdir())


def test_the_environment_is_honoured_by_the_command(server, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"OPENCOCA_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = [sys.executable, "-m", "opencoca", "info", f"hf:{NAME}", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["source"], facts["licence"], facts["revision"]) == (f"hf:{NAME}", "mit", COMMIT)
    assert list(Path(tmp_path / "hf").rglob(WEIGHTS))
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*words[:4], "hf:other/coca"], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "HF_HUB_OFFLINE is set" in done.stderr
