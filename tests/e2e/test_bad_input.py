"""Bad input to `coca`: exit code 2 and one line on standard error that names the file and the repair."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import refusals
from tests.refusals import COMMANDS, assert_refused

model = refusals.model
folder = refusals.folder


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
