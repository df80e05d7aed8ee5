"""Captions, embeddings and start-up against open_clip, in one environment, with equal weights and inputs.

    benchmarks/peer_environment.sh /tmp/peer
    /tmp/peer/bin/python benchmarks/inference.py                               # B/32, about 14 minutes
    /tmp/peer/bin/python benchmarks/inference.py --model coca_ViT-L-14         # about 6 minutes
    /tmp/peer/bin/python benchmarks/inference.py --parts decode start          # some of it, into the same file

Both run the same random weights on the same pictures and make exactly 30 tokens (end is forbidden before). How many
captions have identical ids stands beside each ratio. Runs alternate. Writes benchmarks/results/inference_MODEL.json;
parts that aren't run stay in it as they are, each with its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from common import alternating_medians, result_path, write_result
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import generate
from opencoca.interop.open_clip import from_open_clip
from opencoca.jobs.quickstart import commit
from opencoca.model.coca import CoCa

TOLD = "ratio", "identical_captions", "of_limit", "ours_of_peer"
TOKENS = 30  # start included, as open_clip counts them
SPECIAL = SpecialIds(pad=0, start=49406, end=49407)
MODES = {
    "greedy": (
        {"generation_type": "top_k", "top_k": 1},
        GenerationConfig(beams=1, max_tokens=TOKENS - 2, min_tokens=TOKENS - 2),
    ),
    "beams6": (
        {"generation_type": "beam_search", "num_beams": 6, "num_beam_groups": 1},
        GenerationConfig(beams=6, max_tokens=TOKENS - 1, min_tokens=TOKENS - 2, beam_scores="logit"),
    ),
    "beams6_groups3": (
        {"generation_type": "beam_search", "num_beams": 6, "num_beam_groups": 3},
        GenerationConfig(beams=6, num_beam_groups=3, max_tokens=TOKENS - 1, min_tokens=TOKENS - 2, beam_scores="logit"),
    ),
}
PARTS = {
    "coca_ViT-B-32": [
        *("greedy_batch8", "greedy_batch1", "beams6_batch1", "beams6_groups3_batch1", "beams6_batch8"),
        *("beams6_groups3_batch8", "embeddings", "decode", "start"),
    ],
    "coca_ViT-L-14": ["greedy_batch1", "beams6_batch1", "beams6_groups3_batch1", "decode"],
}
SLOW = {"beams6_groups3_batch8"}  # 7 minutes, nearly all of it the peer's: only where it is named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PARTS, default="coca_ViT-B-32")
    parser.add_argument("--parts", nargs="+", choices=PARTS["coca_ViT-B-32"], help="default: all but the slowest")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    parts = args.parts or [part for part in PARTS[args.model] if part not in SLOW]
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    peer = make_peer(args.model)
    ours = from_open_clip(open_clip.get_model_config(args.model), peer.state_dict()).requires_grad_(False)  # as `load`
    size = peer.visual.image_size[0]
    name = f"inference_{args.model}"
    path = result_path(name)
    known = json.loads(path.read_text()) if path.is_file() else {}
    figures = {part: known[part] for part in PARTS[args.model] if part in known}
    for part in parts:
        began = time.perf_counter()
        if part == "embeddings":
            found = embeddings(peer, ours, torch.randn(16, 3, size, size), args.repeats)
        elif part == "decode":
            found = decode(ours, torch.randn(1, 3, size, size), args.repeats)
        elif part == "start":
            found = start(args.model, peer, args.repeats)
        else:
            mode, batch = part.split("_batch")
            found = captions(peer, ours, mode, torch.randn(int(batch), 3, size, size), args.repeats)
        figures[part] = found | {"commit": commit(), "load": os.getloadavg()[0]}
        told = {name: found[name] for name in TOLD if name in found}
        print(f"{part}: {told}, {time.perf_counter() - began:.0f} s", flush=True)
    about = {
        "model": args.model,
        "peer": f"open_clip_torch {open_clip.__version__}, transformers {transformers.__version__}",
        "tokens": TOKENS,
        "repeats": args.repeats,
    }
    write_result(name, about | figures)


def make_peer(name: str) -> torch.nn.Module:
    peer = open_clip.create_model(name, pretrained=None).eval()
    torch.nn.init.normal_(peer.text_decoder.text_projection, std=0.05)  # open_clip leaves it uninitialised
    return peer


def captions(peer: Any, ours: CoCa, mode: str, pixels: Tensor, repeats: int) -> dict[str, Any]:
    theirs_arguments, config = MODES[mode]
    results: dict[str, Any] = {}

    def run_peer() -> None:
        results["peer"] = peer.generate(pixels, seq_len=TOKENS, min_seq_len=TOKENS - 1, **theirs_arguments)

    def run_ours() -> None:
        image = ours.encode_image(pixels)
        results["ours"] = [best[0].ids for best in generate(ours, image.tokens, SPECIAL, config)]

    run_ours()  # lays out and packs its weights
    seconds = compare({"peer": run_peer, "ours": run_ours}, repeats, len(pixels), warmup=0)
    theirs = [strip(row) for row in results["peer"].tolist()]
    identical = sum(a == b for a, b in zip(theirs, results["ours"], strict=True))
    if identical < len(theirs):
        for a, b in zip(theirs, results["ours"], strict=True):
            if a != b:
                print("differs:", a, b, sep="\n  ")
    return seconds | {"identical_captions": f"{identical} of {len(theirs)}"}


def strip(ids: list[int]) -> list[int]:
    return [i for i in ids if i not in SPECIAL]


def compare(runs: dict[str, Callable[[], None]], repeats: int, items: int, warmup: int = 1) -> dict[str, Any]:
    seconds = alternating_medians(runs, repeats, warmup)
    best_peer = min(taken["median_s"] for name, taken in seconds.items() if name != "ours")
    result = {name: taken | {"per_s": round(items / taken["median_s"], 3)} for name, taken in seconds.items()}
    return result | {"ratio": round(best_peer / seconds["ours"]["median_s"], 2)}


def embeddings(peer: Any, ours: CoCa, pixels: Tensor, repeats: int) -> dict[str, Any]:
    """Image embeddings per second: open_clip eager, its vision tower in onnxruntime and OpenVINO, and ours."""
    expected = peer.encode_image(pixels)
    error = (ours.encode_image(pixels).embed - expected).abs().max().item()
    runs: dict[str, Callable[[], Any]] = {
        "open_clip": lambda: peer.encode_image(pixels),
        "ours": lambda: ours.encode_image(pixels),
    }
    errors = {"ours": error}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vision.onnx"
        torch.onnx.export(VisionTower(peer), (pixels,), path, dynamo=True, external_data=True, verbose=False)
        import onnxruntime
        import openvino

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name, array = session.get_inputs()[0].name, pixels.numpy()
        runs["onnxruntime"] = lambda: session.run(None, {name: array})
        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
        compiled = core.compile_model(path, "CPU")
        runs["openvino"] = lambda: compiled(array)
        for runtime, output in (("onnxruntime", session.run(None, {name: array})[0]), ("openvino", compiled(array)[0])):
            errors[runtime] = float(np.abs(output - expected.numpy()).max())
        result = compare(runs, repeats, len(pixels))
    return result | {"batch": len(pixels), "largest_difference": errors} | of_sgemm(ours, result, len(pixels))


class VisionTower(torch.nn.Module):
    """open_clip's image encoder, normalised, as one graph."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.visual = peer.visual

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.visual(pixels)[0], dim=-1)


def of_sgemm(ours: CoCa, result: dict[str, Any], batch: int) -> dict[str, Any]:
    from opencoca.model.flops import forward_flops
    from opencoca.train.machine import matmul_rate

    flops = forward_flops(ours.config, batch, text_length=2)
    operations = flops.encoder + flops.generative_pooler + flops.contrastive_pooler
    rate, limit = operations / result["ours"]["median_s"], matmul_rate(torch.device("cpu"))
    return {"gflops": round(rate / 1e9, 1), "sgemm_gflops": round(limit / 1e9, 1), "of_sgemm": round(rate / limit, 3)}


def decode(ours: CoCa, pixels: Tensor, repeats: int) -> dict[str, Any]:
    """Tokens per second at batch 1, against matrix-vector products over the same weights in the faster stock layout."""
    tokens = ours.encode_image(pixels).tokens
    config = MODES["greedy"][1]
    weights = [p for name, p in ours.named_parameters() if decoding_weight(name) and p.ndim == 2]
    rows = [torch.randn(1, p.shape[1]) for p in weights]
    turned = [p.T.contiguous() for p in weights]

    def linear() -> None:
        for row, weight in zip(rows, weights, strict=True):
            torch.nn.functional.linear(row, weight)

    def matmul() -> None:
        for row, weight in zip(rows, turned, strict=True):
            torch.mm(row, weight)

    def step() -> None:
        generate(ours, tokens, SPECIAL, config)

    seconds = alternating_medians({"linear": linear, "in_out": matmul, "ours": step}, max(repeats, 9), warmup=2)
    steps = config.max_tokens  # the last token is never read
    limit = min(seconds["linear"]["median_s"], seconds["in_out"]["median_s"])
    per_token = seconds["ours"]["median_s"] / steps
    return {
        "seconds": seconds,
        "tokens_per_s": round(1 / per_token, 1),
        "limit_tokens_per_s": round(1 / limit, 1),
        "of_limit": round(limit / per_token, 3),
        "weight_bytes": sum(p.numel() * 4 for p in weights),
    }


def decoding_weight(name: str) -> bool:
    """The matrices that one decoding step reads: not the picture's keys and values, which are projected once."""
    part = name.startswith(("unimodal.blocks", "multimodal.", "head"))
    return part and not name.endswith("cross_attention.kv.weight")


def start(name: str, peer: Any, repeats: int) -> dict[str, Any]:
    """Seconds from a new process to the first embedding, import and load included; the weights file is the same."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        state = {key: tensor.contiguous() for key, tensor in peer.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}})
        )
        picture = folder / "picture.jpg"
        Image.effect_noise((640, 480), 60).convert("RGB").save(picture)
        scripts = {
            "peer": (
                "import open_clip, torch; from PIL import Image\n"
                f"model, _, preprocess = open_clip.create_model_and_transforms({name!r}, "
                f"pretrained={str(folder / 'open_clip_model.safetensors')!r})\n"
                "model.eval()\n"
                "with torch.no_grad():\n"
                f"    print(model.encode_image(preprocess(Image.open({str(picture)!r}))[None])[0, :4].tolist())"
            ),
            "ours": (
                f"import opencoca\nprint(opencoca.load({str(folder)!r}).embed_images({str(picture)!r})[0, :4].tolist())"
            ),
        }
        outputs: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {name: [] for name in scripts}
        for turn in range(repeats + 1):
            for who, script in scripts.items():
                began = time.perf_counter()
                done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
                if turn:
                    seconds[who].append(time.perf_counter() - began)
                outputs[who] = json.loads(done.stdout.strip().splitlines()[-1])
        difference = max(abs(a - b) for a, b in zip(outputs["peer"], outputs["ours"], strict=True))
        medians = {who: statistics.median(taken) for who, taken in seconds.items()}
    return {
        "median_s": medians,
        "ours_of_peer": round(medians["ours"] / medians["peer"], 3),
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
