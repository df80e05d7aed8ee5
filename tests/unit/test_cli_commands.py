"""`coca caption`, `classify`, `search` and `info`: what they find, print and skip, on an untrained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import three_pictures, tiny
from tests.three_pictures import ALL, STATE, lines

from opencoca import checkpoint
from opencoca.cli import output
from opencoca.cli.main import main

model = three_pictures.model
predictor = three_pictures.predictor
folder = three_pictures.folder


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
