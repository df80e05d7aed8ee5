"""Fills the page of ablations from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opencoca.files import write_atomically
from opencoca.jobs.ablate.gradients import TOWERS
from opencoca.jobs.ablate.settings import TABLES
from opencoca.report import Chart, Curve, Link
from opencoca.report import ablations as page

MEASURES = {
    "retrieval": page.Measure("retrieval R@1", "%"),
    "zero_shot": page.Measure("zero-shot accuracy", "%"),
    "cider_d": page.Measure("captions' CIDEr-D", ""),
    "contrastive_nats": page.Measure("contrastive loss, nats", "", "less"),
    "captioning_nats": page.Measure("captioning loss, nats a token", "", "less"),
    "probe_tone": page.Measure("probe: skin tone", "%"),
    "probe_gender": page.Measure("probe: man or woman", "%"),
    "probe_concept": page.Measure("probe: concept", "%"),
}
TOWER_NAMES = {"encoder": "image encoder", "pooler": "generative pooler", "text": "unimodal text", "all": "all shared"}
METHOD = (
    "Every figure is the mean over the three test lists of OpenMoji (pictures, combinations, concepts: 871 pictures "
    "that training never showed). The size of the recipe was chosen on val; nothing was chosen on the test lists.",
    "Marks are means over seeds, bands run from the least to the greatest seed. A seed fixes weights and order, "
    "so settings are compared seed by seed: the last column is the mean difference from the reference row with its 95% "
    "interval (Student's t over the seeds' differences), strong where that leaves 0 out. Of a hundred such, "
    "five would do so by chance.",
    "Retrieval is R@1, pictures to captions and captions to pictures averaged. Zero-shot is the accuracy on skin tone "
    "(five labels, chance 20%) and on man or woman (chance 50%), averaged. Captions are greedy. The contrastive loss "
    "sums both directions, in batches of about 100.",
    "Costs count matrix products of training, forward and backward, in units of the contrastive-only model's, as the "
    "paper does. Times are the least processor seconds of forward and backward passes on one thread.",
    "The paper's models have hundreds of times as many parameters and a million times as many pictures. Its figures "
    "stand here for comparison of signs and sizes of differences, not of values.",
)


def write_page(path: Path, results: Mapping[str, Any]) -> Path:
    """Writes report.html."""
    write_atomically(path, page.render(as_page(results)))
    return path


def as_page(results: Mapping[str, Any]) -> page.AblationPage:
    """The page's data."""
    seeds = ", ".join(map(str, results["seeds"]))
    return page.AblationPage(
        title="Ablations: Table 8 of CoCa, with small models on OpenMoji",
        subtitle=[
            "Each setting is trained from scratch on 2,773 real pictures, with several seeds, and measured on pictures "
            "that training never showed. What came out differently from the paper stands here too.",
        ],
        tables=[_table(key, table, results["cost_unit"]) for key, table in results["tables"].items()],
        charts=_charts(results["gradients"]),
        charts_note="The cosine of the two weighted losses' gradients on one training batch that stays the same, over "
        "the parameters that both reach: 1 is one direction, 0 none in common, below 0 they work against each other. "
        "Means over seeds.",
        facts=[
            ("runs", str(results["runs"])),
            ("seeds", seeds or "none yet"),
            ("steps", f"{results['steps']} of {results.get('batch_size', 128)} pairs"),
        ],
        method=METHOD,
        failed=[(name, why) for name, why in results["failed"]],
        credits=[
            [
                "Method and the paper's figures: CoCa, ",
                Link("arXiv 2205.01917", "https://arxiv.org/abs/2205.01917"),
                ".",
            ],
            [
                "Pictures: ",
                Link("OpenMoji", "https://openmoji.org"),
                ", the open-source emoji and icon project, licence ",
                Link("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
                ".",
            ],
        ],
    )


def _table(key: str, table: Mapping[str, Any], unit: str) -> page.Table:
    names = TABLES[key].measures if key in TABLES else tuple(table["rows"][0]["measures"])
    letter = f"Table 8{key}: " if len(key) == 1 else ""
    return page.Table(
        key,
        f"{letter}{table['title']}",
        table["question"],
        [MEASURES[name] for name in names],
        ["steps", "operations a step", "operations in all", "time a step"],
        table["paper_columns"],
        [_row(row, names, row["title"] == table["reference"]) for row in table["rows"]],
        table["notes"],
    )


def _row(row: Mapping[str, Any], names: tuple[str, ...], is_reference: bool) -> page.Row:
    cost = row.get("cost", {})
    costs = [" + ".join(map(str, row.get("steps", [])))]
    costs += [f"{cost[name]:.2f}x" if name in cost else "" for name in ("step", "training")]
    costs.append(f"{row['cost_by_time']:.2f}x" if "cost_by_time" in row else "")
    return page.Row(
        row["title"],
        row["note"],
        len(row["seeds"]),
        [_value(row["measures"].get(name), MEASURES[name].unit) for name in names],
        costs,
        row["paper"],
        is_reference,
    )


def _value(measured: Mapping[str, Any] | None, unit: str) -> page.Value | None:
    if measured is None:
        return None
    factor = 100.0 if unit == "%" else 1.0
    less = measured["less_reference"]
    return page.Value(
        factor * measured["mean"],
        factor * measured["least"],
        factor * measured["greatest"],
        None if less is None else page.Difference(factor * less["mean"], *_bounds(less["interval"], factor)),
    )


def _bounds(interval: list[float] | None, factor: float) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (factor * interval[0], factor * interval[1])


def _charts(rows: list[dict[str, Any]]) -> list[Chart]:
    def curves(kind: str) -> list[Curve]:
        return [
            Curve(TOWER_NAMES[tower], [(row["step"], row[f"{tower}_{kind}"]["mean"]) for row in rows])
            for tower in (*TOWERS, "all")
            if rows and f"{tower}_{kind}" in rows[0]
        ]

    return [
        Chart("cosine of the gradients", "", curves("cosine")),
        Chart("captioning's norm over contrastive's", "", curves("ratio")),
    ]
