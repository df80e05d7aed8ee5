"""What `coca caption`, `classify`, `embed` and `ask` read and write, and how a rerun goes on; on an untrained model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests import tiny

from opencoca.cli import options
from opencoca.cli.forms import shown
from opencoca.cli.main import main
from opencoca.cli.pictures import find
from opencoca.cli.xmp import Xmp
from opencoca.infer.predictor import Predictor
from opencoca.infer.zeroshot import TEMPLATES
from opencoca.loading import load
from opencoca.model.init import build

ALL = ["pics/2.png", "pics/10.png", "pics/sub/1.jpg"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return load(model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> Path:
    """The current folder, with three pictures in it; commands share one loaded model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opencoca.loading.load", lambda name: predictor)
    for seed, name in enumerate(ALL):
        tiny.save_picture(Path(name), seed)
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """What `coca WORDS` prints, on both streams."""
    assert main(list(words)) == code
    return capsys.readouterr()


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def without_digits(content: bytes) -> bytes:
    """All but the last digits of log-probabilities, which depend on how many pictures pass the model at once."""
    return re.sub(rb"(-\d+\.\d{4})\d*", rb"\1", content)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, batches: int) -> None:
    """Ctrl-C comes when that many batches of one picture have been encoded."""
    real, seen = Predictor.encode_squares, []

    def encode(self, squares):
        if len(seen) == batches:
            raise KeyboardInterrupt
        seen.append(squares)
        return real(self, squares)

    monkeypatch.setattr(Predictor, "encode_squares", encode)
    monkeypatch.setattr(predictor, "batch_size", 1)


# --- a list on standard input -----------------------------------------------------------------------------------


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


# --- forms of output --------------------------------------------------------------------------------------------


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


# --- a file -----------------------------------------------------------------------------------------------------


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


# --- beside the pictures ----------------------------------------------------------------------------------------


def test_sidecars_hold_the_captions_and_are_not_made_twice(folder, predictor, monkeypatch, capsys):
    words = ["caption", "pics", "--beams", "1", "--write", "sidecar"]
    with monkeypatch.context() as patched:
        interrupt_after(patched, predictor, batches=1)
        _, err = ran(capsys, *words, code=130)
    assert err.splitlines()[0] == "1 done, kept in files beside the pictures; the same command does the rest"
    out, err = ran(capsys, *words)
    assert [line.split("\t")[0] for line in out.splitlines()] == ALL[1:]
    assert err == "2 done, 1 there already\n"
    captions = predictor.caption(ALL, beams=1)
    assert [Path(name).with_suffix(".txt").read_text() for name in ALL] == [f"{shown(one)}\n" for one in captions]


def test_words_that_somebody_wrote_are_replaced_only_when_asked_to(folder, predictor, capsys):
    Path("pics/2.txt").write_text("my own words")
    words = ["caption", "pics/2.png", "--beams", "1", "--write", "sidecar"]
    assert ran(capsys, *words) == ("", "0 done, 1 there already\n")
    assert Path("pics/2.txt").read_text() == "my own words"
    ran(capsys, *words, "--overwrite")
    assert Path("pics/2.txt").read_text() == shown(predictor.caption("pics/2.png", beams=1)[0]) + "\n"


def test_two_pictures_that_would_share_a_sidecar_are_told_apart(folder, capsys):
    tiny.save_picture(Path("pics/2.jpg"), 5)
    _, err = ran(capsys, "caption", "pics/2.png", "pics/2.jpg", "--beams", "1", "--write", "sidecar", code=3)
    said = "skipped pics/2.jpg: it would share 2.txt with pics/2.png; rename one of the two\n1 done, 1 skipped\n"
    assert err == said


def test_an_xmp_file_gets_the_description_and_labels_and_keeps_the_rest(folder, predictor, capsys):
    words = ["--write", "xmp"]
    labels = ["red", "blue"]
    ran(capsys, "caption", "pics", "--beams", "1", *words)
    ran(capsys, "classify", "pics", "--labels", ",".join(labels), *words)
    best = predictor.classify(ALL, labels).argmax(dim=1).tolist()
    for path, caption, label in zip(ALL, predictor.caption(ALL, beams=1), best, strict=True):
        xmp = Xmp.load(Path(path).with_suffix(".xmp"))
        assert xmp.items("description") == [re.sub("[\x00-\x08\x0b-\x1f]", "", caption)]
        assert xmp.items("subject") == [labels[label]]
    for command in (["caption", "pics", "--beams", "1"], ["classify", "pics", "--labels", "red,blue"]):
        assert ran(capsys, *command, *words) == ("", "0 done, 3 there already\n")


def test_a_photo_managers_own_xmp_file_is_used_and_a_broken_one_left(folder, capsys):
    Path("pics/2.png.xmp").write_text(Xmp.load(Path("nosuch")).text(), encoding="utf-8")
    Path("pics/10.xmp").write_text("<broken")
    _, err = ran(capsys, "caption", "pics", "--beams", "1", "--write", "xmp", code=3)
    assert len(Xmp.load(Path("pics/2.png.xmp")).items("description")) == 1
    assert not Path("pics/2.xmp").exists()
    assert err.startswith("skipped pics/10.png: it has a 10.xmp that can't be used: it isn't XML")
    assert Path("pics/10.xmp").read_text() == "<broken"


def test_a_picture_whose_folder_cannot_be_written_is_skipped(folder, monkeypatch, capsys):
    from opencoca.cli import sidecar

    real = sidecar.write_atomically

    def write(path: Path, text: str) -> None:
        if path.name == "10.txt":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, text)

    monkeypatch.setattr(sidecar, "write_atomically", write)
    out, err = ran(capsys, "caption", "pics", "--beams", "1", "--write", "sidecar", code=3)
    assert [line.split("\t")[0] for line in out.splitlines()] == [ALL[0], ALL[2]]
    assert err.splitlines() == [
        "skipped pics/10.png: it was read, but 10.txt can't be written (Permission denied); change that",
        "2 done, 1 skipped",
    ]


# --- classify ---------------------------------------------------------------------------------------------------


def test_labels_come_from_a_file_and_templates_from_a_set(folder, predictor, capsys):
    Path("labels.txt").write_text("\ufeffred\n\n  a boat, seen \n", encoding="utf-8")
    words = ["--labels-file", "labels.txt", "--templates", "photo", "--unknown", "--json"]
    records = json.loads(ran(capsys, "classify", "pics", *words)[0])
    expected = predictor.classify(ALL, ["red", "a boat, seen"], templates="photo", unknown=True)
    for record, row in zip(records, expected.tolist(), strict=True):
        found = record["probabilities"]
        assert [found["red"], found["a boat, seen"], found["unknown"]] == pytest.approx(row)


def test_multi_label_names_the_labels_that_fit(folder, predictor, capsys):
    words = ["classify", "pics", "--labels", "red,blue,green", "--multi-label"]
    records = json.loads(ran(capsys, *words, "--json")[0])
    rows = read_csv(ran(capsys, *words, "--csv")[0])
    assert [row["labels"] for row in rows] == [", ".join(record["labels"]) for record in records]
    expected = predictor.classify(ALL, ["red", "blue", "green"], multi_label=True)
    for record, row in zip(records, expected, strict=True):
        assert set(record["labels"]) == {
            label for label, p in zip(("red", "blue", "green"), row, strict=True) if p >= 0.5
        }


def test_top_limits_what_is_shown(folder, capsys):
    words = ["classify", "pics/2.png", "--labels", "a,b,c,d", "--top", "2"]
    (row,) = read_csv(ran(capsys, *words, "--csv")[0])
    (record,) = json.loads(ran(capsys, *words, "--json")[0])
    assert list(row) == ["path", "label", "probability", "label_2", "probability_2"]
    assert list(record["probabilities"]) == [row["label"], row["label_2"]]


@pytest.fixture
def examples(folder: Path) -> Path:
    """Light and dark pictures, sorted."""
    for label, light in (("dark", 20), ("light", 235)):
        for number in range(3):
            save_flat(Path("sorted", label, f"{number}.png"), light + number * 5)
    return Path("sorted")


def save_flat(path: Path, light: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (light, light, light)).save(path)


def test_a_probe_learns_folders_is_kept_and_used_again(examples, capsys):
    save_flat(Path("new/a.png"), 10)
    save_flat(Path("new/b.png"), 240)
    Path("sorted/dark/bad.png").write_bytes(b"")
    words = ["classify", "new", "--examples", "sorted", "--save-probe", "mine.probe", "--json"]
    out, err = ran(capsys, *words, code=3)
    assert [record["label"] for record in json.loads(out)] == ["dark", "light"]
    assert err.splitlines()[0] == "skipped sorted/dark/bad.png: it is empty (0 bytes); copy or download it again"
    assert json.loads(ran(capsys, "classify", "new", "--probe", "mine.probe", "--json")[0]) == json.loads(out)


def test_a_probe_can_be_fitted_alone(examples, capsys):
    assert ran(capsys, "classify", "--examples", "sorted", "--save-probe", "mine.probe") == ("", "")
    assert Path("mine.probe").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new"], "no labels given"),
        (["--labels", "a,b"], "no paths given"),
        (["pics", "--labels", "a,b", "--examples", "sorted"], "--labels and --examples were given"),
        (["pics", "--examples", "nosuch"], "--examples nosuch can't be read"),
        (["pics", "--examples", "sorted/dark"], "fewer than two labels"),
        (["pics", "--examples", "sorted", "--unknown"], "go with --labels"),
        (["pics", "--probe", "nosuch.probe"], "nosuch.probe"),
        (["pics", "--probe", "p", "--template", "a {}"], "leave out --template"),
        (["pics", "--labels", "a,b", "--save-probe", "p"], "without --examples"),
        (["pics", "--labels", "a,b", "--top", "0"], "--top 0"),
        (["pics", "--labels", "a,b", "--template", "{}", "--templates", "photo"], "--template and --templates"),
        (["pics", "--labels", "a,b", "--templates", "phto"], "phto"),
        (["pics", "--labels-file", "nosuch.txt"], "--labels-file nosuch.txt can't be read"),
        (["pics", "--labels-file", "pics/2.png"], "it isn't UTF-8 text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_labels_that_make_no_sense_are_refused(examples, capsys, words, said):
    Path("new").mkdir()
    save_flat(Path("new/a.png"), 10)
    out, err = ran(capsys, "classify", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_the_help_names_every_set_of_templates():
    from opencoca.cli import classify

    source = Path(classify.__file__).read_text()
    line = next(line for line in source.splitlines() if "set of sentences that comes with" in line)
    assert all(name in line for name in TEMPLATES)


# --- embed ------------------------------------------------------------------------------------------------------


def read_arrays(name: str) -> tuple[list[str], np.ndarray]:
    if name.endswith(".npz"):
        with np.load(name, allow_pickle=False) as arrays:
            return arrays["paths"].tolist(), arrays["embeddings"]
    if name.endswith(".npy"):
        return json.loads(Path(f"{name}.about.json").read_text())["paths"], np.load(name, allow_pickle=False)
    from safetensors import safe_open

    with safe_open(name, framework="np") as file:
        return json.loads(file.metadata()["paths"]), load_file(name)["embeddings"]


@pytest.mark.parametrize("name", ["e.npz", "e.npy", "e.safetensors"])
def test_embeddings_fill_a_file_that_a_rerun_completes(folder, predictor, monkeypatch, capsys, name):
    words = ["embed", "pics", "--output", name]
    with monkeypatch.context() as patched:
        interrupt_after(patched, predictor, batches=2)
        ran(capsys, *words, code=130)
    assert not Path(name).exists()
    assert ran(capsys, *words)[1] == "1 done, 2 there already\n"
    paths, rows = read_arrays(name)
    assert (paths, rows.dtype, rows.shape) == (ALL, np.float32, (3, predictor.model.config.embed_dim))
    np.testing.assert_allclose(rows, predictor.embed_images(ALL).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    tiny.save_picture(Path("pics/11.png"), 8)
    assert ran(capsys, *words)[1] == "1 done, 3 there already\n"
    assert read_arrays(name)[0] == [*ALL, "pics/11.png"]
    assert sorted(path.name for path in Path().glob("*e.*")) == [name, f"{name}.about.json"]


def test_embeddings_as_text_are_exact_and_float16_is_smaller(folder, predictor, capsys):
    expected = predictor.embed_images(ALL).numpy()
    records = [json.loads(line) for line in ran(capsys, "embed", "pics", "--jsonl")[0].splitlines()]
    got = np.array([record["embedding"] for record in records], np.float32)
    np.testing.assert_array_equal(got, np.array(got.tolist(), np.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    rows = read_csv(ran(capsys, "embed", "pics", "--csv")[0])
    assert [row["path"] for row in rows] == ALL
    assert [float(row["e3"]) for row in rows] == pytest.approx(expected[:, 3].tolist(), abs=1e-6)
    ran(capsys, "embed", "pics", "--float16", "--output", "half.npz")
    paths, half = read_arrays("half.npz")
    assert (paths, half.dtype) == (ALL, np.float16)
    np.testing.assert_allclose(half, expected, atol=1e-3)


def test_texts_are_embedded_too(folder, predictor, capsys):
    Path("texts.txt").write_text("a dog\n")
    ran(capsys, "embed", "--texts", "a cat", "--texts-file", "texts.txt", "--output", "t.npz")
    with np.load("t.npz") as arrays:
        assert arrays["texts"].tolist() == ["a cat", "a dog"]
        np.testing.assert_allclose(arrays["embeddings"], predictor.embed_texts(["a cat", "a dog"]).numpy(), atol=1e-6)
    words = ["embed", "--texts", "a cat", "a bird", "--output", "t.npz"]
    assert ran(capsys, *words)[1] == "1 done, 1 there already\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pics"], "add --output embeddings.npz, or --jsonl"),
        (["--jsonl"], "no paths given"),
        (["pics", "--jsonl", "--texts", "a"], "paths and texts were given"),
        (["pics", "--output", "e.bin"], "end its name in .npz"),
    ],
)
def test_embedding_nothing_or_nowhere_is_refused(folder, capsys, words, said):
    out, err = ran(capsys, "embed", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_foreign_array_file_is_left_alone(folder, capsys):
    np.save("e.npy", np.zeros(3))
    before = Path("e.npy").read_bytes()
    _, err = ran(capsys, "embed", "pics", "--output", "e.npy", code=2)
    assert "e.npy is there already" in err
    assert Path("e.npy").read_bytes() == before


# --- ask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["pics", "what is it?"], ["pics", "--question", "what is it?"]])
def test_ask_answers_as_the_predictor_does(folder, monkeypatch, capsys, words):
    text = dataclasses.replace(tiny.CONFIG.model.text, context_length=64)
    config = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, text=text))
    predictor = Predictor(build(config.model), tiny.tokenizer(), config)
    monkeypatch.setattr("opencoca.loading.load", lambda name: predictor)
    tokens = ["--max-tokens", "60"]
    out, _ = ran(capsys, "ask", *words, *tokens, "--json")
    records = json.loads(out)
    assert [record["path"] for record in records] == ALL
    assert {record["question"] for record in records} == {"what is it?"}
    assert [record["answer"] for record in records] == predictor.answer(ALL, "what is it?", max_tokens=60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pics/2.png"], "is a picture, and there is no question"),
        (["nosuch.png"], "is a picture, and there is no question"),
        (["what is it?"], "no picture before the question"),
        (["pics", "--question", " "], "the question is empty"),
        (["pics", "why " * 500], "max_tokens"),
    ],
)
def test_ask_needs_a_picture_and_a_question(folder, capsys, words, said):
    out, err = ran(capsys, "ask", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


# --- how it looks -----------------------------------------------------------------------------------------------


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
