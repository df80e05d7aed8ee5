"""`coca caption`, `classify`, `search` and `info`: what they find, print and skip, on an untrained model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests import tiny

from opencoca import checkpoint
from opencoca.cli import output, pictures, progress
from opencoca.cli.forms import JsonList, stdout_is_utf8
from opencoca.cli.main import main
from opencoca.cli.options import OutputOptions
from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.infer.stream import encoded
from opencoca.loading import load

STATE = {"step": 20, "position": 3, "metrics": {"val/i2t_recall@1": 0.25}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny", state=STATE))


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return load(model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures in it: pics/2.png, pics/10.PNG, pics/sub/1.jpg."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("2.png", "10.PNG", "sub/1.jpg")):
        tiny.save_picture(Path("pics", name), seed)
    return tmp_path


ALL = ["pics/2.png", "pics/10.PNG", "pics/sub/1.jpg"]


def names(found: pictures.Found) -> list[str]:
    return [path.as_posix() for path in found.paths]


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


# --- which pictures ---------------------------------------------------------------------------------------------


def test_a_folder_is_its_pictures_in_natural_order_without_hidden_and_other_files(folder):
    for name in ("notes.txt", ".hidden.png", ".thumbnails/3.png", "sub/._1.jpg"):
        file = Path("pics", name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    assert names(pictures.find([Path("pics")])) == ALL


def test_named_files_keep_their_order_count_once_and_may_have_any_suffix(folder):
    Path("picture.dat").write_bytes(b"x")
    found = pictures.find([Path("picture.dat"), Path("pics/2.png"), Path("pics"), Path("pics/2.png")])
    assert names(found) == ["picture.dat", *ALL]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [("pics/*.png", ["pics/2.png"]), ("pics/[0-9]*", ALL[:2]), ("**/*.jpg", ALL[2:]), ("p*", ALL)],
)
def test_patterns_that_the_shell_left_alone_are_expanded(folder, pattern, meant):
    assert names(pictures.find([Path(pattern)])) == meant


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    file = tiny.save_picture(Path("pics/[0-9].png"))
    assert pictures.find([file]).paths == [file]


@pytest.mark.parametrize(
    ("numbered", "ordered"),
    [
        (["a10", "a9", "A1"], ["A1", "a9", "a10"]),
        (["10", "9b", "b", "009"], ["009", "9b", "10", "b"]),
        (["x1y10", "x1y9", "x"], ["x", "x1y9", "x1y10"]),
    ],
)
def test_natural_order(numbered, ordered):
    assert sorted(numbered, key=pictures.natural) == ordered


def test_an_empty_folder_beside_pictures_is_skipped(folder, model, capsys):
    Path("empty").mkdir()
    assert main(["caption", "empty", "pics/2.png", "--model", model, "--beams", "1"]) == 3
    out, err = capsys.readouterr()
    assert len(lines(out)) == 1
    assert err.startswith("skipped empty: it holds no pictures")
    assert err.endswith("\n1 done, 1 skipped\n")


def test_an_unreadable_folder_is_skipped(folder, monkeypatch):
    real = pictures.os.walk

    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", "pics/secret"))
        return real(top, onerror=onerror)

    monkeypatch.setattr(pictures.os, "walk", walk)
    found = pictures.find([Path("pics")])
    assert names(found) == ALL
    assert found.skipped == [(Path("pics/secret"), "can't be read (Permission denied); change its permissions")]


@pytest.mark.parametrize("words", [["caption"], ["classify", "--labels", "a,b"]])
def test_a_missing_path_is_refused_before_any_model_is_loaded(folder, monkeypatch, capsys, words):
    monkeypatch.setattr("opencoca.loading.load", lambda name: pytest.fail("the model was loaded"))
    assert main([*words, "pics", "nosuch.png"]) == 2
    assert capsys.readouterr() == ("", "coca: error: nosuch.png does not exist; check the path\n")


# --- the stream -------------------------------------------------------------------------------------------------


def test_the_stream_reads_no_more_than_a_batch_ahead_and_gives_what_the_predictor_gives(folder):
    predictor = tiny.predictor(batch_size=2)
    paths = [tiny.save_picture(Path(f"{seed}.png"), seed, (30, 20 + seed)) for seed in range(5)]
    paths.insert(1, Path("bad.png"))
    Path("bad.png").write_bytes(b"no picture")
    taken: list[Path] = []
    bad: list[Path] = []
    stream = encoded(predictor, (taken.append(path) or path for path in paths), lambda path, error: bad.append(path))
    batches = [next(stream)]
    assert taken == paths[:5]
    batches += stream
    assert [batch for batch, _ in batches] == [[paths[0], paths[2]], paths[3:5], paths[5:]]
    assert bad == [paths[1]]
    good = [path for path in paths if path not in bad]
    embeds = torch.cat([features.embed for _, features in batches])
    torch.testing.assert_close(embeds, predictor.embed_images(good))


# --- caption ----------------------------------------------------------------------------------------------------


def test_caption_prints_path_tab_caption(folder, model, predictor, capsys):
    assert main(["caption", "pics", "--model", model, "--beams", "2", "--max-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    captions = predictor.caption(ALL, beams=2, max_tokens=4)
    assert lines(out) == [[path, output.shown(caption)] for path, caption in zip(ALL, captions, strict=True)]
    assert err == ""


def test_caption_as_json(folder, model, predictor, capsys):
    assert main(["caption", "pics", "--model", model, "--beams", "1", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["path"] for record in records] == ALL
    assert [record["caption"] for record in records] == predictor.caption(ALL, beams=1)
    assert all(record.keys() == {"path", "caption", "log_prob"} and record["log_prob"] < 0 for record in records)


def test_bad_pictures_are_named_counted_and_skipped(folder, model, capsys):
    Path("pics/1.png").write_bytes(b"")
    Path("pics/3.png").write_bytes(b"no picture")
    assert main(["caption", "pics", "--model", model, "--beams", "1"]) == 3
    out, err = capsys.readouterr()
    assert [path for path, _ in lines(out)] == ALL
    first, second, count = err.splitlines()
    assert first == "skipped pics/1.png: it is empty (0 bytes); copy or download it again"
    assert second.startswith("skipped pics/3.png: it is not a JPEG, PNG")
    assert count == "3 done, 2 skipped"


def test_a_bad_picture_after_good_ones_is_named_at_once(folder, model, monkeypatch, capsys):
    monkeypatch.setattr("opencoca.loading.load", lambda name: tiny.predictor(batch_size=1))
    Path("pics/3.png").write_bytes(b"")
    assert main(["caption", "pics", "--model", model, "--beams", "1", "--json"]) == 3
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 3
    assert [line.split(":")[0] for line in err.splitlines()] == ["skipped pics/3.png", "3 done, 1 skipped"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nothing_but_bad_pictures_is_one_error(folder, model, capsys, options):
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"")
    assert main(["caption", "a.png", "b.png", "--model", model, *options]) == 2
    said = "coca: error: none of 2 could be read; the first: a.png is empty (0 bytes); copy or download it again\n"
    assert capsys.readouterr() == ("", said)


def test_beams_below_one_are_refused(folder, model, capsys):
    assert main(["caption", "pics", "--model", model, "--beams", "0"]) == 2
    assert "beams 0" in capsys.readouterr().err


# --- classify ---------------------------------------------------------------------------------------------------


def test_classify_prints_the_top_label_its_probability_and_the_next(folder, model, predictor, capsys):
    labels = ["red", "blue", "a boat", "lake", "green", "circle"]
    words = ["classify", "pics", "--model", model, "--labels", ",".join(labels)]
    assert main([*words, "--template", "a {}, seen", "--template", "{}"]) == 0
    probabilities = predictor.classify(ALL, labels, templates=["a {}, seen", "{}"])
    expected = []
    for path, row in zip(ALL, probabilities, strict=True):
        shown = [(labels[i], f"{row[i]:.3f}") for i in row.argsort(descending=True).tolist()]
        expected.append([path, *shown[0], ", ".join(f"{label} {value}" for label, value in shown[1:5])])
    assert lines(capsys.readouterr().out) == expected


def test_classify_as_json_has_every_label(folder, model, predictor, capsys):
    labels = list("abcdefgh")
    assert main(["classify", "pics/2.png", "--model", model, "--labels", ",".join(labels), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    expected = dict(zip(labels, predictor.classify("pics/2.png", labels)[0].tolist(), strict=True))
    assert record["probabilities"] == pytest.approx(expected)
    assert list(record["probabilities"].values()) == sorted(expected.values(), reverse=True)
    assert record["label"] == max(expected, key=expected.__getitem__)
    assert record["probability"] == max(record["probabilities"].values())


# --- search -----------------------------------------------------------------------------------------------------


def test_search_ranks_and_a_second_search_says_the_same(folder, model, predictor, capsys):
    words = ["search", "pics", "a boat", "--model", model, "--top", "2"]
    assert main(words) == 0
    first = capsys.readouterr().out
    scores = predictor.embed_images(ALL) @ predictor.embed_texts("a boat")[0]
    best = scores.argsort(descending=True)[:2].tolist()
    assert [path for path, _ in lines(first)] == [ALL[row] for row in best]
    assert [float(score) for _, score in lines(first)] == pytest.approx(scores[best].tolist(), abs=2e-3)
    assert (folder / "cache" / "opencoca" / "indexes").is_dir()
    assert main(words) == 0
    assert capsys.readouterr().out == first


def test_search_takes_unquoted_words_and_prints_json(folder, model, capsys):
    assert main(["search", "pics", "a", "boat", "--model", model, "--no-cache", "--json"]) == 0
    unquoted = capsys.readouterr().out
    assert main(["search", "pics", "a boat", "--model", model, "--no-cache", "--json"]) == 0
    assert capsys.readouterr().out == unquoted
    assert {record["path"] for record in json.loads(unquoted)} == set(ALL)
    assert not (folder / "cache").exists()


def test_search_skips_bad_pictures(folder, model, capsys):
    Path("pics/bad.png").write_bytes(b"")
    again = "skipped 1 that can't be read and were named before; list them with: coca index pics"
    for first in ("skipped pics/bad.png: it is empty (0 bytes); copy or download it again", again, again):
        assert main(["search", "pics", "boat", "--model", model]) == 3
        out, err = capsys.readouterr()
        assert len(lines(out)) == 3
        assert err.splitlines()[:2] == [first, "3 done, 1 skipped"]
    assert main(["index", "pics", "--model", model, "--no-captions"]) == 3
    assert capsys.readouterr().err.startswith("skipped pics/bad.png: it is empty")


def test_search_finds_the_pictures_of_a_query_in_its_folder_too(folder, model, capsys):
    name = next(Path("pics").iterdir()).name
    assert main(["search", "pics", name, "--model", model, "--top", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"pics/{name}\t1.0")


def test_search_names_a_folder_that_is_not_there(folder, model, capsys):
    assert main(["search", "pics", "boat", "--model", model, "--within", "nosuch"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "no folder nosuch in pics; check --within")


# --- info -------------------------------------------------------------------------------------------------------


def test_info_counts_every_parameter_once(model, predictor, capsys):
    assert main(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    parts = facts["parameters"]
    assert parts["total"] == sum(parameter.numel() for parameter in predictor.model.parameters())
    assert sum(parts.values()) == 2 * parts["total"]
    assert facts["forward_flops"]["total"] == sum(facts["forward_flops"].values()) / 2 > 0
    assert facts["recipe"] == "tiny"
    assert (facts["image_size_px"], facts["vocabulary"]) == (16, tiny.tokenizer().vocab_size)
    assert (facts["trained_steps"], facts["metrics"]) == (20, STATE["metrics"])
    assert facts["sha256"] == checkpoint.file_digest(Path(model) / "model.safetensors")
    assert facts["folder"] == str(Path(model).resolve())


def test_info_as_text_of_a_model_without_training_state(tmp_path, capsys):
    folder = tiny.save_model(tmp_path / "bare")
    assert main(["info", str(folder)]) == 0
    facts = dict(lines(capsys.readouterr().out))
    assert facts["trained_steps"] == "unknown"
    assert facts["image_size_px"] == "16"
    assert int(facts["parameters.total"]) > 100_000


def test_info_takes_the_newest_run(folder, capsys):
    for step in (5, 10):
        saved = checkpoint.checkpoint_folder(Path("runs/mine"), step)
        tiny.save_model(saved, state={"step": step, "position": 0, "metrics": {}})
        checkpoint.mark_latest(saved, keep=2)
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["trained_steps"], Path(facts["folder"]).name) == (10, "step-00000010")


# --- how it looks -----------------------------------------------------------------------------------------------


def found(*paths: str) -> pictures.Found:
    return pictures.Found([Path(path) for path in paths], [])


def test_a_terminal_gets_one_aligned_table_over_several_batches():
    console = Console(file=io.StringIO(), force_terminal=True, width=40, no_color=True, legacy_windows=False)
    columns = [output.Column("picture", width=8), output.Column("caption")]
    with output.Output(found("a.png", "long.png"), columns, OutputOptions(), console=console) as out:
        out.rows([output.Row(("a.png", "red circle"), {})])
        out.rows([output.Row(("long.png", "[bold]blue[/bold] \x1b[31m" + "x" * 30), {})])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    plain = [line.rstrip() for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert plain[:2] == ["picture   caption", "a.png     red circle"]
    assert "".join(line[10:] for line in plain[2:]) == "[bold]blue[/bold]\\x1b[31m" + "x" * 30
    assert all(len(line) <= 40 for line in plain)
    assert "\x1b[31m" not in text


def test_a_pipe_gets_neither_colours_nor_control_characters(folder, model, capsys):
    tiny.save_picture(Path("one\ttwo\n\x1b[31m.png"))
    assert main(["caption", "one\ttwo\n\x1b[31m.png", "--model", model, "--beams", "1"]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in lines(out)] == ["one\\ttwo\\n\\x1b[31m.png"]
    assert main(["caption", "one\ttwo\n\x1b[31m.png", "--model", model, "--beams", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == "one\ttwo\n\x1b[31m.png"


@pytest.mark.parametrize(("encoding", "held"), [("utf-8", "é 火"), ("cp1252", "\\u00e9 \\u706b")])
def test_json_survives_a_narrow_output(monkeypatch, encoding, held):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace"))
    form = JsonList()
    form.ascii = not stdout_is_utf8()
    row = output.Row((), {"caption": "é 火"})
    print(form.opening + form.piece(row, first=True) + form.closing(empty=False), flush=True)
    text = raw.getvalue().decode(encoding)
    assert held in text
    assert json.loads(text) == [{"caption": "é 火"}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "patience_s", "shown"), [(True, -1, True), (True, 60, False), (False, -1, False)])
def test_progress_shows_on_a_terminal_once_the_work_takes_a_while(monkeypatch, terminal, patience_s, shown):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(progress, "PATIENCE_S", patience_s)
    with output.Output(found("a.png", "b.png"), [output.Column("picture")], OutputOptions()) as out:
        out.done(1)
        out.rows([output.Row(("a.png",), {})])
        out.skip(Path("b.png"), DataError("b.png is empty"))
        assert out.finish() == 3
    err, said = sys.stderr.getvalue(), sys.stdout.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert ("1/2 pictures" in err) == shown
    assert "skipped b.png: it is empty\n" in err
    assert said == "a.png\n"
