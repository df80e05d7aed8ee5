"""Writes the README's figures and output from `quickstart.json` and `demo.json`; with --check it only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
DEMO_BEGIN, DEMO_END = "<!-- demo -->\n", "<!-- /demo -->"
ROWS = (
    ("test_pictures", "i2t_recall@1", "image-to-text R@1"),
    ("test_pictures", "i2t_recall@5", "image-to-text R@5"),
    ("test_pictures", "zeroshot_skin_tone", "zero-shot skin tone"),
    ("test_pictures", "zeroshot_gender", "zero-shot man or woman"),
    ("test_pictures", "caption_skin_tone", "skin tone named in the caption"),
    ("test_pictures", "caption_attributes_alone", "caption with tone or gender and nothing else"),
    ("test_pictures", "exact_match", "caption exactly right"),
    ("test_pictures", "cider_d", "caption CIDEr-D"),
    ("test_combinations", "i2t_recall@1", "image-to-text R@1"),
    ("test_combinations", "exact_match", "caption exactly right"),
    ("test_concepts", "i2t_recall@1", "image-to-text R@1"),
    ("test_concepts", "i2t_recall@5", "image-to-text R@5"),
    ("test_concepts", "caption_attributes_alone", "caption with tone or gender and nothing else"),
)
CONTROLS = ("pixel_neighbour", "colour_histogram", "shuffled_images", "chance")


def table() -> str:
    """The README's lines between the markers."""
    result = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())
    figures, runs = result["figures"], result["runs"]
    lines = [
        "| held-out list | figure | OpenCoCa (3 seeds) | nearest pixels | colours alone | shuffled | chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for split, name, words in ROWS:
        entry = figures[f"{split}/{name}"]
        shown = _shown(name, entry["mean"]), _shown(name, entry["min"]), _shown(name, entry["max"])
        cells = [
            _shown(name, figures[key]["mean"]) if (key := f"{split}/{control}/{name}") in figures else "–"
            for control in CONTROLS
        ]
        lines.append(f"| `{split}` | {words} | **{shown[0]}** ({shown[1]} to {shown[2]}) | {' | '.join(cells)} |")
    known = figures["test_pictures/known_concept/i2t_recall@5"]["mean"]
    share = figures["test_pictures/known_concept/share"]["mean"]
    new = figures["test_pictures/new_concept/i2t_recall@5"]["mean"]
    seconds = [run["train_seconds"] for run in runs]
    scaled = [run["train_seconds_at_129_gflops"] for run in runs]
    memory = max(run["peak_memory_gb"] for run in runs)
    lines += [
        "",
        f"Of `test_pictures`, {share:.0%} show a concept that training showed in another tone or gender: of these "
        f"{known:.1%} are found within five, of the rest, whose names training never showed, {new:.1%}.",
        "",
        f"Training took {min(seconds):.0f} to {max(seconds):.0f} s on 2 threads of a machine of "
        f"{min(run['matmul_gflops'] for run in runs):.0f} to {max(run['matmul_gflops'] for run in runs):.0f} GFLOP/s "
        f"(at 129 GFLOP/s: {min(scaled):.0f} to {max(scaled):.0f} s), with at most {memory:.1f} GB of memory. "
        "Source: `benchmarks/results/quickstart.json`.",
        "",
    ]
    return "\n".join(lines)


def demo() -> str:
    """What `make demo` and `make test` print: of the training three steps."""
    result = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    steps = tuple(f"step {step}/" for step in (1, 100, result["meta"]["steps"]))
    lines = [line for line in result["output"] if not line.startswith("step ") or line.startswith(steps)]
    return "\n".join(
        [
            "What it prints (shortened; `benchmarks/results/demo.json`), on a shared machine of 2 cores:",
            "",
            "```text",
            *lines,
            "```",
            "",
            f"`make test` on a fresh clone ends with `{result['tests']['summary']}`.",
        ]
    )


def main() -> int:
    """Writes or compares; 1 where the README differs from the results."""
    path = ROOT / "README.md"
    text = path.read_text()
    head, rest = text.split(BEGIN)
    wanted = f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"
    head, rest = wanted.split(DEMO_BEGIN)
    wanted = f"{head}{DEMO_BEGIN}\n{demo()}\n\n{DEMO_END}{rest.split(DEMO_END, 1)[1]}"
    if "--check" in sys.argv:
        return int(text != wanted)
    path.write_text(wanted)
    return 0


def _shown(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "cider_d" else f"{value:.1%}"


if __name__ == "__main__":
    sys.exit(main())
