"""The shipped model on OpenMoji's drawings, a style that it never saw, beside chance and the nearest pixels.

    python benchmarks/drawings.py                         # measures the model that ships
    python benchmarks/drawings.py --export runs/drawings  # makes it from a run first, and writes its card

Both need the shards of `coca data get drawings`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import write_result

from opencoca import checkpoint, loading
from opencoca.data.shards import ShardReader, read_manifest
from opencoca.interop.pulled import SHIPPED
from opencoca.jobs.drawings import LISTS, halved, measure
from opencoca.jobs.drawings_card import card
from opencoca.jobs.quickstart import processor_name

FOLDER = SHIPPED / "drawings"


def main() -> None:
    """Measures, writes the result, and with --export the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/drawings"), help="folder of shards")
    parser.add_argument("--export", type=Path, help="the run folder to make the shipped model from")
    chosen = parser.parse_args()
    if chosen.export:
        halved(chosen.export, FOLDER)
    predictor = loading.load(FOLDER)
    samples = read_manifest(chosen.data)["samples"]
    result: dict[str, Any] = {
        "figures": measure(predictor, chosen.data),
        "pictures": {name: samples[name] for name in LISTS},
        "photographs": "not measured: the model never saw one and is not meant for them",
        "config": predictor.config.to_dict(),
    }
    if chosen.export:
        result["training"] = training_facts(chosen.export, chosen.data)
    else:
        result["training"] = json.loads(_result_path().read_text())["training"]
    write_result("drawings", result)
    if chosen.export:
        halved(chosen.export, FOLDER, card(json.loads(_result_path().read_text())))


def training_facts(run: Path, data: Path) -> dict[str, Any]:
    """What a reader of the figures has to know of the training."""
    saved, manifest = checkpoint.load(run), read_manifest(data)
    config, source = saved.config, manifest["source"]
    with ShardReader(data, config.data.train_split, verify=False) as reader:
        drawn = len({key.rpartition("-")[0] for key in reader.keys})
    return {
        "recipe": config.recipe,
        "parameters": sum(tensor.numel() for tensor in saved.weights.values()),
        "steps": config.optim.steps,
        "batch_size": config.data.batch_size,
        "seed": config.run.seed,
        "minutes": round((saved.state or {}).get("seconds", 0) / 60, 1),
        "processor": processor_name(),
        "samples": manifest["samples"][config.data.train_split],
        "drawings": drawn,
        "size_px": config.model.vision.image_size_px,
        "clip_art_kept": source["clip_art_kept"],
        "clip_art_left_out": sum(source["clip_art_left_out"].values()),
        "clip_art_reasons": source["clip_art_left_out"],
        "val": (saved.state or {}).get("metrics", {}),
        "packages": source["packages"],
    }


def _result_path() -> Path:
    return Path(__file__).parent / "results" / "drawings.json"


if __name__ == "__main__":
    main()
