"""Bad input to `coca`: exit code 2 and one line on standard error that names the file and the repair."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca import checkpoint, recipes
from opencoca.cli.main import main
from opencoca.config import Config, PoolerConfig
from opencoca.errors import ConfigError
from opencoca.interop import pulled
from opencoca.model.init import build

COMMANDS = {
    "caption": ["caption", "good.png"],
    "classify": ["classify", "good.png", "--labels", "cat,dog"],
    "search": ["search", "pictures", "a boat"],
    "info": ["info"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    state = {"step": 1, "position": 1, "metrics": {}}
    return tiny.save_model(tmp_path_factory.mktemp("models") / "good", state=state)


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a good picture, a folder of one, a good model called `model`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save_picture(Path("good.png"), size=(60, 60))
    tiny.save_picture(Path("pictures/good.png"))
    shutil.copytree(model, "model")
    return tmp_path


def assert_refused(words: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """`coca WORDS` exits with 2, prints nothing, and says one line that holds every part of `said`."""
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("coca: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    for part in said:
        assert part in err


# --- pictures ---------------------------------------------------------------------------------------------------


def missing() -> None:
    pass


def zero_bytes() -> None:
    Path("bad.png").write_bytes(b"")


def truncated() -> None:
    whole = Path("good.png").read_bytes()
    Path("bad.png").write_bytes(whole[: len(whole) // 2])


def only_a_header() -> None:
    Path("bad.png").write_bytes(Path("good.png").read_bytes()[:20])


def text() -> None:
    Path("bad.png").write_text("no picture at all")


def save_header(side_px: int) -> None:
    """A PNG whose header promises so many pixels a side, with no data behind it."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0), b"IDAT", b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def huge() -> None:
    save_header(10_000)


def bomb() -> None:
    save_header(30_000)  # so many that Pillow refuses by itself


def dead_link() -> None:
    Path("bad.png").symlink_to("gone.png")


def empty_folder() -> None:
    Path("bad.png").mkdir()


PICTURES: list[tuple[Callable[[], None], str, str]] = [
    (missing, "does not exist", "check the path"),
    (dead_link, "does not exist", "check the path"),
    (zero_bytes, "is empty (0 bytes)", "copy or download it again"),
    (truncated, "is truncated or damaged", "copy or download it again"),
    (only_a_header, "damaged", "replace it"),
    (text, "is not a JPEG, PNG", "convert or replace it"),
    (huge, "10000 x 10000 pixels, more than 64,000,000", "make it smaller"),
    (bomb, "more than 64,000,000 pixels", "make it smaller"),
    (empty_folder, "holds no pictures", "name another folder"),
]


@pytest.mark.parametrize("command", ["caption", "classify"])
@pytest.mark.parametrize(("make", "what", "repair"), PICTURES, ids=[make.__name__ for make, *_ in PICTURES])
def test_a_bad_picture(folder, capsys, command, make, what, repair):
    make()
    _, _, *options = COMMANDS[command]
    assert_refused([command, "bad.png", *options, "--model", "model"], capsys, "bad.png", what, repair)


def test_the_installed_command_says_nothing_else(folder):
    zero_bytes()
    words = [sys.executable, "-m", "opencoca", "caption", "bad.png", "--model", "model"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    said = "coca: error: bad.png is empty (0 bytes); copy or download it again\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize("command", ["caption", "classify"])
def test_a_picture_without_permission(folder, capsys, monkeypatch, command):
    real = Path.open

    def refuse(self: Path, *args, **options):  # root may read everything, so chmod alone would test nothing there
        if self.name == "good.png":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused([*COMMANDS[command], "--model", "model"], capsys, "good.png can't be read", "change its permissions")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["caption", "*.jpg"], ["*.jpg matches no file", "check the pattern"]),
        (["caption", "good.png/x.png"], ["good.png/x.png can't be opened", "check the path"]),
        (["caption", "x" * 300 + ".png"], ["can't be opened", "check the path"]),
        (["search", "nosuch", "a boat"], ["nosuch does not exist", "check the path"]),
        (["search", "good.png", "a boat"], ["good.png is a file", "name the folder"]),
        (["search", "model", "a boat"], ["model holds no pictures", "name another folder"]),
        (["search", "pictures", "  "], ["query is empty", "say what to look for"]),
        (["search", "pictures"], ["no query given", "coca search --help"]),
        (["search", "pictures", "a boat", "--top", "0"], ["--top 0", "1 picture or more"]),
    ],
    ids=lambda value: value[1][:12] if len(value) > 1 and value[0] in ("caption", "search") else "",
)
def test_bad_words(folder, capsys, words, said):
    assert_refused([*words, "--model", "model"], capsys, *said)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("cat,dog,cat", ["repeated: ['cat']", "must differ"]),
        ("cat", ["'cat' is the only label", "give two"]),
        ("", ["no label in ''", "separate labels by commas, as in cat,dog"]),
        (" , ", ["no label in ' , '", "separate labels by commas, as in cat,dog"]),
    ],
)
def test_bad_labels(folder, capsys, labels, said):
    assert_refused(["classify", "good.png", "--labels", labels, "--model", "model"], capsys, *said)


def test_a_template_without_a_place_for_the_label(folder, capsys):
    words = [*COMMANDS["classify"], "--template", "a photo", "--model", "model"]
    assert_refused(words, capsys, "'a photo'", "needs {} where the label goes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], ["no recipe is called 'nosuch'", "openmoji"]),
        (["openmojy"], ["did you mean 'openmoji'?"]),
        (["tiny", "--data", "nowhere"], ["nowhere"]),
        (["tiny", "--set", "optim.peek_lr=1"], ["'optim.peek_lr=1'", "did you mean peak_lr?"]),
        (["tiny", "--set", "optim.steps=many"], ["optim.steps", "'many'"]),
        (["tiny", "--set", "optim.steps=1"], ["warmup_steps 2", "steps 1"]),
    ],
)
def test_bad_training(folder, capsys, words, said):
    assert_refused(["train", *words, "--run", "run"], capsys, *said)


# --- models -----------------------------------------------------------------------------------------------------


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
