"""Decoding with 8-bit weights against float32: kernels, whole steps, and what becomes of the captions.

    python benchmarks/int8.py [kernels] [kernels_avx2] [steps] [quality --model runs/quickstart --shards data/openmoji]

Kernels and steps have made-up weights. Kernels read theirs in turn from a pool that a core's own cache can't hold, as
in decoding. Steps run on one thread; its processor time stands beside the clock's, which other programs lengthen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from common import RESULTS, alternating_medians, write_result
from torch import Tensor
from torch.nn import functional as F

from opencoca.eval.held_out import HeldOut, load_held_out
from opencoca.interop import onnx as exporter
from opencoca.interop.onnx_int8 import quantised
from opencoca.interop.onnx_runner import OnnxRunner
from opencoca.loading import open_model
from opencoca.model.init import build
from opencoca.recipes.open_clip import vit_b_32

SHAPES = ((512, 512), (512, 2048), (2048, 512), (512, 49408), (768, 768), (768, 3072), (3072, 768), (768, 49408))
ROWS = (1, 8, 48)
PARTS = ("kernels", "kernels_avx2", "steps", "quality")
POOL_BYTES, REPEATS, PAST = 200_000_000, 5, 12
SLOW = {"weight_int8pack_mm float32"}  # measured at one row, where it is already slower than float32


def main() -> None:
    """Measures the parts that are named and writes them into the result, whose other parts stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="runs/quickstart")
    parser.add_argument("--shards", default="data/openmoji")
    words = parser.parse_args()
    path = RESULTS / "int8.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    measured = {name: kept[name] for name in PARTS if name in kept}
    for name in words.parts:
        if name == "quality":
            measured[name] = quality(words.model, words.shards)
        else:
            measured[name] = {"kernels": kernels, "kernels_avx2": kernels_avx2, "steps": steps}[name]()
    write_result("int8", {"onnxruntime": onnxruntime.__version__, **measured})


# --- kernels --------------------------------------------------------------------------------------------------------


def kernels_avx2() -> list[dict[str, object]]:
    """`kernels` of one shape where torch is held to AVX2: products of 8-bit numbers saturate there without VNNI."""
    program = "import json, int8; print(json.dumps(int8.kernels([(512, 2048)])))"
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, cwd=RESULTS.parent, env={**os.environ, **limits})
    return json.loads(done.stdout.splitlines()[-1])


def kernels(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, object]]:
    """Microseconds of one product, by shape, rows and kernel; errors in standard deviations of the right product."""
    found = []
    for inputs, outputs in shapes:
        count = max(2, POOL_BYTES // (4 * inputs * outputs))
        generator = torch.Generator().manual_seed(0)
        pool = [torch.randn(outputs, inputs, generator=generator) * inputs**-0.5 for _ in range(count)]
        made = {name: [make(weight) for weight in pool] for name, make in KERNELS.items()}
        for rows in ROWS:
            x = torch.randn(rows, inputs, generator=generator)
            wanted = F.linear(x, pool[0])
            entry: dict[str, object] = {"inputs": inputs, "outputs": outputs, "rows": rows}
            sets = {name: products[:2] if name in SLOW else products for name, products in made.items()}
            sets = {name: some for name, some in sets.items() if rows == 1 or name not in SLOW}
            taken = alternating_medians({name: _each(some, x) for name, some in sets.items()}, REPEATS, warmup=1)
            for name, some in sets.items():
                errors = (some[0](x).float() - wanted).abs() / wanted.std()
                entry[name] = {
                    "median_us": round(taken[name]["median_s"] / len(some) * 1e6, 1),
                    "min_us": round(taken[name]["min_s"] / len(some) * 1e6, 1),
                    "mean_error": round(float(errors.mean()), 5),
                    "largest_error": round(float(errors.max()), 5),
                }
            found.append(entry)
            print(json.dumps(entry), flush=True)
    return found


def _each(products: list[Callable[[Tensor], Tensor]], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        for product in products:
            product(x)

    return run


def _levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [O,I] and a scale per output channel [O]."""
    scales = weight.abs().amax(dim=1) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def _linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight)


def _inputs_first(weight: Tensor) -> Callable[[Tensor], Tensor]:
    turned = weight.T.contiguous()
    return lambda x: x @ turned


def _int8pack(weight: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    levels, scales = _levels(weight)
    scales = scales.to(dtype)
    return lambda x: torch._weight_int8pack_mm(x.to(dtype), levels, scales)


def _per_row(weight: Tensor) -> Callable[[Tensor], Tensor]:
    levels, scales = _levels(weight)

    def product(x: Tensor) -> Tensor:
        size = x.abs().amax(dim=1, keepdim=True) / 127
        return torch._int_mm((x / size).round().to(torch.int8), levels.T) * size * scales

    return product


def _per_tensor(weight: Tensor) -> Callable[[Tensor], Tensor]:
    levels, scales = _levels(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old quantisation is deprecated
        whole = torch._make_per_channel_quantized_tensor(levels, scales.double(), torch.zeros(len(scales)).long(), 0)
        packed = torch.ops.quantized.linear_prepack(whole, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed)


KERNELS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "float32 F.linear": _linear,
    "float32 stored [in,out]": _inputs_first,
    "weight_int8pack_mm bfloat16": lambda weight: _int8pack(weight, torch.bfloat16),
    "weight_int8pack_mm float32": lambda weight: _int8pack(weight, torch.float32),
    "int_mm, rows rounded": _per_row,
    "linear_dynamic, tensor rounded": _per_tensor,
}


# --- a whole step ---------------------------------------------------------------------------------------------------


def steps() -> list[dict[str, object]]:
    """Milliseconds of one decoding step of a B/32 with made-up weights, by rows, in torch and in onnxruntime."""
    model = build(vit_b_32().model).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    torch.set_num_threads(1)
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        proto = exporter.traced(exporter.graphs(model)[exporter.STEP])
        for name in ("onnxruntime float32", "onnxruntime int8"):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes((quantised(proto) if name.endswith("int8") else proto).SerializeToString())
            sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    text, rng = model.config.text, np.random.default_rng(0)
    found = []
    for rows in ROWS:
        feeds = {"ids": np.ones((rows, 1), np.int64)}
        for given in sessions["onnxruntime float32"].get_inputs()[1:]:
            _, heads, seen, width = given.shape
            feeds[given.name] = rng.standard_normal((rows, heads, seen if isinstance(seen, int) else PAST, width), "f4")
        cache = model.start_decoding(torch.randn(rows, model.config.pooler.num_queries, text.width), PAST + 1)

        def torch_step(cache=cache, rows=rows) -> None:
            for layer in cache.unimodal + cache.multimodal:
                layer.length = PAST
            with torch.no_grad():
                model.decode_step(torch.ones(rows, 1, dtype=torch.int64), cache)

        runs: dict[str, Callable[[], None]] = {"torch float32": torch_step}
        for name, session in sessions.items():
            runs[name] = lambda session=session, feeds=feeds: session.run(None, feeds)
        entry: dict[str, object] = {"rows": rows, "past": PAST}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(2 + 2 * REPEATS):
            for name, run in runs.items():
                began = time.perf_counter(), time.process_time()
                run()
                if turn >= 2:
                    taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        for name, seconds in taken.items():
            clock, processor = zip(*seconds, strict=True)
            entry[name] = {
                "median_ms": round(statistics.median(clock) * 1e3, 2),
                "min_ms": round(min(clock) * 1e3, 2),
                "median_processor_ms": round(statistics.median(processor) * 1e3, 2),
            }
        found.append(entry)
        print(json.dumps(entry), flush=True)
    return found


# --- captions -------------------------------------------------------------------------------------------------------


def quality(name: str, shards: str) -> dict[str, object]:
    """Of the val list: log-likelihoods of the true captions and agreement of the greedy ones, float32 against int8."""
    opened = open_model(name)
    held_out = load_held_out(shards, "val", opened.config.model.vision.image_size_px, opened.config.pixels)
    pictures, truths = list(held_out.pictures), _ids(held_out, opened.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        captions, likelihoods, sizes = {}, {}, {}
        for kind in ("float32", "int8"):
            target = Path(folder) / kind
            exporter.export(opened.model, opened.tokenizer, opened.config, target, int8=kind == "int8")
            runner = OnnxRunner(target)
            captions[kind] = runner.caption_ids(pictures)
            likelihoods[kind] = _log_likelihoods(runner, pictures, truths)
            sizes[kind] = (target / f"{exporter.STEP}.onnx").stat().st_size
    tokens = sum(map(len, truths))
    changes = [b - a for a, b in zip(likelihoods["float32"], likelihoods["int8"], strict=True)]
    return {
        "model": name,
        "pictures": len(pictures),
        "nats_per_token": {kind: -sum(values) / tokens for kind, values in likelihoods.items()},
        "median_change_of_a_caption_nats": statistics.median(map(abs, changes)),
        "largest_change_of_a_caption_nats": max(map(abs, changes)),
        "equal_greedy_captions": _share(a == b for a, b in zip(*captions.values(), strict=True)),
        "exact_match": {
            kind: _share(a == b[:-1] for a, b in zip(rows, truths, strict=True)) for kind, rows in captions.items()
        },
        "decoder_bytes": sizes,
    }


def _ids(held_out: HeldOut, tokenizer) -> list[list[int]]:
    return [[*tokenizer.encode(caption), tokenizer.special.end] for caption in held_out.captions]


def _log_likelihoods(runner: OnnxRunner, pictures: list[np.ndarray], truths: list[list[int]]) -> list[float]:
    """log p(text | picture) in nats, end included."""
    found = []
    for pixels, some in zip(runner.pixels(pictures), _batches(truths, runner.batch_size), strict=True):
        feeds = runner.start_decoding(pixels)
        sums, last = np.zeros(len(some)), np.full(len(some), runner.start)
        for step in range(max(map(len, some))):
            log_p = torch.from_numpy(runner.decode_step(last, feeds)).double().log_softmax(dim=-1)
            last = np.array([ids[step] if step < len(ids) else runner.pad for ids in some])
            going = np.array([step < len(ids) for ids in some])
            sums += np.where(going, log_p.numpy()[np.arange(len(some)), last], 0.0)
        found += sums.tolist()
    assert all(math.isfinite(value) for value in found)
    return found


def _batches(items: list, size: int) -> list[list]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _share(answers) -> float:
    answers = list(answers)
    return sum(answers) / len(answers)


if __name__ == "__main__":
    main()
