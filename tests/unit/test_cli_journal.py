"""The forms of output, and the file of --output: whole after any crash, gone on with by a rerun, never mixed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opencoca.cli import forms
from opencoca.cli.forms import Row
from opencoca.cli.journal import Journal, about_file
from opencoca.errors import DataError

HEADER = ["path", "caption", "log_prob"]
ABOUT = {"command": "caption", "model": "abc", "options": {"beams": 8, "prompt": ""}}
FORMS = ["tsv", "jsonl", "json", "csv"]

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


def row(name: str, caption: str = "a cat") -> Row:
    return Row((name, caption), {"path": name, "caption": caption, "log_prob": -1.5}, (name, caption, -1.5))


def journal(file: Path, form: str = "tsv", about: dict = ABOUT, overwrite: bool = False) -> Journal:
    return Journal(file, forms.named(form, HEADER), about, overwrite)


def write(file: Path, names: list[str], form: str = "tsv", **options) -> int:
    """Writes what is left of `names`, row by row, and tells how many that were."""
    opened = journal(file, form, **options)
    left = [name for name, wanted in zip(names, opened.left(names), strict=True) if wanted]
    for name in left:
        opened.add([row(name)])
    opened.finish()
    opened.close()
    return len(left)


@pytest.mark.parametrize("form", FORMS)
@given(names=NAMES, cut=st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_file_torn_anywhere_is_completed_to_the_same_bytes(tmp_path_factory, form, names, cut):
    folder = tmp_path_factory.mktemp("torn")
    write(folder / "whole", names, form)
    whole = (folder / "whole").read_bytes()
    file = folder / "torn"
    write(file, names, form)
    file.write_bytes(whole[: cut % (len(whole) + 1)])
    write(file, names, form)
    assert file.read_bytes() == whole
    assert write(file, names, form) == 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize("form", FORMS)
def test_the_file_is_whole_after_every_row(tmp_path, form):
    opened = journal(tmp_path / "out", form)
    for count, name in enumerate(["a,1.png", 'b"2.png', "c\n3.png"], start=1):
        opened.add([row(name)])
        text = (tmp_path / "out").read_bytes().decode()
        if form == "csv":
            assert len(list(csv.reader(io.StringIO(text, newline="")))) == count + 1
        elif form == "json":
            assert len(json.loads(text)) == count
        else:
            assert text.endswith("\n") and len(text.splitlines()) == count
    opened.close()


def test_csv_is_as_rfc_4180_has_it(tmp_path):
    names = ["plain.png", "a,b.png", 'say "x".png', "two\nlines.png", "é.png"]
    write(tmp_path / "out.csv", names, "csv")
    raw = (tmp_path / "out.csv").read_bytes()
    assert raw.startswith(b"path,caption,log_prob\r\nplain.png,a cat,-1.5\r\n")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [record["path"] for record in csv.DictReader(file)] == names


def test_an_empty_json_file_is_an_empty_list(tmp_path):
    write(tmp_path / "out.json", [], "json")
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_names_that_are_written_alike_have_a_row_each(tmp_path):
    names = ["a\tb.png", "a\\tb.png"]
    assert write(tmp_path / "out", names) == 2
    assert write(tmp_path / "out", names) == 0


def test_a_name_that_is_not_unicode_is_found_again(tmp_path):
    for form in FORMS:
        assert write(tmp_path / form, ["caf\udce9.png", "b.png"], form) == 2
        assert write(tmp_path / form, ["caf\udce9.png", "b.png"], form) == 0
    assert json.loads((tmp_path / "json").read_bytes())[0]["path"] == "caf\udce9.png"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({**ABOUT, "model": "xyz"}, ["another model", "--model"]),
        ({**ABOUT, "command": "ask"}, ["command 'caption', not 'ask'"]),
        ({**ABOUT, "options": {"beams": 1, "prompt": ""}}, ["beams 8, and now it is 1", "give the same"]),
        ({**ABOUT, "options": {"beams": 8, "prompt": "x" * 99}}, ['prompt "", and now it is "xxx']),
    ],
)
def test_rows_of_another_model_or_of_other_options_are_refused(tmp_path, about, said):
    file = tmp_path / "out.tsv"
    write(file, ["a.png"])
    before = file.read_bytes()
    with pytest.raises(DataError) as raised:
        journal(file, about=about)
    for part in [str(file), "--overwrite", *said]:
        assert part in str(raised.value)
    assert file.read_bytes() == before
    assert write(file, ["b.png"], about=about, overwrite=True) == 1
    assert file.read_text() == "b.png\ta cat\n"
    assert json.loads(about_file(file).read_text())["model"] == about["model"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_somebody_else_wrote_is_left_alone(tmp_path, form):
    file = tmp_path / "notes"
    file.write_text("dear diary\n")
    with pytest.raises(DataError, match="is there already"):
        journal(file, form)
    assert file.read_text() == "dear diary\n"


@pytest.mark.parametrize(
    ("form", "content"), [("jsonl", "{}\n"), ("json", "{\n"), ("json", "[\nx\n]\n"), ("csv", "a,b\n1,2\n")]
)
def test_a_file_that_was_changed_beyond_recognition_is_refused(tmp_path, form, content):
    file = tmp_path / "out"
    write(file, ["a.png"], form)
    file.write_text(content)
    with pytest.raises(DataError, match=f"isn't {form} as it was written"):
        journal(file, form)
    assert file.read_text() == content


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        journal(tmp_path)


def test_two_commands_cannot_write_one_file(tmp_path):
    pytest.importorskip("fcntl")
    first = journal(tmp_path / "out")
    with pytest.raises(DataError, match="being written by another command"):
        journal(tmp_path / "out")
    first.close()
    journal(tmp_path / "out").close()


def test_a_full_disk_leaves_the_rows_before_it(tmp_path, monkeypatch):
    opened = journal(tmp_path / "out.json", "json")
    opened.add([row("a.png")])
    real, torn = opened._file.write, []

    def write_half(content):
        if torn:
            return real(content)
        torn.append(real(content[: len(content) // 2]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opened, "_file", Wrapped(opened._file, write_half))
    with pytest.raises(OSError, match="No space"):
        opened.add([row("b.png")])
    opened.close()
    assert torn
    assert [record["path"] for record in json.loads((tmp_path / "out.json").read_text())] == ["a.png"]


class Wrapped:
    """A file with another `write`."""

    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)
