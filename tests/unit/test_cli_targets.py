"""Files and folders that can't be written: refused in a line with the repair, before any work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests import tiny

from opencoca.cli.main import main
from opencoca.cli.targets import check_file, check_folder
from opencoca.data.shards import ShardWriter
from opencoca.errors import DataError, unwritable


@pytest.mark.parametrize(
    ("error", "instead", "said"),
    [
        (OSError(errno.ENOSPC, "No space"), "", "can't write f (No space); free some space or choose another folder"),
        (OSError(errno.ENOSPC, "No space"), "do so", "can't write f (No space); free some space or do so"),
        (OSError(errno.EACCES, "No"), "", "can't write f (No); choose a folder that you may write to, or change its"),
        (OSError(errno.EACCES, "No"), "do so", "can't write f (No); do so"),
        (OSError(errno.EROFS, "Read-only"), "", "can't write f (Read-only); choose another folder"),
        (
            OSError(errno.EFBIG, "Big"),
            "",
            "can't write f (Big); raise the limit on the size of files (`ulimit -f`) or ch",
        ),
        (
            OSError(errno.EFBIG, "Big"),
            "do so",
            "can't write f (Big); raise the limit on the size of files (`ulimit -f`) or do so",
        ),
        (ValueError("I/O error (os error 27)"), "", "can't write f (I/O error (os error 27)); raise the limit"),
        (ValueError("I/O error (os error 28)"), "", "can't write f (I/O error (os error 28)); free some space"),
    ],
)
def test_the_repair_fits_the_reason(error, instead, said):
    assert unwritable("f", error, instead).startswith(said)


def test_a_check_leaves_nothing_behind(tmp_path):
    check_file(tmp_path / "new" / "page.html")
    check_folder(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a folder; name a file"):
        check_file(tmp_path)
    with pytest.raises(DataError, match=r"can't write .*file/run \(Not a directory\)"):
        check_folder(tmp_path / "file" / "run")


@pytest.fixture
def forbidden(tmp_path, monkeypatch) -> Path:
    """A folder that nobody may write to, not even root."""
    folder, real = tmp_path / "mine", os.open
    folder.mkdir()

    def refuse(path, flags, *args, **options):
        if str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *args, **options)

    def no_folder(self, *args, **options):
        if not self.is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "touch", lambda self, *args, **options: os.close(os.open(self, os.O_CREAT | os.O_WRONLY)))
    monkeypatch.setattr(Path, "mkdir", no_folder)
    return folder


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["eval", "nosuch", "--suite", "smoke", "--report", "{}/out.html"], "{}/out.html"),
        (["eval", "nosuch", "--suite", "smoke", "--json", "{}/out.json"], "{}/out.json"),
        (["search", ".", "a boat", "--html", "{}/found.html"], "{}/found.html"),
        (["train", "tiny", "--run", "{}/run"], "{}/run"),
        (["finetune", "nosuch.csv", "--run", "{}/run"], "{}/run"),
    ],
)
def test_what_options_name_is_refused_before_any_work(forbidden, capsys, words, named):
    assert main([word.format(forbidden) for word in words]) == 2
    said = f"coca: error: can't write {named.format(forbidden)} (Permission denied); choose a folder"
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_shards_in_a_forbidden_folder_need_no_space(forbidden):
    with pytest.raises(DataError, match=r"\(Permission denied\); choose a folder that you may"), ShardWriter(forbidden):
        pass


@pytest.mark.parametrize(
    ("words", "repair"),
    [
        (
            ["search", "pics", "boat"],
            "search without an index by --no-cache, or keep it beside the pictures: coca",
        ),
        (["index", "pics"], "keep it beside the pictures: coca index pics --here"),
    ],
)
def test_a_cache_that_cannot_be_written_names_what_does_without(tmp_path, capsys, monkeypatch, words, repair):
    model = tiny.save_model(tmp_path / "model")
    tiny.save_picture(tmp_path / "pics" / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").touch()  # a file, in which no folder can be made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*words, "--model", str(model)]) == 2
    err = capsys.readouterr().err
    assert "(Not a directory); " in err and repair in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["caption", "--output", "/proc/x.csv"], ["embed", "--output", "/proc/x.npz"]])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_that_takes_no_files_is_no_bug(tmp_path, capsys, words):
    model, picture = tiny.save_model(tmp_path / "model"), tiny.save_picture(tmp_path / "a.png", 1)
    command, *rest = words
    assert main([command, str(picture), "--model", str(model), *rest]) == 2
    said = f"coca: error: can't write {rest[1]} (No such file or directory); choose another folder\n"
    assert capsys.readouterr().err == said
