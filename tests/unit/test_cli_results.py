"""What `coca caption` reads and writes: lists, forms, files that a rerun completes, colours; on an untrained model."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from tests import commands, tiny
from tests.commands import ALL, interrupt_after, ran, read_csv

from opencoca.cli import options
from opencoca.cli.main import main
from opencoca.cli.pictures import find

model, predictor, folder = commands.model, commands.predictor, commands.folder


def without_digits(content: bytes) -> bytes:
    """All but the last digits of log-probabilities, which depend on how many pictures pass the model at once."""
    return re.sub(rb"(-\d+\.\d{4})\d*", rb"\1", content)


# --- a list on standard input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "meant"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\r\nb.png", ["a.png", "b.png"]),
        (b"a\nb.png\0c.png\0", ["a\nb.png", "c.png"]),
        (b"pics\n\nmissing[1].png\n", [*ALL, "missing[1].png"]),
        (b"caf\xe9.png\n", ["caf\udce9.png"]),
        (b"x" * 5000 + b"\n", ["x" * 5000]),
    ],
)
def test_a_dash_is_the_list_on_standard_input(folder, monkeypatch, listed, meant):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert [path.as_posix() for path in find([Path("-")]).paths] == meant


def test_a_listed_file_that_is_missing_stops_no_other(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nosuch.png\npics/2.png\n")))
    out, err = ran(capsys, "caption", "-", "--beams", "1", code=3)
    assert [line.split("\t")[0] for line in out.splitlines()] == ["pics/2.png"]
    assert err.splitlines() == ["skipped nosuch.png: it does not exist; check the path", "1 done, 1 skipped"]


def test_an_empty_list_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    _, err = ran(capsys, "caption", "-", code=2)
    assert "standard input lists no picture" in err


# --- forms of output ---------------------------------------------------------------------------------------------


def test_caption_in_every_form_says_the_same(folder, predictor, capsys):
    captions = predictor.captions(ALL, beams=2, num_captions=2)
    words = ["caption", "pics", "--beams", "2", "--num-captions", "2"]
    records = json.loads(ran(capsys, *words, "--json")[0])
    assert [json.loads(line) for line in ran(capsys, *words, "--jsonl")[0].splitlines()] == records
    rows = read_csv(ran(capsys, *words, "--csv")[0])
    for record, row, path, some in zip(records, rows, ALL, captions, strict=True):
        assert (record["path"], row["path"]) == (path, path)
        assert [one["caption"] for one in record["captions"]] == [one.text for one in some]
        assert (record["caption"], record["log_prob"]) == (some[0].text, pytest.approx(some[0].log_prob))
        assert [row["caption"], row["caption_2"]] == [one.text for one in some]
        assert float(row["log_prob_2"]) == pytest.approx(some[1].log_prob)


def test_options_reach_the_model(folder, predictor, capsys):
    words = ["--temperature", "2", "--top-k", "30", "--seed", "7", "--max-tokens", "5", "--prompt", "red"]
    out, _ = ran(capsys, "caption", "pics", *words, "--json")
    expected = predictor.caption(ALL, prompt="red", temperature=2.0, top_k=30, seed=7, max_tokens=5)
    assert [record["caption"] for record in json.loads(out)] == expected
    assert all(caption.startswith("red") for caption in expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "--csv"], "--json and --csv were given; choose one"),
        (["--output", "a.csv", "--write", "xmp"], "choose one of the two"),
        (["--overwrite"], "no file to replace"),
        (["--output", "a.dat"], "end its name in .tsv"),
        (["--output", "pics", "--csv"], "pics is a folder"),
        (["--top-p", "0.9"], "--top-p 0.9 changes nothing"),
        (["--num-captions", "0"], "num_captions 0"),
        (["--beams", "2", "--num-captions", "3"], "give as many beams"),
        (["--prompt", "red " * 99], "shorten it"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder, capsys, words, said):
    out, err = ran(capsys, "caption", "pics", *words, code=2)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not Path("a.csv").exists()


def test_every_field_of_the_generation_group_is_one_of_the_model(predictor):
    known = {name for name in vars(predictor.config.generation)}
    assert {name for name in vars(options.Generation())} <= known


# --- a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "out.json", "out.jsonl"])
def test_ctrl_c_keeps_what_is_done_and_a_rerun_completes_it(folder, predictor, monkeypatch, capsys, name):
    words = ["caption", "pics", "--beams", "1", "--output"]
    ran(capsys, *words, f"whole/{name}")
    with monkeypatch.context() as patched:
        interrupt_after(patched, predictor, batches=2)
        out, err = ran(capsys, *words, name, code=130)
    assert out == ""
    assert err == f"2 done, kept in {name}; the same command does the rest\ncoca: interrupted\n"
    assert ran(capsys, *words, name) == ("", "1 done, 2 there already\n")
    complete = Path(name).read_bytes()
    assert without_digits(complete) == without_digits(Path("whole", name).read_bytes())
    assert ran(capsys, *words, name) == ("", "0 done, 3 there already\n")
    assert Path(name).read_bytes() == complete


def test_bad_pictures_are_tried_again_by_a_rerun(folder, capsys):
    Path("pics/3.png").write_bytes(b"")
    words = ["caption", "pics", "--beams", "1", "--output", "out.csv"]
    for done in ("3 done, 1 skipped", "0 done, 3 there already, 1 skipped"):
        _, err = ran(capsys, *words, code=3)
        assert err.splitlines() == ["skipped pics/3.png: it is empty (0 bytes); copy or download it again", done]
    tiny.save_picture(Path("pics/3.png"), 9)
    assert ran(capsys, *words)[1] == "1 done, 3 there already\n"
    assert len(read_csv(Path("out.csv").read_bytes().decode())) == 4


def test_a_rerun_with_another_model_or_other_options_is_refused(folder, monkeypatch, capsys):
    words = ["caption", "pics", "--output", "out.csv"]
    ran(capsys, *words, "--beams", "1")
    before = Path("out.csv").read_bytes()
    _, err = ran(capsys, *words, "--beams", "2", code=2)
    assert "out.csv was written with beams 1, and now it is 2" in err
    other = tiny.predictor(seed=1)
    monkeypatch.setattr("opencoca.loading.load", lambda name: other)
    _, err = ran(capsys, *words, "--beams", "1", code=2)
    assert "out.csv was written with another model" in err
    assert Path("out.csv").read_bytes() == before
    assert ran(capsys, *words, "--beams", "1", "--overwrite")[1] == "3 done\n"
    assert Path("out.csv").read_bytes() != before


def test_json_on_standard_output_is_whole_after_ctrl_c(folder, predictor, monkeypatch, capsys):
    interrupt_after(monkeypatch, predictor, batches=2)
    out, _ = ran(capsys, "caption", "pics", "--beams", "1", "--json", code=130)
    assert [record["path"] for record in json.loads(out)] == ALL[:2]


# --- how it looks ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "coloured"), [("TERM", True), ("NO_COLOR", False)])
def test_no_color_holds_on_a_terminal(folder, monkeypatch, variable, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(variable, "xterm-256color")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["caption", "pics", "--beams", "1"]) == 0
    assert ("\x1b[36m" in terminal.getvalue()) == coloured
