"""The exported graphs give what the Predictor gives: for our layout, for OpenCLIP's, and closely so in 8 bits."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from tests import published, tiny
from tests.support import COLOURS, SHAPES, drawing

from opencoca import checkpoint
from opencoca.cli.main import main
from opencoca.errors import CheckpointError, ConfigError
from opencoca.infer.predictor import Predictor
from opencoca.interop import onnx as exporter
from opencoca.interop import onnx_runner
from opencoca.interop.onnx_runner import OnnxRunner
from opencoca.model.init import build

EMBEDDING_TOLERANCE = 1e-5  # measured: 2.4e-7
PICTURES = [drawing(colour, shape) for colour in COLOURS for shape in SHAPES]
TEXTS = ["red dot", "a small black bar on the left", "", "!", "Caf\xe9 &amp;amp; r\xe9d  DOT", "blue " * 40]
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # importing it fails
from opencoca.interop.onnx_runner import OnnxRunner
folder, *pictures = sys.argv[1:]
print(json.dumps(OnnxRunner(folder).caption(pictures)))
"""


class Exported(NamedTuple):
    predictor: Predictor
    folder: Path
    int8_folder: Path
    folder_of_large_files: Path


def _ending(predictor: Predictor) -> Predictor:
    """The same, reading pictures more keenly and ending captions where it would have said some token in mid-caption."""
    end, model = predictor.tokenizer.special.end, predictor.model
    with torch.no_grad():
        for name, parameter in model.multimodal.named_parameters():
            if name.endswith("cross_attention.out.weight"):
                parameter *= 5
        said = [captions[0].ids for captions in predictor.captions(PICTURES, beams=1, min_tokens=0)]
        places = {token: {ids.index(token) for ids in said if token in ids} for ids in said for token in ids}
        token = max(places, key=lambda token: (len(places[token]), token))
        model.head.weight[[end, token]] = model.head.weight[[token, end]]
    return predictor


@pytest.fixture(scope="module", params=["ours", "open_clip"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """Both kinds of weights from one tracing, which takes its time."""
    torch.set_num_threads(1)
    if request.param == "ours":
        predictor = tiny.predictor()
    else:
        predictor = Predictor(published.model(), published.tokenizer(), published.config())
    predictor = _ending(predictor)
    folder = tmp_path_factory.mktemp("exported")
    graphs: dict[type, onnx.ModelProto] = {}
    traced = exporter.traced

    def traced_once(graph: exporter.Graph) -> onnx.ModelProto:
        kind = type(graph.module)
        if kind not in graphs:
            graphs[kind] = traced(graph)
        return copy.deepcopy(graphs[kind])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "traced", traced_once)
        exporter.export(predictor.model, predictor.tokenizer, predictor.config, folder / "float")
        exporter.export(predictor.model, predictor.tokenizer, predictor.config, folder / "int8", int8=True)
        patch.setattr(exporter, "LARGEST_FILE", 1000)
        exporter.export(predictor.model, predictor.tokenizer, predictor.config, folder / "large")
    yield Exported(predictor, folder / "float", folder / "int8", folder / "large")


def test_captions_are_the_same_token_for_token(exported: Exported) -> None:
    runner = OnnxRunner(exported.folder, batch_size=10)  # 24 pictures: whole batches and a rest
    wanted = exported.predictor.captions(PICTURES, beams=1)
    ids = runner.caption_ids(PICTURES)
    assert ids == [captions[0].ids for captions in wanted]
    assert len({len(row) for row in ids}) > 2, "captions of one length leave rows that end early untested"
    assert runner.caption(PICTURES) == [captions[0].text for captions in wanted]


def test_weights_too_large_for_one_file_stand_beside_the_graph(exported: Exported) -> None:
    graphs = {path.stem for path in exported.folder.glob("*.onnx")}
    assert {path.stem for path in exported.folder_of_large_files.glob("*.data")} == graphs
    step = "decoder_step.onnx"
    assert (exported.folder_of_large_files / step).stat().st_size < (exported.folder / step).stat().st_size
    ids = OnnxRunner(exported.folder_of_large_files).caption_ids(PICTURES)
    assert ids == OnnxRunner(exported.folder).caption_ids(PICTURES)


@pytest.mark.parametrize("bounds", [{"max_tokens": 4}, {"min_tokens": 6, "max_tokens": 7}, {"max_tokens": 1000}])
def test_bounds_of_the_length_mean_the_same(exported: Exported, bounds: dict[str, int]) -> None:
    bounds = {"min_tokens": 0, **bounds}
    wanted = exported.predictor.captions(PICTURES[:6], beams=1, **bounds)
    assert OnnxRunner(exported.folder).caption_ids(PICTURES[:6], **bounds) == [some[0].ids for some in wanted]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_embeddings_are_the_same(exported: Exported, batch_size: int) -> None:
    runner = OnnxRunner(exported.folder, batch_size)
    for ours, wanted in (
        (runner.embed_images(PICTURES), exported.predictor.embed_images(PICTURES)),
        (runner.embed_texts(TEXTS), exported.predictor.embed_texts(TEXTS)),
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, wanted.numpy(), rtol=0, atol=EMBEDDING_TOLERANCE)


def test_the_temperature_travels_with_the_graphs(exported: Exported) -> None:
    assert OnnxRunner(exported.folder).scale == pytest.approx(float(exported.predictor.model.log_scale.detach().exp()))


def test_axes_have_names_and_the_files_name_no_folder_of_this_machine(exported: Exported) -> None:
    for path in exported.folder.glob("*.onnx"):
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        content = path.read_bytes()
        assert b"site-packages" not in content and str(Path.cwd()).encode() not in content
    past = proto_inputs(exported.folder / "decoder_step.onnx")["past_keys_0"]
    assert [past[0], past[2]] == ["batch", "past"]


def proto_inputs(path: Path) -> dict[str, list[str | int]]:
    return {
        given.name: [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
        for given in onnx.load(path).graph.input
    }


def test_int8_is_smaller_and_close_and_does_not_depend_on_the_batch(exported: Exported) -> None:
    exact, rounded = OnnxRunner(exported.folder), OnnxRunner(exported.int8_folder)
    steps = [folder / "decoder_step.onnx" for folder in (exported.folder, exported.int8_folder)]
    assert steps[1].stat().st_size < steps[0].stat().st_size
    operators = [node.op_type for node in onnx.load(steps[1]).graph.node]
    assert "MatMulNBits" in operators and "MatMul" not in operators and "Gemm" not in operators
    (pixels,) = exact.pixels(PICTURES)
    start = np.full(len(pixels), exact.start)
    wanted, ours = (runner.decode_step(start, runner.start_decoding(pixels)) for runner in (exact, rounded))
    error = np.abs(ours - wanted).max() / wanted.std()
    assert 0 < error < 0.1  # measured: 0.049
    alone = rounded.decode_step(start[:1], rounded.start_decoding(pixels[3:4]))
    np.testing.assert_allclose(alone[0], ours[3], rtol=0, atol=1e-5)


def test_the_runner_needs_no_torch(exported: Exported, tmp_path: Path) -> None:
    pictures = [str(tiny.save_picture(tmp_path / f"{seed}.png", seed)) for seed in range(3)]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported.folder), *pictures]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == exported.predictor.caption(pictures, beams=1)


def test_the_runner_is_a_program(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tiny.save_picture(tmp_path / "picture.png"))
    onnx_runner.main(str(exported.folder), picture)
    (caption,) = exported.predictor.caption(picture, beams=1)
    assert capsys.readouterr().out == f"{picture}\t{caption}\n"


def test_the_command_writes_a_folder_and_says_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save_model(tmp_path / "model")
    monkeypatch.setattr(exporter, "traced", lambda graph: onnx.ModelProto())
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = [
        "config.json",
        "decoder_start.onnx",
        "decoder_step.onnx",
        "image_encoder.onnx",
        "text_encoder.onnx",
        "tokenizer.json",
    ]
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == names
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_without_the_extra_the_command_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"the export needs onnxscript; .*opencoca\[export\]"):
        exporter.check(tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter, "traced", lambda graph: onnx.ModelProto())
    monkeypatch.setattr(checkpoint, "fsync", full)
    monkeypatch.setattr(exporter, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        exporter.export(build(tiny.CONFIG.model), tiny.tokenizer(), tiny.CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
