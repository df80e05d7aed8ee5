"""`coca data get`: packages are fetched once and checked, archives read member by member, folders made whole or not."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.test_task_data import wheel

from opencoca.cli.main import main
from opencoca.data import easy_vqa
from opencoca.data.get import folder as job
from opencoca.data.get import packages
from opencoca.data.get.packages import Wanted, fetch, write_members
from opencoca.data.get.sets import SETS, DataSet, Files, Made
from opencoca.errors import DataError

CONTENT = b"what is in the package"
TABLE = {
    "some-data": {
        "source": "npm",
        "version": "1.0",
        "file": "some-data-1.0.tgz",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "licence": "MIT",
    }
}


@pytest.fixture
def npm(tmp_path: Path, monkeypatch) -> Path:
    """A tool of that name, which leaves what `content` holds and notes each call in `calls`."""
    tool = tmp_path / "bin" / "npm"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\ncd "$(pwd)"\necho "$@" >> "$NPM_HOME/calls"\ncat "$NPM_HOME/content" > some-data-1.0.tgz\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "content").write_bytes(CONTENT)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("NPM_HOME", str(tmp_path))
    return tmp_path


def test_a_package_is_fetched_once(npm: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        found = fetch(npm / "packages", TABLE, said.append)
    assert found["some-data"].read_bytes() == CONTENT
    assert (npm / "calls").read_text() == "pack --silent some-data@1.0\n"
    assert said == ["fetching some-data 1.0 (MIT) by npm"]
    assert [path.name for path in (npm / "packages").iterdir()] == ["some-data-1.0.tgz"]


def test_what_is_cut_short_never_gets_the_name_and_is_fetched_again(npm: Path) -> None:
    (npm / "content").write_bytes(CONTENT[:-1])
    digest = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(DataError, match=f"has sha256 {digest}, .* is wanted; remove it and fetch again"):
        fetch(npm / "packages", TABLE)
    assert not (npm / "packages/some-data-1.0.tgz").exists()
    (npm / "content").write_bytes(CONTENT)
    assert fetch(npm / "packages", TABLE)["some-data"].read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(npm: Path) -> None:
    (npm / "packages").mkdir()
    (npm / "packages/some-data-1.0.tgz").write_bytes(CONTENT)
    fetch(npm / "packages", TABLE)
    assert not (npm / "calls").exists()
    (npm / "packages/some-data-1.0.tgz").write_bytes(b"another")
    with pytest.raises(DataError, match="remove it and fetch again"):
        fetch(npm / "packages", TABLE)


def test_a_tool_that_is_missing_or_fails_is_named(npm: Path, monkeypatch) -> None:
    (npm / "content").unlink()
    with pytest.raises(DataError, match=r"`npm pack .*` failed \(.*content.*\); .*or put some-data-1.0.tgz into"):
        fetch(npm / "packages", TABLE)
    monkeypatch.setenv("PATH", str(npm))
    with pytest.raises(DataError, match=r"npm is not installed, .* or put some-data-1.0.tgz into"):
        fetch(npm / "packages", TABLE)


def tar_of(names: Sequence[str], mode: str) -> bytes:
    """A tar whose files hold their own names, with a link, a device and a hard link among them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            member = tarfile.TarInfo(f"package/data/{name}.txt")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return file.getvalue()


def deb(data: bytes, name: bytes = b"data.tar.xz") -> bytes:
    parts = [(b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (name, data)]
    packed = b"!<arch>\n"
    for part, content in parts:
        packed += part.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"100644".ljust(8)
        packed += str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)
    return packed


NAMES = (
    "package/data/a.txt",
    "./package/data/b/c.TXT",
    "package/data/run.js",
    "package/database.txt",
    "package/data/../../../outside.txt",
    "/package/data/absolute.txt",
    "package/data/odd\\name.txt",
)


@pytest.mark.parametrize("kind", ["tgz", "deb", "whl"])
def test_of_an_archive_only_the_files_are_read_that_are_wanted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"package.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name in NAMES:
                archive.writestr(name.removeprefix("./"), name)
    else:
        path.write_bytes(tar_of(NAMES, "w:gz") if kind == "tgz" else deb(tar_of(NAMES, "w:xz")))
    assert write_members(path, tmp_path / "out", Wanted(("data",), (".txt",)), "package/") == 2
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_symlink() or p.is_file())
    assert files == ["out/data/a.txt", "out/data/b/c.TXT", f"package.{kind}"]
    assert not (tmp_path.parent / "outside.txt").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GIF89a", "is no Debian package"),
        (deb(b"", b"date.tar.xz"), "has no data.tar inside"),
        (deb(tar_of(NAMES, "w:xz"))[:-200], "can't be read"),
        (deb(b"no tar"), "can't be read"),
        (deb(tar_of(["elsewhere.txt"], "w:xz")), "has no file at package/here"),
    ],
)
def test_damaged_packages_are_named_and_leave_nothing(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "package.deb"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        write_members(path, tmp_path / "out", Wanted(("package/here",)))
    assert [one.name for one in tmp_path.iterdir()] == ["package.deb"]


def test_an_archive_may_not_hold_too_much(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "package.tgz"
    path.write_bytes(tar_of(NAMES, "w:gz"))
    monkeypatch.setattr(packages, "MOST_BYTES", 20)
    with pytest.raises(DataError, match="holds over 100000 files or 20 bytes"):
        write_members(path, tmp_path / "out", Wanted(("package/data",)))
    assert not (tmp_path / "out").exists()


# --- folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch) -> list[str]:
    """The data set "small", made without fetching; the list holds what was made, and "stop" in it stops the making."""
    done: list[str] = []

    def make(folder: Path, files: Files) -> Made:
        folder.mkdir()
        (folder / "a.txt").write_text("a")
        if done == ["stop"]:
            raise KeyboardInterrupt
        done.append("made")
        skipped = (("b", "it can't be drawn"),) if len(done) == 1 else ()
        return Made({"train": 1}, skipped=skipped)

    monkeypatch.setitem(SETS, "small", DataSet("small", "one letter", 0, "MIT", "nobody", "train", make))
    return done


def test_what_is_whole_stays_and_what_was_left_out_is_tried_again(tmp_path: Path, small, capsys) -> None:
    call = ["data", "get", "small", "--out", str(tmp_path / "small")]
    assert main(call) == 3
    out, err = capsys.readouterr()
    assert "state\twritten\nsamples.train\t1\nlicence\tMIT\n" in out and "skipped b: it can't be drawn" in err
    assert main(call) == 0 and small == ["made", "made"]
    capsys.readouterr()
    assert main([*call, "--json"]) == 0 and small == ["made", "made"]
    (report,) = json.loads(capsys.readouterr().out)["data_sets"]
    assert (report["state"], report["samples"]) == ("was there, whole", {"train": 1})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "a.txt").write_text("b"), "isn't as it was written"),
        (lambda folder: (folder / "a.txt").unlink(), "isn't as it was written"),
        (lambda folder: (folder / "more.txt").touch(), "isn't as it was written"),
        (lambda folder: (folder / job.RECORD).write_text("{}"), "didn't write"),
        (lambda folder: (folder / job.RECORD).unlink(), "didn't write"),
    ],
)
def test_changed_and_foreign_folders_are_refused_and_not_touched(tmp_path: Path, small, change, told: str) -> None:
    small.append("before")
    job.get("small", tmp_path / "small", tmp_path / "packages")
    change(tmp_path / "small")
    before = {path: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    with pytest.raises(DataError, match=told):
        job.get("small", tmp_path / "small", tmp_path / "packages")
    assert {path: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before


def test_another_data_set_in_the_folder_is_refused(tmp_path: Path, small, monkeypatch) -> None:
    small.append("before")
    job.get("small", tmp_path / "x", tmp_path / "packages")
    monkeypatch.setitem(SETS, "other", SETS["small"]._replace(name="other"))
    with pytest.raises(DataError, match="holds the data set 'small', not other"):
        job.get("other", tmp_path / "x", tmp_path / "packages")
    monkeypatch.setitem(SETS, "small", SETS["small"]._replace(packages=TABLE))
    with pytest.raises(DataError, match="was made from other packages"):
        job.get("small", tmp_path / "x", tmp_path / "packages")


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path, small) -> None:
    small.append("stop")
    with pytest.raises(KeyboardInterrupt):
        job.get("small", tmp_path / "small", tmp_path / "packages")
    assert not (tmp_path / "small").exists()
    small[:] = ["before"]
    assert job.get("small", tmp_path / "small", tmp_path / "packages").made is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "small"]


def test_easy_vqa_from_its_wheel(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "packages").mkdir()
    path = wheel(tmp_path / "packages" / easy_vqa.WHEEL)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = easy_vqa.PACKAGE["easy-vqa"] | {"sha256": digest}
    monkeypatch.setattr(easy_vqa, "SHA256", digest)
    monkeypatch.setitem(SETS, "easy-vqa", SETS["easy-vqa"]._replace(packages={"easy-vqa": facts}))
    out = tmp_path / "easy"
    assert main(["data", "get", "easy-vqa", "--out", str(out), "--packages", str(path.parent)]) == 0
    assert "remark\tpairs.csv holds out" in capsys.readouterr().out
    record = json.loads((out / job.RECORD).read_text())
    assert record["packages"]["easy-vqa"]["sha256"] == digest and record["licence"] == "MIT"
    assert sum(record["counts"].values()) == len((out / "questions.csv").read_text().splitlines()) - 1


def test_what_the_command_refuses(tmp_path: Path, small, capsys) -> None:
    assert main(["data", "get", "--list"]) == 0
    listed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in listed] == list(SETS) and {len(row) for row in listed} == {5}
    for call, told in (
        (["get"], "takes names of data sets"),
        (["get", "--list", "small"], "takes names of data sets"),
        (["get", "no-such"], "there is no data set 'no-such'; there are: openmoji, drawings"),
        (["get", "small", "stamps", "--out", str(tmp_path)], "--out is one folder, and 2"),
        (["get", "small", "--val-share", "0.5"], "--val-share is for import"),
        (["check"], "check needs a PATH"),
        (["check", "x", "--list"], "--list is for get"),
    ):
        assert main(["data", *call]) == 2
        assert told in capsys.readouterr().err
    assert small == []


def test_every_data_set_says_whose_it_is_and_what_is_read_of_it() -> None:
    for name, one in SETS.items():
        assert one.name == name and one.credit and one.licence and set(one.needs) <= set(SETS)
        assert bool(one.packages) == bool(one.megabytes)
        assert set(one.wanted) <= set(one.packages)
        for facts in one.packages.values():
            assert facts["source"] in ("pip", "npm", "debian") and len(facts["sha256"]) == 64 and facts["licence"]
