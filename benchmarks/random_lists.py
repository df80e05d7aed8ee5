"""The quickstart on held-out lists without guards, beside a plain model: how hard are our own lists?

    python benchmarks/random_lists.py --jobs 2         # 4 trainings for each seed, two at a time: 20 minutes

The committed lists never split drawings with the same pixels between training and a held-out list, hold no concept of
more than 36 pictures out, and count every spelling of a concept as one (`opencoca.data.openmoji_table`). Here lists of
the same sizes are drawn without those rules: 271 pictures of concepts that are code points without skin tone, gender
sign and person, man or woman; 200 with a role and a tone that are both in training, never together; 400 at random.
`val`, on which the recipe was tuned, is the committed one, and in no other list.

`ours` is the `openmoji` recipe with a vocabulary of these training captions; `plain` is an untuned model as such lists
were first measured with: AdamW at 1e-3, batch 64, 48 px, patches of 8 px, width 160, 5 layers each side, and as many
steps as take about as long. Each is trained and measured on both kinds of lists, by the quickstart's own functions.
Writes benchmarks/results/random_lists.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opencoca import checkpoint, recipes
from opencoca.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    PoolerConfig,
    TextConfig,
    VisionConfig,
)
from opencoca.data import openmoji
from opencoca.data.openmoji import COLUMNS, TONES, Row, role_of

SEED = 20  # as in openmoji_table; the first one that was tried
SIZES = {"test_concepts": 271, "test_combinations": 200, "test_pictures": 400}
NO_CONCEPT = {*TONES, "200D", "FE0F", "2640", "2642", "1F9D1", "1F468", "1F469"}
MOST_OF_A_ROLE = 2  # tones held out of the five of a role


def main() -> None:
    """One training in a process of its own for each recipe, kind of lists and seed; then all figures together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", choices=("ours", "plain"), default=["ours", "plain"])
    parser.add_argument("--lists", nargs="+", choices=("unguarded", "committed"), default=["unguarded", "committed"])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, each with its share of the cores")
    parser.add_argument("--run", type=Path, help="train and measure one of them in this folder, and write no result")
    arguments = parser.parse_args()
    if arguments.run is not None:
        measure(arguments.recipes[0], arguments.lists[0], arguments.seeds[0], arguments.run)
        return
    from common import write_result

    choices = list(itertools.product(arguments.seeds, arguments.recipes, arguments.lists))
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [Path(folder) / "-".join(map(str, choice)) for choice in choices]
        list(pool.map(lambda choice, run: started(*choice, run, arguments.jobs), choices, runs))
        for (_, recipe, lists), run in zip(choices, runs, strict=True):
            for key, value in json.loads((run / "figures.json").read_text()).items():
                found.setdefault(f"{recipe} on {lists} lists", {}).setdefault(key, []).append(value)
    unguarded = unguarded_lists(list(openmoji.load_table()))
    result = {
        "seeds": arguments.seeds,
        "jobs": arguments.jobs,
        "shown_in_training": {"unguarded lists": shown(unguarded), "committed lists": shown(openmoji.load_table())},
        "figures": {name: {key: _spread(values) for key, values in of.items()} for name, of in found.items()},
    }
    write_result("random_lists", result)


def started(seed: int, recipe: str, lists: str, run: Path, jobs: int) -> None:
    """One training in a process of its own."""
    choice = ["--recipes", recipe, "--lists", lists, "--seeds", str(seed), "--run", str(run)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    subprocess.run([sys.executable, __file__, *choice], check=True, env={**os.environ, "OMP_NUM_THREADS": threads})


def measure(recipe: str, lists: str, seed: int, run: Path) -> None:
    """Trains one recipe on one kind of lists, and writes the model's own figures into `run`/figures.json."""
    from opencoca.eval.held_out import load_held_out
    from opencoca.eval.openmoji import attributes
    from opencoca.eval.suite import evaluate_split
    from opencoca.jobs.pretrain import pretrain
    from opencoca.jobs.quickstart import TEST_SPLITS
    from opencoca.loading import load

    if lists == "unguarded":
        use(unguarded_lists(openmoji.load_table()))
    folder = run / "pictures"
    openmoji.prepare(folder)
    config = recipes.get("openmoji") if recipe == "ours" else plain_recipe()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, folder=str(folder), tokenizer="train"),
        run=dataclasses.replace(config.run, seed=seed, eval_every_steps=0, log_every_steps=20),
    )
    state = pretrain(config, run, attributes())
    predictor = load(run)
    figures = {"train_seconds": state.seconds, "matmul_gflops": state.metrics["matmul_gflops"]}
    for split in TEST_SPLITS:
        held_out = load_held_out(folder, split, config.model.vision.image_size_px, config.pixels)
        found = evaluate_split(predictor, held_out, attributes(), predictor.config.generation.beams).figures
        figures |= {f"{split}/{name}": value for name, value in found.items()}
    checkpoint.write_atomically(run / "figures.json", json.dumps(figures))


def plain_recipe() -> Config:
    """The untuned model; its steps take about as long in all as the quickstart's."""
    return Config(
        recipe="plain",
        model=ModelConfig(
            vision=VisionConfig(image_size_px=48, patch_size_px=8, width=160, depth=5, num_heads=5, mlp_width=640),
            text=TextConfig(
                vocab_size=1000,
                context_length=32,
                width=160,
                unimodal_depth=3,
                multimodal_depth=2,
                num_heads=5,
                mlp_width=640,
                tie_output=True,
            ),
            pooler=PoolerConfig(num_queries=16),
        ),
        optim=OptimConfig(steps=560, optimizer="adamw", peak_lr=1e-3, warmup_steps=50, weight_decay=0.01),
        data=DataConfig(folder="", batch_size=64, captions="first"),
        pixels=PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )


def unguarded_lists(rows: list[Row]) -> list[Row]:
    """The table with lists drawn as this module says; `val` stays."""
    free = [row for row in rows if row.split != "val"]
    by_concept: dict[str, list[Row]] = defaultdict(list)
    for row in free:
        by_concept["-".join(code for code in row.id.split("-") if code not in NO_CONCEPT)].append(row)
    split_of: dict[str, str] = {}
    wanted = SIZES["test_concepts"]
    for concept in _shuffled("concepts", by_concept):
        if len(by_concept[concept]) <= wanted:
            split_of |= {row.id: "test_concepts" for row in by_concept[concept]}
            wanted -= len(by_concept[concept])
    tones_of_role: dict[str, set[str]] = defaultdict(set)
    for row in free:
        if row.tone and row.id not in split_of:
            tones_of_role[role_of(row.id)].add(row.tone)
    held: Counter[str] = Counter()
    combinations = [row.id for row in free if row.tone and len(tones_of_role[role_of(row.id)]) == len(TONES)]
    for id in _shuffled("combinations", combinations):
        role = role_of(id)
        if held[role] < MOST_OF_A_ROLE and sum(held.values()) < SIZES["test_combinations"]:
            held[role] += 1
            split_of[id] = "test_combinations"
    rest = [row.id for row in free if row.id not in split_of]
    split_of |= dict.fromkeys(_shuffled("pictures", rest)[: SIZES["test_pictures"]], "test_pictures")
    return [row if row.split == "val" else row._replace(split=split_of.get(row.id, "train"), kind="") for row in rows]


def use(rows: list[Row]) -> None:
    """Puts these lists in the place of the committed ones, for this process."""
    lines = ["\t".join(",".join(value) if isinstance(value, tuple) else value for value in row) for row in rows]
    text = "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
    openmoji.table_bytes = lambda: text.encode()
    openmoji._rows.cache_clear()


def shown(rows: list[Row]) -> dict[str, float]:
    """Of each list, the share of pictures of a concept that training shows, and of pictures that it shows itself."""
    train = [row for row in rows if row.split == "train"]
    concepts, pictures = {row.concept for row in train}, {row.picture for row in train}
    shares = {}
    for split in SIZES:
        members = [row for row in rows if row.split == split]
        shares[f"{split}/concept"] = round(statistics.fmean(row.concept in concepts for row in members), 3)
        shares[f"{split}/same_pixels"] = round(statistics.fmean(row.picture in pictures for row in members), 3)
    return shares


def _shuffled(purpose: str, items) -> list[str]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{SEED}/plain/{purpose}/{item}".encode()).hexdigest())


def _spread(values: list[float]) -> dict:
    return {"mean": statistics.fmean(values), "seeds": values}


if __name__ == "__main__":
    main()
