"""`coca embed`: files of arrays that a rerun completes, text forms, embeddings of texts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests import commands, tiny
from tests.commands import ALL, interrupt_after, ran, read_csv

model, predictor, folder = commands.model, commands.predictor, commands.folder


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
