"""Writes the speeds in docs/published_models.md from `results/inference_*.json`; with --check it only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/published_models.md"
BEGIN, END = "<!-- inference -->\n", "<!-- /inference -->"
CAPTIONS = (
    ("greedy_batch8", "greedy, 8 pictures", {"B-32": 8}),
    ("greedy_batch1", "greedy, 1 picture", {"B-32": 4, "L-14": 3}),
    ("beams6_batch8", "6 beams, 8 pictures", {"B-32": 15}),
    ("beams6_batch1", "6 beams, 1 picture", {"B-32": 10, "L-14": 9}),
    ("beams6_groups3_batch8", "6 beams in 3 groups (its default), 8 pictures", {"B-32": 15}),
    ("beams6_groups3_batch1", "6 beams in 3 groups (its default), 1 picture", {"B-32": 10, "L-14": 9}),
)


def table() -> str:
    """The page's lines between the markers."""
    results = {size: _result(size) for size in ("B-32", "L-14")}
    lines = ["| | open_clip | ours | ratio | wanted |", "|---|---|---|---|---|"]
    for size, result in results.items():
        for part, words, wanted in CAPTIONS:
            if part in result:
                found = result[part]
                times = " | ".join(f"{found[who]['median_s']:.2f} s" for who in ("peer", "ours"))
                same = "" if len({*found["identical_captions"].split(" of ")}) == 1 else f" ({_same(found)})"
                lines.append(f"| {size}: {words} | {times} | {found['ratio']:.1f}{same} | {wanted[size]} |")
    b32 = results["B-32"]
    embedded, start = b32["embeddings"], b32["start"]
    rates = " | ".join(f"{embedded[who]['per_s']:.1f} / s" for who in ("open_clip", "ours"))
    lines.append(f"| B-32: pictures embedded, 16 at a time | {rates} | {embedded['ratio']:.2f} | 1 |")
    times = " | ".join(f"{start['median_s'][who]:.1f} s" for who in ("peer", "ours"))
    lines.append(f"| B-32: new process to first embedding | {times} | {1 / start['ours_of_peer']:.1f} | 2 |")
    decoded = [
        f"{size} makes {result['decode']['tokens_per_s']:.0f} tokens a second of a picture alone, "
        f"{result['decode']['of_limit']:.0%} of what bare products with its "
        f"{result['decode']['weight_bytes'] / 1e6:.0f} MB of weights would allow"
        for size, result in results.items()
    ]
    machine = f"{b32['processor']}, {b32['threads']} threads, {b32['matmul_gflops']:.0f} GFLOP/s, torch {b32['torch']}"
    lines += ["", f"{'; '.join(decoded)} (wanted: 90%). The embedding is compared with the fastest of open_clip, ", ""]
    lines[-2] += f"onnxruntime and OpenVINO, and runs at {embedded['of_sgemm']:.0%} of the machine's matrix rate."
    return "\n".join([*lines, f"Measured with {machine}, {b32['peer']}.", ""])


def main() -> int:
    """Writes or compares; 1 where the page differs from the results."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    wanted = f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"
    if "--check" in sys.argv:
        return int(text != wanted)
    PAGE.write_text(wanted)
    return 0


def _result(size: str) -> dict[str, Any]:
    return json.loads((ROOT / f"benchmarks/results/inference_coca_ViT-{size}.json").read_text())


def _same(found: dict[str, Any]) -> str:
    return f"{found['identical_captions']} the same"


if __name__ == "__main__":
    sys.exit(main())
