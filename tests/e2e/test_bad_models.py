"""Model folders that can't be used, and recipes that aren't there: one clear line each, with the repair."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import refusals, tiny
from tests.refusals import COMMANDS, assert_refused

from opencoca import checkpoint, recipes
from opencoca.cli.main import main
from opencoca.config import Config, PoolerConfig
from opencoca.errors import ConfigError
from opencoca.interop import pulled
from opencoca.model.init import build

model = refusals.model
folder = refusals.folder


def remove(name: str) -> Callable[[], None]:
    return lambda: Path("model", name).unlink()


def flip(name: str) -> Callable[[], None]:
    def change() -> None:
        content = bytearray(Path("model", name).read_bytes())
        content[len(content) // 2] ^= 1
        Path("model", name).write_bytes(content)

    return change


def wider() -> Config:
    model = dataclasses.replace(tiny.CONFIG.model, pooler=PoolerConfig(num_queries=7))
    return dataclasses.replace(tiny.CONFIG, model=model)


def foreign_weights() -> None:
    """The weights of another configuration, copied into the folder."""
    checkpoint.save(Path("other"), wider(), tiny.tokenizer(), dict(build(wider().model).named_parameters()))
    shutil.copy("other/model.safetensors", "model/model.safetensors")


def foreign_weights_with_manifest() -> None:
    """A folder that was written with weights that don't belong to its configuration."""
    weights = dict(build(wider().model).named_parameters())
    checkpoint.save(Path("model"), tiny.CONFIG, tiny.tokenizer(), weights)


def cut_weights() -> None:
    whole = Path("model/model.safetensors").read_bytes()
    Path("model/model.safetensors").write_bytes(whole[:-100])


def no_folder() -> None:
    shutil.rmtree("model")


def emptied() -> None:
    no_folder()
    Path("model").mkdir()


def a_file() -> None:
    no_folder()
    Path("model").write_text("x")


def manifest_of_something_else() -> None:
    Path("model/manifest.json").write_text('{"name": "an app"}')


def manifest_of_the_future() -> None:
    manifest = json.loads(Path("model/manifest.json").read_text())
    Path("model/manifest.json").write_text(json.dumps(manifest | {"version": 99}))


def latest_names_nothing() -> None:
    no_folder()
    Path("model/checkpoints").mkdir(parents=True)
    Path("model/checkpoints/latest").write_text("step-00000005\n")


FILES = ("model.safetensors", "config.json", "tokenizer.json", "state.json")
TRAIN, RESTORE = "train one with `coca quickstart`", "restore it from a copy"
MODELS: list[tuple[str, Callable[[], None], str, str]] = [
    *((f"without {name}", remove(name), f"model lacks {name}", "copy the folder again") for name in FILES),
    *((f"flipped {name}", flip(name), f"model/{name} isn't the file that was saved", RESTORE) for name in FILES),
    ("without manifest.json", remove("manifest.json"), "model holds no model: neither manifest.json", TRAIN),
    ("cut weights", cut_weights, "model/model.safetensors isn't the file that was saved", RESTORE),
    ("foreign weights", foreign_weights, "model/model.safetensors isn't the file that was saved", RESTORE),
    ("foreign weights, saved so", foreign_weights_with_manifest, "model/model.safetensors doesn't fit", "restore"),
    ("foreign manifest", manifest_of_something_else, "model/manifest.json isn't an OpenCoCa manifest", "restore"),
    ("future manifest", manifest_of_the_future, "model has format version 99", "pip install -U opencoca"),
    ("no folder", no_folder, "model doesn't exist", "coca quickstart"),
    ("empty folder", emptied, "model holds no model", TRAIN),
    ("a file", a_file, "model holds no model", TRAIN),
    (
        "latest names nothing",
        latest_names_nothing,
        "latest names 'step-00000005'",
        "write the name of another checkpoint",
    ),
]


@pytest.mark.parametrize(("make", "what", "repair"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
@pytest.mark.parametrize("command", ["caption", "info"])
def test_a_bad_model_folder(folder, capsys, command, make, what, repair):
    make()
    words = ["info", "model"] if command == "info" else [*COMMANDS[command], "--model", "model"]
    assert_refused(words, capsys, what, repair)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_model_of_ones_own_the_shipped_one_serves(folder, capsys, command):
    assert main(COMMANDS[command]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_model_at_all(folder, capsys, monkeypatch, command):
    monkeypatch.setattr(pulled, "SHIPPED", folder / "nothing")
    assert_refused(COMMANDS[command], capsys, "no trained model under runs/", "`coca quickstart`")


@pytest.mark.parametrize(("name", "said"), [("openmojy", "did you mean 'openmoji'?"), ("zzz", "there are: ")])
def test_an_unknown_recipe(name, said):
    with pytest.raises(ConfigError, match=f"no recipe is called '{name}'") as raised:
        recipes.get(name)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
