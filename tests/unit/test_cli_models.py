"""`coca models` and `coca convert`: what they keep, what they print, and what they refuse to overwrite or delete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from tests import published, tiny
from tests.published import COMMIT, DESCRIPTION, WEIGHTS, Hub

from opencoca import checkpoint
from opencoca.cli.main import main
from opencoca.interop import pulled
from opencoca.loading import load, open_model

NAME = "some/coca"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """No pulled models, and one that ships."""
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pulled, "SHIPPED", tmp_path / "pretrained")
    tiny.save_model(tmp_path / "pretrained" / "small")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Hub]:
    with published.serving(Hub({NAME: published.files()})) as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running
    huggingface_hub.close_session()


def told(capsys, *words: str) -> list[list[str]]:
    """The lines of a command that succeeds, cut at tabs."""
    assert main(list(words)) == 0, capsys.readouterr().err
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- models -----------------------------------------------------------------------------------------------------


def test_pull_list_use_verify_and_remove(server, home, capsys):
    (row,) = told(capsys, "models", "pull", NAME)
    assert row[:2] == ["pulled", NAME] and row[3] == "mit" and row[5] == f"hf:{NAME}"
    assert same(load("coca", device="cpu").model, published.model())
    asked = len(server.log)
    assert same(load(f"hf:{NAME}", device="cpu").model, published.model()) and len(server.log) == asked
    listed = told(capsys, "models", "list")
    assert [row[0] for row in listed] == [NAME, "small"]
    assert main(["models", "list", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    folder = home / "models" / "some--coca"
    assert first == {
        "name": NAME,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "licence": "mit",
        "sha256": checkpoint.file_digest(folder / checkpoint.MODEL),
        "source": f"hf:{NAME}",
        "revision": COMMIT,
        "folder": str(folder),
        "problem": "",
    }
    assert (second["name"], second["source"]) == ("small", "shipped")
    assert told(capsys, "models", "verify", "coca", "small")[1][:2] == ["verified", "small"]
    card = (folder / checkpoint.CARD).read_text()
    assert 'license: "mit"' in card and COMMIT in card and published.sha256(server.models[NAME][WEIGHTS]) in card
    assert told(capsys, "models", "rm", "coca")[0][:2] == ["removed", NAME]
    assert not folder.exists() and [row[0] for row in told(capsys, "models", "list")] == ["small"]


def test_a_revision_is_not_taken_for_another(server, capsys):
    told(capsys, "models", "pull", f"hf:{NAME}@v1")
    asked = len(server.log)
    load(f"hf:{NAME}@v1", device="cpu")
    assert len(server.log) == asked
    load(f"hf:{NAME}", device="cpu")
    assert len(server.log) > asked


def test_pulling_again_fetches_only_what_changed(server, home, capsys):
    told(capsys, "models", "pull", NAME)
    fetched = len(server.fetched())
    assert told(capsys, "models", "pull", NAME)[0][:2] == ["pulled", NAME] and len(server.fetched()) == fetched
    path = home / "models" / "some--coca" / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    told(capsys, "models", "pull", NAME)
    assert len(server.fetched()) == 2 * fetched and told(capsys, "models", "verify", NAME)
    told(capsys, "models", "pull", f"{NAME}@v1")
    assert len(server.fetched()) == 3 * fetched


def test_what_is_no_coca_is_not_kept(server, home, capsys):
    server.models["a/clip"] = {DESCRIPTION: b'{"model_cfg": {}}', WEIGHTS: server.models[NAME][WEIGHTS]}
    assert "this is a CLIP and not a CoCa" in refused(capsys, "models", "pull", "a/clip")
    assert not (home / "models").exists()


def test_a_damaged_model_is_named_and_can_be_removed(home, capsys):
    folder = tiny.save_model(home / "models" / "some--coca")
    (folder / checkpoint.MODEL).write_bytes(b"short")
    assert main(["models", "list"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith(NAME) and f"{NAME} can't be used" in err
    assert "isn't the file that was saved" in refused(capsys, "models", "verify", NAME)
    assert told(capsys, "models", "rm", NAME)


def test_verify_finds_what_loading_may_not(home, capsys, monkeypatch):
    folder = tiny.save_model(home / "models" / "some--coca")
    path = folder / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    monkeypatch.setattr(checkpoint.folders, "ALWAYS_DIGESTED_BYTES", 0)
    load("coca", device="cpu")
    assert str(path) in refused(capsys, "models", "verify", "coca")


def test_what_rm_will_not_do(home, capsys):
    assert "part of the package" in refused(capsys, "models", "rm", "small")
    assert "no model 'other' has been pulled" in refused(capsys, "models", "rm", "other")
    assert "no model '..' has been pulled" in refused(capsys, "models", "rm", "..")
    for organisation in ("a", "b"):
        tiny.save_model(home / "models" / f"{organisation}--coca")
    said = refused(capsys, "models", "rm", "coca")
    assert "may be" in said and "a/coca" in said and "b/coca" in said
    assert len(told(capsys, "models", "list")) == 3


@pytest.mark.parametrize("words", [["rm"], ["pull"], ["verify"], ["list", "x"], ["known", "x"]])
def test_names_are_where_they_belong(capsys, words):
    assert f"coca models {words[0]} can't do that" in refused(capsys, "models", *words)


def test_an_unknown_action_is_refused(capsys):
    assert main(["models", "push"]) == 2
    assert "push" in capsys.readouterr().err


def test_known_models_are_listed_with_their_size(capsys):
    rows = told(capsys, "models", "known")
    assert ["laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "254M parameters", "mit"] in rows
    assert len(rows) == len(pulled.KNOWN) and all(row[0].count("/") == 1 for row in rows)


def test_nothing_to_list_says_how_to_get_one(tmp_path, capsys):
    shutil.rmtree(tmp_path / "pretrained")
    assert main(["models", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "coca models known" in err
    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_models_are_kept_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENCOCA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert pulled.home() == tmp_path / "cache" / "opencoca"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pulled.home() == tmp_path / ".cache" / "opencoca"


# --- convert ----------------------------------------------------------------------------------------------------


def test_there_and_back_is_exact(tmp_path, capsys):
    source = published.write(tmp_path / "theirs")
    assert told(capsys, "convert", str(source), "ours") == [["ours"]]
    told(capsys, "convert", "ours", "back", "--to", "open_clip")
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    told(capsys, "convert", "back", "again")
    one, two = open_model("ours"), open_model("again")
    assert same(one.model, two.model) and same(one.model, published.model())
    assert one.config == two.config and one.tokenizer.fingerprint == two.tokenizer.fingerprint
    assert one.origin == pulled.Origin("theirs", sha256=checkpoint.file_digest(source / WEIGHTS))
    card = (tmp_path / "back" / checkpoint.CARD).read_text()
    assert "Source: theirs" in card and str(tmp_path) not in card


def test_our_own_settings_survive_their_layout(tmp_path, capsys):
    import dataclasses

    config = published.config()
    config = dataclasses.replace(
        config,
        recipe="mine",
        pixels=dataclasses.replace(config.pixels, fit="pad", fill=7, indexed="smooth"),
        generation=dataclasses.replace(config.generation, beams=3),
    )
    checkpoint.save(
        Path("ours"),
        config,
        published.tokenizer(),
        dict(published.model().named_parameters()),
        state={"step": 3, "metrics": {"loss": 0.5}},
    )
    told(capsys, "convert", "ours", "theirs", "--to", "open_clip")
    assert "| loss | 0.5 |" in Path("theirs/README.md").read_text()
    assert load("theirs", device="cpu").config == config
    described = json.loads(Path("theirs", DESCRIPTION).read_text())
    del described["opencoca"]  # what another program keeps of it
    Path("theirs", DESCRIPTION).write_text(json.dumps(described))
    kept = load("theirs", device="cpu").config
    assert kept.model == config.model and (kept.pixels.fit, kept.pixels.fill) == ("pad", 7)
    described["opencoca"] = tiny.CONFIG.to_dict()
    Path("theirs", DESCRIPTION).write_text(json.dumps(described))
    assert "describe different models" in refused(capsys, "info", "theirs")


def test_a_run_becomes_a_model_with_its_results(tmp_path, capsys):
    state = {"step": 7, "position": 3, "metrics": {"val/loss": 0.25}}
    tiny.save_model(tmp_path / "run", state=state)
    told(capsys, "convert", "run", "model")
    opened = open_model("model")
    assert opened.state == {"step": 7, "metrics": {"val/loss": 0.25}} and opened.origin is None
    assert "| val/loss | 0.25 |" in (tmp_path / "model" / checkpoint.CARD).read_text()


@pytest.mark.parametrize("to", ["opencoca", "open_clip"])
def test_halves_take_half_the_room(tmp_path, capsys, to):
    source = published.write(tmp_path / "theirs")
    told(capsys, "convert", str(source), "whole", "--to", to)
    told(capsys, "convert", str(source), "half", "--to", to, "--dtype", "float16")
    name = checkpoint.MODEL if to == "opencoca" else WEIGHTS
    whole, half = (tmp_path / folder / name for folder in ("whole", "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    one, two = load("whole", device="cpu").model, load("half", device="cpu").model
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert b.dtype == torch.float32
        # Theirs holds [CLS] and the like as vectors as well, which stay as they are.
        assert torch.equal(b, a.half().float() if a.dim() > 1 else a), name


def test_convert_overwrites_nothing(tmp_path, capsys):
    source = str(tiny.save_model(tmp_path / "model"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    for to in ("opencoca", "open_clip"):
        for target in ("mine", "mine/precious.txt", source):
            assert "isn't overwritten" in refused(capsys, "convert", source, target, "--to", to)
    (tmp_path / "empty").mkdir()
    told(capsys, "convert", source, "empty")
    assert same(load("empty", device="cpu").model, load(source, device="cpu").model)


def test_a_model_of_the_paper_has_no_place_in_their_layout(tmp_path, capsys):
    source = str(tiny.save_model(tmp_path / "model"))
    assert "isn't of OpenCLIP's layout" in refused(capsys, "convert", source, "out", "--to", "open_clip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pretrained"]


def test_damage_is_not_converted(tmp_path, capsys, monkeypatch):
    path = tiny.save_model(tmp_path / "model") / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    monkeypatch.setattr(checkpoint.folders, "ALWAYS_DIGESTED_BYTES", 0)
    assert "isn't the file that was saved" in refused(capsys, "convert", "model", "out")
