"""Labelled pictures in the forms that benchmarks have, and what is wrong with them by name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from tests import tiny

from opencoca.errors import DataError
from opencoca.eval.cache import Cache
from opencoca.eval.classification import ZeroShotClassification, clip_benchmark, figures_of, make_variant
from opencoca.eval.embed import embed_labels
from opencoca.eval.labelled import PLAIN, open_labelled
from opencoca.eval.registry import Options, Place
from opencoca.infer.predictor import Predictor


def class_folders(root: Path, *names: str, each: int = 2) -> Path:
    for number, name in enumerate(names):
        for i in range(each):
            tiny.save_picture(root / name / f"{i}.png", seed=10 * number + i)
    return root


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def test_folder_names_are_labels_where_nothing_else_is(tmp_path) -> None:
    found = open_labelled(class_folders(tmp_path, "002.big_dog", "001.cat"))
    assert (found.names, found.truths, found.templates) == ((("cat",), ("big dog",)), [0, 0, 1, 1], PLAIN)
    assert found.ids[0] == "001.cat/0.png"
    assert found.read(0).picture == (tmp_path / "001.cat/0.png").read_bytes()


def test_names_and_templates_come_from_files(tmp_path) -> None:
    class_folders(tmp_path, "a", "b")
    (tmp_path / "classnames.txt").write_text("cat\nbig dog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {}\n")
    found = open_labelled(tmp_path)
    assert (found.names, found.templates) == ((("cat",), ("big dog",)), ("a {}.", "the {}"))
    (tmp_path / "classnames.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"names 1 classes, .* has 2 folders"):
        open_labelled(tmp_path)


def test_a_variant_counts_only_its_own_classes(tmp_path) -> None:
    class_folders(tmp_path / "imagenet", "n1", "n2", "n3", each=1)
    (tmp_path / "imagenet/classnames.txt").write_text("tench\nshark\nhen\n")
    class_folders(tmp_path / "r/x", "n3", "n1", "n9")
    class_folders(tmp_path / "v2/x", "0", "2", "1", each=1)
    variant = open_labelled(tmp_path / "r/x", tmp_path / "imagenet")
    assert variant.names == (("tench",), ("hen",))
    assert variant.skipped == [("n9", "no name is known for this folder")]
    numbered = open_labelled(tmp_path / "v2/x", tmp_path / "imagenet")
    assert (numbered.names[2], numbered.ids[1], numbered.truths) == (("hen",), "1/0.png", [0, 1, 2])
    data = {"imagenet": Place(tmp_path / "imagenet"), "imagenet-r": Place(tmp_path / "r/x")}
    result = make_variant("imagenet-r/zeroshot", data, Options())(tiny.predictor())
    assert result.facts["classes"] == 2


def test_synonyms_of_a_mapping_are_averaged(tmp_path) -> None:
    class_folders(tmp_path, "n1", "n2")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n1 tench, Tinca tinca\nn2 hen\nn3 shark\n")
    assert open_labelled(tmp_path).names == (("tench", "Tinca tinca"), ("hen",))
    (tmp_path / "classnames.json").write_text(json.dumps({"n1": "fish", "n2": ["hen", "chicken"]}))
    assert open_labelled(tmp_path).names == (("fish",), ("hen", "chicken"))


def test_clip_benchmarks_tars(tmp_path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "test").mkdir()
    picture = tiny.save_picture(tmp_path / "p.png").read_bytes()
    with tarfile.open(tmp_path / "test/0.tar", "w") as tar:
        for key, label in (("s0", b"1"), ("s1", b"0\n"), ("s2", b"7")):
            add(tar, f"{key}.png", picture)
            add(tar, f"{key}.cls", label)
        add(tar, "s3.png", picture)
    found = open_labelled(tmp_path)
    assert (found.ids, found.truths, found.read(1).picture) == (["0/s0", "0/s1"], [1, 0], picture)
    assert found.skipped == [
        ("0/s2", "its class is none of 0 to 1 ('7'; classnames.txt)"),
        ("0/s3", "it has no .cls with its class"),
    ]


def test_a_table_of_labels(tmp_path) -> None:
    class_folders(tmp_path, "x")
    (tmp_path / "l.csv").write_text("path,label\nx/0.png,dog\nx/1.png,cat\nx/2.png,cat\n../y.png,cat\nx/0.png,cat\n")
    found = open_labelled(tmp_path / "l.csv")
    assert (found.names, found.truths) == ((("cat",), ("dog",)), [1, 0])
    rows = [(name.rpartition(" ")[2], reason) for name, reason in found.skipped]
    assert rows[0] == ("4", "there is no file x/2.png")
    assert [row for row, _ in rows] == ["4", "5", "6"]


@pytest.mark.parametrize("content", [[], ["a"]])
def test_a_folder_without_classes_is_refused(tmp_path, content) -> None:
    for name in content:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no folders of classes" if not content else "this class has no pictures"):
        open_labelled(tmp_path)


def test_figures_by_hand() -> None:
    """Class 0 has 3 pictures of which 2 are found, class 1 one that is found second."""
    best = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    figures, per_sample = figures_of(best, torch.tensor([0, 0, 0, 1]))
    assert figures == pytest.approx({"acc1": 0.5, "acc5": 0.75, "mean_per_class_recall": 1 / 3})
    assert per_sample["acc5"].tolist() == [1, 1, 0, 1]


def test_the_evaluation_is_what_classify_says_and_names_what_it_left_out(tmp_path) -> None:
    predictor = tiny.predictor()
    class_folders(tmp_path, "red", "blue", each=4)
    (tmp_path / "red/1.png").write_bytes(b"no picture")
    (tmp_path / "blue/3.png").write_bytes(b"")
    result = ZeroShotClassification("classes/zeroshot", open_labelled(tmp_path), Options())(predictor)
    paths = [str(tmp_path / name) for name in result.sample_ids]
    guesses = predictor.classify(paths, ["blue", "red"], templates=PLAIN).argmax(dim=1)
    right = [
        float(("blue", "red")[guess] in path) for guess, path in zip(guesses.tolist(), result.sample_ids, strict=True)
    ]
    assert result.per_sample["acc1"].tolist() == right
    assert result.facts["skipped"]["count"] == 2
    assert [line.split(":")[0] for line in result.facts["skipped"]["first"]] == ["blue/3.png", "red/1.png"]
    assert clip_benchmark(result, "m")["metrics"].keys() == {"acc1", "mean_per_class_recall"}


def test_labels_are_embedded_a_few_at_a_time(monkeypatch) -> None:
    predictor, sizes = tiny.predictor(), []
    names = [(f"label {i}",) for i in range(600)]
    embed = Predictor.embed_texts
    monkeypatch.setattr(Predictor, "embed_texts", lambda self, texts: sizes.append(len(texts)) or embed(self, texts))
    made = embed_labels(predictor, names, ("{}", "a {}"), Cache())
    assert sizes == [512, 512, 176]
    monkeypatch.undo()
    expected = predictor.embed_labels([name for (name,) in names], ("{}", "a {}"))
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


def test_a_limit_spreads_over_the_classes(tmp_path) -> None:
    found = open_labelled(class_folders(tmp_path, "a", "b", "c", each=4)).spread(3)
    assert (found.truths, len(found.names)) == ([0, 1, 2], 3)
    assert found.read(2).key == found.ids[2]
