"""A model as ONNX graphs in a folder, with all that a program without torch needs to run them.

    image_encoder.onnx   pixels [B,3,H,W] -> image_embed [B,E], image_tokens [B,Q,D]
    text_encoder.onnx    ids [B,T], valid [B,T] -> text_embed [B,E]
    decoder_start.onnx   image_tokens -> of each multimodal layer picture_keys_0, picture_values_0, ... [B,N,Q,K]
    decoder_step.onnx    ids [B,1], picture_*, past_keys_0, past_values_0, ... [B,N,P,K] -> logits [B,V] and
                         present_keys_0, ... [B,N,P+1,K], which are the next step's past; the first one's has P = 0
    config.json          special ids, temperature and the model's configuration
    tokenizer.json       the vocabulary, which the `tokenizers` library reads

A picture's keys and values are projected once, by a graph of their own: no step computes them again, and who wants
embeddings alone doesn't pay for them. `onnx_runner` shows how the graphs are used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from opencoca.config import Config, ModelConfig
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError, ConfigError, unwritable
from opencoca.files import fsync
from opencoca.model.attention import KeysValues, KVCache
from opencoca.model.coca import CoCa

if TYPE_CHECKING:
    import onnx

FORMAT, VERSION, OPSET = "opencoca-onnx", 1, 23  # opset 23 has attention as one operator
IMAGE, TEXT, START, STEP = "image_encoder", "text_encoder", "decoder_start", "decoder_step"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
LARGEST_FILE = 1_800_000_000  # bytes of weights; a protobuf message ends at 2 GiB


class Graph(NamedTuple):
    """What is traced: a module, example inputs, the names of their dynamic axes, and those of inputs and outputs."""

    module: nn.Module
    inputs: tuple[Any, ...]
    axes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]


def export(model: CoCa, tokenizer: Tokenizer, config: Config, folder: Path, int8: bool = False) -> None:
    """Writes the folder, whole or not at all; with `int8`, the decoder's matrices are 8-bit integers.

    Raises: ConfigError where the extra `export` isn't installed; CheckpointError where the folder can't be written.
    """
    check(folder)
    import onnx

    from opencoca.interop.onnx_int8 import quantised

    model = model.to("cpu", torch.float32).eval()
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, graph in graphs(model).items():
            proto = traced(graph)
            if int8 and name == STEP:
                proto = quantised(proto)
            beside = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LARGEST_FILE
            onnx.save_model(proto, partial / f"{name}.onnx", save_as_external_data=beside, location=f"{name}.data")
        tokenizer.save(partial / TOKENIZER)
        (partial / CONFIG).write_text(json.dumps(_facts(model, tokenizer, config, int8), indent=2) + "\n")
        for path in partial.iterdir():
            fsync(path)
        partial.rename(folder)
        fsync(folder.parent)
    except OSError as error:
        raise CheckpointError(unwritable(folder, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(folder: Path) -> None:
    """Finds out before anything is computed whether `export` can write `folder`; see there for what it raises."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the export needs {' and '.join(missing)}; install it with: pip install 'opencoca[export]'")
    if folder.exists():
        raise CheckpointError(f"{folder} exists already and isn't overwritten; name a new folder")


def graphs(model: CoCa) -> dict[str, Graph]:
    """A model's graphs, by file name."""
    config = model.config
    text, vision = config.text, config.vision
    batch, length, past = Dim("batch"), Dim("length", max=text.context_length), Dim("past", max=text.context_length - 1)
    pictures, pasts = picture_names(config), past_names(config, "past")
    heads, head_width, context = text.num_heads, text.width // text.num_heads, text.context_length
    rows, seen = 7, 3  # of the example inputs: torch takes 1, and what looks like another axis, for constants
    ids = torch.ones(rows, min(seen, context), dtype=torch.int64)
    keys = torch.zeros(rows, heads, config.pooler.num_queries, head_width)
    held = torch.zeros(rows, heads, min(seen, context - 1), head_width)
    return {
        IMAGE: Graph(
            _ImageEncoder(model),
            (torch.zeros(rows, 3, vision.image_size_px, vision.image_size_px),),
            ({0: batch},),
            ["pixels"],
            ["image_embed", "image_tokens"],
        ),
        TEXT: Graph(
            _TextEncoder(model),
            (ids, torch.ones_like(ids, dtype=torch.bool)),
            ({0: batch, 1: length},) * 2,
            ["ids", "valid"],
            ["text_embed"],
        ),
        START: Graph(
            _DecoderStart(model),
            (torch.zeros(rows, config.pooler.num_queries, text.width),),
            ({0: batch},),
            ["image_tokens"],
            pictures,
        ),
        STEP: Graph(
            _DecoderStep(model),
            (ids[:, :1], [keys.clone() for _ in pictures], [held.clone() for _ in pasts]),
            ({0: batch}, [{0: batch}] * len(pictures), [{0: batch, 2: past}] * len(pasts)),
            ["ids", *pictures, *pasts],
            ["logits", *past_names(config, "present")],
        ),
    }


def picture_names(config: ModelConfig) -> list[str]:
    """picture_keys_0, picture_values_0, ..., of every layer that reads the picture."""
    return [f"picture_{what}_{i}" for i in range(config.text.multimodal_depth) for what in ("keys", "values")]


def past_names(config: ModelConfig, when: str) -> list[str]:
    """past_keys_0, past_values_0, ... or present_..., of every layer of the text, the unimodal half first."""
    layers = config.text.unimodal_depth + config.text.multimodal_depth
    return [f"{when}_{what}_{i}" for i in range(layers) for what in ("keys", "values")]


def traced(graph: Graph) -> onnx.ModelProto:
    """The graph in ONNX."""
    with torch.no_grad(), _quiet():
        # of torch.onnx.export alone the second half: its first would quietly make an axis static that can't be dynamic
        exported = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.axes)
        program = torch.onnx.export(
            exported,
            input_names=graph.input_names,
            output_names=graph.output_names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.graph.ClearField("value_info")  # shapes of what lies between, which runtimes infer by themselves
    for node in proto.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")  # stack traces, with the paths of this machine
    _name_axes(proto, graph)
    return proto


def _name_axes(proto: onnx.ModelProto, graph: Graph) -> None:
    """Gives the dynamic axes of inputs and outputs the names that `graph` calls them by, in place of s12 or s7 + 1."""
    axes = [each for some in graph.axes for each in (some if isinstance(some, list) else [some])]
    names = {
        given.type.tensor_type.shape.dim[place].dim_param: axis.__name__
        for given, dynamic in zip(proto.graph.input, axes, strict=True)
        for place, axis in dynamic.items()
    }
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)


class _ImageEncoder(nn.Module):
    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(pixels_BCHW)


class _TextEncoder(nn.Module):
    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, valid_BT: Tensor) -> Tensor:
        return self.model.encode_text(ids_BT, valid_BT).embed


class _DecoderStart(nn.Module):
    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BQD: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for picture in self.model.multimodal.pictures(tokens_BQD) for tensor in picture)


class _DecoderStep(nn.Module):
    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_B1: Tensor, pictures: Sequence[Tensor], past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        caches = [_GrowingCache(pair) for pair in _pairs(past)]
        layers, unimodal = cast(list[KVCache], caches), self.model.config.text.unimodal_depth
        text_B1D = self.model.unimodal.step(ids_B1, layers[:unimodal], start=past[0].shape[2])
        decoded_B1D = self.model.multimodal.step(text_B1D, _pairs(pictures), layers[unimodal:])
        logits_BV = self.model.caption_logits(decoded_B1D[:, -1])
        return logits_BV, *(tensor for cache in caches for tensor in cache.held)


class _GrowingCache:
    """What `KVCache` is to the model, in a graph: it can't be written to, so each step's is a longer one."""

    def __init__(self, held: KeysValues) -> None:
        self.held = held

    def append(self, new: KeysValues) -> KeysValues:
        self.held = KeysValues(*(torch.cat(pair, dim=2) for pair in zip(self.held, new, strict=True)))
        return self.held


def _pairs(tensors: Sequence[Tensor]) -> list[KeysValues]:
    return [KeysValues(*tensors[i : i + 2]) for i in range(0, len(tensors), 2)]


def _facts(model: CoCa, tokenizer: Tokenizer, config: Config, int8: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "decoder_weights": "int8" if int8 else "float32",
        "repair_text": isinstance(tokenizer, ClipTokenizer),
        "special": tokenizer.special._asdict(),
        "scale": model.log_scale.detach().exp().item(),
        "config": config.to_dict(),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's exporter says to its own developers, of its deprecated parts and missing torchvision."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
