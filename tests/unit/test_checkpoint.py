"""Checkpoints: bit for bit, whole or not at all, and no damage unnoticed."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import drawing, tiny_tokenizer

import opencoca
from opencoca import checkpoint, recipes
from opencoca.checkpoint import CARD, CONFIG, MANIFEST, MODEL, ORIGIN, STATE, TOKENIZER, TRAINING
from opencoca.errors import CheckpointError
from opencoca.model.init import build
from opencoca.model_card import Origin
from opencoca.train.state import fresh_state, load_state, save_state

FILES = [MODEL, TRAINING, CONFIG, TOKENIZER, STATE]
CONFIGURATION, VOCABULARY = recipes.tiny.tiny(), tiny_tokenizer()


def write(folder: Path, value: float = 1.0, size: int = 50) -> Path:
    """A checkpoint of the right form with few weights, all of them `value`."""
    weights = {"a": torch.full((size,), value), "b": torch.full((3, 2), value)}
    state = {"step": int(value)}
    checkpoint.save(folder, CONFIGURATION, VOCABULARY, weights, {"raw.a": weights["a"] + 0.5}, state)
    return folder


def value_of(folder: Path) -> float:
    """The `value` of a checkpoint, which must be one and the same in all its files."""
    saved = checkpoint.load(folder, training=True)
    assert saved.training is not None and saved.state is not None
    values = {*saved.weights["a"].tolist(), *saved.weights["b"].flatten().tolist()}
    values |= {v - 0.5 for v in saved.training["raw.a"].tolist()} | {float(saved.state["step"])}
    (value,) = values
    return value


def seal(folder: Path, **changes: object) -> None:
    """Makes the manifest agree with whatever now lies in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    manifest = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def refused(folder: Path, *words: str) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, training=True)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


# --- round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tied", "ema_decay", "optimizer"),
    [(False, 0.0, "adamw"), (False, 0.9, "muon"), (True, 0.0, "muon"), (True, 0.9, "adamw")],
)
def test_training_state_comes_back_bit_for_bit(tmp_path, no_wait, tied, ema_decay, optimizer):
    config = dataclasses.replace(
        CONFIGURATION,
        model=dataclasses.replace(
            CONFIGURATION.model, text=dataclasses.replace(CONFIGURATION.model.text, tie_output=tied)
        ),
        optim=dataclasses.replace(CONFIGURATION.optim, ema_decay=ema_decay, optimizer=optimizer),
    )
    state = fresh_state(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for parameter in state.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        state.update_average(ema_decay)
    state.position, state.metrics = 17, {"loss": 0.1 + 0.2}
    assert bool(state.average) == bool(ema_decay)
    save_state(tmp_path / "c", state, config, VOCABULARY)
    back = load_state(tmp_path / "c", config, VOCABULARY, torch.device("cpu"))
    for (name, a), b in zip(state.model.named_parameters(), back.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (back.model.head.weight is back.model.unimodal.tokens.weight) == tied
    assert state.average.keys() == back.average.keys()
    assert all(torch.equal(average, back.average[name]) for name, average in state.average.items())
    for mine, theirs in zip(state.optimizers, back.optimizers, strict=True):
        names = {id(p): n for n, p in (*state.model.named_parameters(), *back.model.named_parameters())}
        moments, restored = ({names[id(p)]: m for p, m in o.state.items()} for o in (mine, theirs))
        assert moments and moments.keys() == restored.keys()
        for name, values in moments.items():
            assert values.keys() == restored[name].keys()
            assert all(torch.equal(value, restored[name][moment]) for moment, value in values.items()), name
    assert (back.step, back.position, back.metrics) == (2, 17, {"loss": 0.1 + 0.2})
    shipped = load_file(tmp_path / "c" / MODEL)
    expected = state.average or dict(state.model.named_parameters())
    assert shipped.keys() == expected.keys() and all(torch.equal(shipped[n], t) for n, t in expected.items())


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_folder_holds_the_state_dict(tmp_path, tied):
    text = dataclasses.replace(CONFIGURATION.model.text, tie_output=tied)
    config = dataclasses.replace(CONFIGURATION, model=dataclasses.replace(CONFIGURATION.model, text=text))
    model = build(config.model, seed=3)
    checkpoint.save(tmp_path / "m", config, VOCABULARY, model.state_dict())
    saved = checkpoint.load(tmp_path / "m")
    assert saved.config == config and saved.tokenizer.fingerprint == VOCABULARY.fingerprint
    assert saved.training is None and saved.state is None
    other = build(config.model, seed=4)
    checkpoint.load_weights(other, saved.weights, "it")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    refused(tmp_path / "m", "can be used for inference but not resumed from")


def test_what_is_loaded_outlives_its_files(tmp_path):
    """Safetensors maps the file into memory: a run that goes on must not hold or see the old one."""
    state = fresh_state(CONFIGURATION, torch.device("cpu"))
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    save_state(tmp_path / "c", state, CONFIGURATION, VOCABULARY)
    back = load_state(tmp_path / "c", CONFIGURATION, VOCABULARY, torch.device("cpu"))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert back.step == 0


# --- damage -----------------------------------------------------------------------------------------------------


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
    refused(folder, "version 3", "upgrade")
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


# --- load_weights -----------------------------------------------------------------------------------------------


def test_weights_of_another_model_are_listed(tmp_path):
    model = build(CONFIGURATION.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    weights["foreign"] = torch.zeros(1)
    del weights["head.weight"]
    weights["log_scale"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(model, weights, "runs/x")
    for words in ("runs/x", "1 missing (head.weight)", "1 foreign (foreign)", "log_scale (2,) instead of (1,)"):
        assert words in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # nothing half done
    weights = {name: tensor for name, tensor in before.items()} | {"log_scale": torch.ones(1, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match="log_scale"):
        checkpoint.load_weights(model, weights, "runs/x")


# --- interruptions ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a save as a kill does: no `except` of ours catches it."""


@pytest.fixture
def no_wait(monkeypatch):
    """The disk is not waited for, which is most of a small save's time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@contextlib.contextmanager
def failing(monkeypatch, at: int, error: BaseException | None, after: bool):
    """Raises `error` at the `at`-th call that touches the disk, before it (writes half done) or after; counts calls."""
    count = [0]

    def wrapped(function, half=None):
        def call(*args, **kwargs):
            count[0] += 1
            mine = count[0] == at
            if mine and error and not after:
                if half:
                    half(*args)
                raise error
            try:
                return function(*args, **kwargs)
            finally:
                if mine and error:
                    raise error

        return call

    write_text = Path.write_text
    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, wrapped(getattr(os, name)))
        patch.setattr(checkpoint, "save_file", wrapped(save_file, lambda _, path: path.write_bytes(b"half")))
        patch.setattr(
            Path,
            "write_text",
            wrapped(write_text, lambda path, text, *_: write_text(path, text[: len(text) // 2], encoding="utf-8")),
        )
        yield count


def calls_of(monkeypatch, action) -> int:
    with failing(monkeypatch, 0, None, False) as count:
        action()
    return count[0]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_inside_a_save_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, no_wait, after):
    calls = calls_of(monkeypatch, lambda: write(write(tmp_path / "c", 1.0), 2.0))
    assert calls > 30
    seen = []
    for at in range(1, calls):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        write(tmp_path / "c", 1.0)
        with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
            write(tmp_path / "c", 2.0)
        seen.append(value_of(tmp_path / "c"))
        if at % 3 == 0:  # killed again, at the same place, while it makes up for it
            with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
                write(tmp_path / "c", 2.0)
            assert value_of(tmp_path / "c") in (1.0, 2.0)
            assert value_of(tmp_path / "c") >= seen[-1]
        write(tmp_path / "c", 3.0)
        assert value_of(tmp_path / "c") == 3.0
        assert leftovers(tmp_path) == []
    assert set(seen) == {1.0, 2.0} and seen == sorted(seen)


def test_a_kill_inside_the_first_save_leaves_nothing_that_loads(tmp_path, monkeypatch, no_wait):
    calls = calls_of(monkeypatch, lambda: write(tmp_path / "c", 1.0))
    for at in range(1, calls + 1):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        with failing(monkeypatch, at, Killed(), False), contextlib.suppress(Killed):
            write(tmp_path / "c", 2.0)
        if (tmp_path / "c").exists():
            assert value_of(tmp_path / "c") == 2.0
        else:
            refused(tmp_path / "c", "doesn't exist")


@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_is_one_clear_line_and_the_old_one_stays(tmp_path, monkeypatch, no_wait, replacing):
    def start():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        if replacing:
            write(tmp_path / "c", 1.0)

    start()
    calls = calls_of(monkeypatch, lambda: write(tmp_path / "c", 2.0))
    errors = 0
    for at in range(1, calls + 1):
        start()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            with failing(monkeypatch, at, full, False):
                write(tmp_path / "c", 2.0)
        except CheckpointError as error:
            errors += 1
            assert "No space left on device" in str(error) and str(tmp_path / "c") in str(error)
            assert "\n" not in str(error)
            if replacing:
                assert (tmp_path / "c").is_dir()
                assert value_of(tmp_path / "c") in (1.0, 2.0)
        else:
            assert value_of(tmp_path / "c") == 2.0  # only tidying up failed
    assert errors > 10


def test_a_full_disk_in_the_weights(tmp_path):
    """The real thing: the system refuses to let a file grow, and safetensors raises an error of its own."""
    write(tmp_path / "c", 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written.*free some space"):
            write(tmp_path / "c", 2.0, size=400_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert value_of(tmp_path / "c") == 1.0
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_latest_moves_leaves_a_run_that_loads(tmp_path, monkeypatch, no_wait, after):
    def begin():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for step in (1, 2):
            checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path / "run", step), step), keep=2)

    def go_on():
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path / "run", 3), 3.0), keep=2)

    begin()
    calls, seen = calls_of(monkeypatch, go_on), []
    for at in range(1, calls + 1):
        begin()
        with failing(monkeypatch, at, Killed(), after), contextlib.suppress(Killed):
            go_on()
        seen.append(value_of(tmp_path / "run"))
        go_on()
        assert value_of(tmp_path / "run") == 3.0
        assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step-00000002", "step-00000003"]
    assert set(seen) == {2.0, 3.0} and seen == sorted(seen)


# --- latest -----------------------------------------------------------------------------------------------------


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_older_checkpoints_are_removed(tmp_path, keep):
    for step in (5, 10, 15, 20):
        checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path, step), step), keep)
        assert steps(tmp_path) == [5, 10, 15, 20][: step // 5][-keep:]
        assert value_of(tmp_path) == step


def test_the_latest_is_never_removed(tmp_path):
    """A run that went back to an older checkpoint has newer folders beside it, which don't push it out."""
    for step in (5, 10, 15):
        write(checkpoint.checkpoint_folder(tmp_path, step), step)
    checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 10), keep=1)
    assert steps(tmp_path) == [10, 15]
    assert value_of(tmp_path) == 10


def test_a_damaged_checkpoint_never_becomes_the_latest(tmp_path):
    for step in (5, 10):
        write(checkpoint.checkpoint_folder(tmp_path, step), step)
    checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 5), keep=1)
    (checkpoint.checkpoint_folder(tmp_path, 10) / MODEL).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=MODEL):
        checkpoint.mark_latest(checkpoint.checkpoint_folder(tmp_path, 10), keep=1)
    assert value_of(tmp_path) == 5


@pytest.mark.parametrize(
    "name", ["step-00000099", "", ".", "..", "../..", "/etc", "step-1/../..", "x" * 5000, "a\0b", "\xff"]
)
def test_a_pointer_that_names_no_checkpoint_is_refused(tmp_path, name):
    checkpoint.mark_latest(write(checkpoint.checkpoint_folder(tmp_path, 5)), keep=2)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.write_bytes(name.encode("latin-1"))
    refused(tmp_path, str(pointer), "write the name of another checkpoint")


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoint.latest_checkpoint(tmp_path) is None
    assert checkpoint.latest_checkpoint(tmp_path / "nowhere") is None


def test_write_atomically_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "file.json"
    checkpoint.write_atomically(path, "old \u00e9")
    checkpoint.write_atomically(path, "new")
    assert path.read_text() == "new" and os.listdir(path.parent) == ["file.json"]


# --- versions, origin, card -------------------------------------------------------------------------------------

VERSION_1 = Path(__file__).parent.parent / "data" / "model_v1"  # a checkpoint written by the last code of version 1


def test_a_folder_of_version_1_gives_what_it_gave():
    expected = json.loads(VERSION_1.with_name("model_v1_expected.json").read_text())
    coca = opencoca.load(VERSION_1, device="cpu")
    found = coca.embed_images([drawing("red", "circle")])[0], coca.embed_texts(["red circle on the left"])[0]
    for embed, values in zip(found, (expected["image"], expected["text"]), strict=True):
        assert (embed - torch.tensor(values)).abs().max() < 1e-6  # measured: 0 on the machine that wrote it


def test_a_run_of_version_1_goes_on(tmp_path):
    shutil.copytree(VERSION_1, tmp_path / "c")
    saved = checkpoint.load(tmp_path / "c", training=True)
    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["version"] == 1
    state = load_state(tmp_path / "c", saved.config, saved.tokenizer, torch.device("cpu"))
    assert (state.step, state.position, state.metrics) == (2, 17, {"val/loss": 0.5})
    save_state(tmp_path / "c", state, saved.config, saved.tokenizer)
    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["version"] == checkpoint.VERSION == 2
    again = checkpoint.load(tmp_path / "c", training=True)
    assert again.config == saved.config and again.digest == saved.digest


def test_the_origin_travels_with_the_model(tmp_path):
    origin = Origin("hf:some/coca", "abc", "mit", "00")
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, {"a": torch.ones(2)}, origin=origin)
    assert checkpoint.load(tmp_path / "m").origin == origin
    assert checkpoint.load(write(tmp_path / "c")).origin is None
    (tmp_path / "m" / ORIGIN).write_text("[]")
    seal(tmp_path / "m")
    with pytest.raises(CheckpointError, match=ORIGIN):
        checkpoint.load(tmp_path / "m")


def test_models_have_a_card_and_training_checkpoints_none(tmp_path):
    weights = {"encoder.a": torch.ones(1234), "head.weight": torch.ones(2, 3)}
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, weights)
    assert "| image encoder | 1,234 |" in (tmp_path / "m" / CARD).read_text()
    assert CARD in checkpoint.verify(tmp_path / "m")
    checkpoint.save(tmp_path / "m", CONFIGURATION, VOCABULARY, weights, card="# Mine \u00e9\n")
    assert (tmp_path / "m" / CARD).read_text(encoding="utf-8") == "# Mine \u00e9\n"
    (tmp_path / "m" / CARD).write_text("# Yours\n")
    with pytest.raises(CheckpointError, match=CARD):
        checkpoint.load(tmp_path / "m")
    assert not (write(tmp_path / "c") / CARD).exists()


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path):
    folder = write(tmp_path / "c")
    assert len({(folder / name).stat().st_mode for name in (CONFIG, MODEL, TRAINING)}) == 1
