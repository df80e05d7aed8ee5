"""The quickstart: real pictures, a trained model, its figures beside their controls, and a report."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opencoca import checkpoint, recipes
from opencoca.config import Config
from opencoca.data import openmoji
from opencoca.eval.controls import (
    blank_picture_figures,
    colour_histogram,
    nearest_neighbour_figures,
    shuffled_figures,
)
from opencoca.eval.held_out import HeldOut, load_held_out
from opencoca.eval.openmoji import attributes
from opencoca.eval.suite import SplitResult, evaluate_split
from opencoca.infer.predictor import Predictor
from opencoca.jobs.pretrain import pretrain
from opencoca.jobs.quickstart_report import write_report
from opencoca.loading import load
from opencoca.ranking import ranks_of_targets, recall_at
from opencoca.train.machine import peak_memory_bytes

TEST_SPLITS = ("test_pictures", "test_combinations", "test_concepts")
RENDER_SIZE_PX = 96


class Outcome(NamedTuple):
    """What a quickstart leaves: figures under fixed keys, and where the files are."""

    figures: dict[str, float]
    results: Path
    report: Path
    skipped: list[tuple[str, str]]


class SplitOutcome(NamedTuple):
    """One held-out list: what the model reached, and what each control did (figure names are the same)."""

    held_out: HeldOut
    result: SplitResult
    controls: dict[str, dict[str, float]]


def quickstart(
    run: Path, folder: Path, seed: int = 0, say: Callable[[str], None] = print, config: Config | None = None
) -> Outcome:
    """Prepares OpenMoji in `folder`, trains the `openmoji` recipe in `run`, measures it, writes results and report.

    Every part that is already done is left as it is, so the same call goes on after an interruption.

    Raises: OpenCoCaError of each part, with the repair.
    """
    config = config or recipes.get("openmoji")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, folder=str(folder)),
        run=dataclasses.replace(config.run, seed=seed),
    )
    say(f"1/4  pictures: OpenMoji into {folder}")
    summary = openmoji.prepare(folder, RENDER_SIZE_PX)
    for key, reason in summary.skipped:
        say(f"     skipped {key}: {reason}")
    say(f"2/4  training: recipe {config.recipe}, {config.optim.steps} steps, in {run}")
    state = pretrain(config, run, attributes())
    say("3/4  measuring on the held-out lists, with controls")
    predictor = load(run)
    outcomes = measure(predictor, folder)
    figures = flatten(outcomes) | {
        f"training/{name}": value for name, value in state.metrics.items() if "/" not in name
    }
    facts = run_facts(predictor, state.seconds, state.metrics["matmul_gflops"])
    results = {**{key: round(value, 6) for key, value in figures.items()}, "meta": facts}
    results_path, report_path = run / "results.json", run / "report.html"
    checkpoint.write_atomically(results_path, json.dumps(results, indent=2) + "\n")
    say(f"4/4  report: {report_path}")
    write_report(report_path, run, predictor, outcomes, facts)
    return Outcome(figures, results_path, report_path, summary.skipped)


def measure(predictor: Predictor, folder: Path, splits: tuple[str, ...] = TEST_SPLITS) -> list[SplitOutcome]:
    """Each held-out list with the model and with every control."""
    size_px, pixels = predictor.config.model.vision.image_size_px, predictor.config.pixels
    train = load_held_out(folder, "train", size_px, pixels)
    outcomes = []
    for split in splits:
        held_out = load_held_out(folder, split, size_px, pixels)
        result = evaluate_split(predictor, held_out, attributes(), predictor.config.generation.beams)
        controls = {
            "pixel_neighbour": nearest_neighbour_figures(held_out, train, attributes()),
            "colour_histogram": {
                f"zeroshot_{attribute.name}": colour_histogram(held_out, train, attribute).accuracy
                for attribute in attributes()
                if attribute.name in result.confusions
            },
            "no_image": blank_picture_figures(predictor, held_out, attributes()),
            "shuffled_images": shuffled_figures(
                result.captions, result.image_embeds, result.text_embeds, held_out, attributes()
            ),
            "chance": chance(held_out),
            **by_concept(held_out, train, result.image_embeds, result.text_embeds),
        }
        outcomes.append(SplitOutcome(held_out, result, controls))
    return outcomes


def by_concept(
    held_out: HeldOut, train: HeldOut, image_embeds: torch.Tensor, text_embeds: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Image-to-text recall apart for pictures whose concept training showed (in another tone or gender) and the rest.

    Candidates are the whole list's captions. A name that training never showed can hardly be found.
    """
    known = {sample["concept"] for sample in train.attributes}
    seen = torch.tensor([sample["concept"] in known for sample in held_out.attributes])
    ranks = ranks_of_targets(image_embeds, text_embeds, torch.arange(len(held_out)))
    figures = {}
    for name, rows in (("known_concept", seen), ("new_concept", ~seen)):
        if rows.any():
            figures[name] = {f"i2t_recall@{k}": recall_at(ranks[rows], k) for k in (1, 5, 10)}
            figures[name]["share"] = rows.float().mean().item()
    return figures


def chance(held_out: HeldOut) -> dict[str, float]:
    """What guessing reaches: uniformly among the candidates or labels."""
    figures = {f"{way}_recall@{k}": k / len(held_out) for way in ("i2t", "t2i") for k in (1, 5, 10)}
    return figures | {f"zeroshot_{attribute.name}": 1 / len(attribute.labels) for attribute in attributes()}


def flatten(outcomes: list[SplitOutcome]) -> dict[str, float]:
    """All figures under fixed keys: `test_pictures/i2t_recall@1`, `test_pictures/chance/i2t_recall@1` and so on."""
    figures = {}
    for held_out, result, controls in outcomes:
        figures |= {f"{held_out.name}/{name}": value for name, value in result.figures.items()}
        for control, values in controls.items():
            figures |= {f"{held_out.name}/{control}/{name}": value for name, value in values.items()}
    return figures


def run_facts(predictor: Predictor, train_seconds: float, matmul_gflops: float) -> dict[str, Any]:
    """What a figure needs beside it: configuration, hardware, versions, commit, time and memory.

    The machine's matrix-product rate is the one that the trainer measured when it started; by it the training time is
    scaled to a machine of 129 GFLOP/s.
    """
    return {
        "recipe": predictor.config.recipe,
        "seed": predictor.config.run.seed,
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "steps": predictor.config.optim.steps,
        "batch_size": predictor.config.data.batch_size,
        "train_seconds": round(train_seconds, 1),
        "matmul_gflops": round(matmul_gflops, 1),
        "train_seconds_at_129_gflops": round(train_seconds * matmul_gflops / 129, 1),
        "peak_memory_gb": round(peak_memory_bytes() / 1e9, 3),
        "device": str(predictor.device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "tokenizers", "numpy", "pillow")},
        "commit": commit(),
        "config": predictor.config.to_dict(),
    }


def processor_name() -> str:
    """The processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The source's git commit, with + where files differ from it, or "unknown" outside a clone."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
