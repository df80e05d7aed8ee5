"""What a fine-tuning tells people: its page with figures before and after, and the model's card."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opencoca import checkpoint, report
from opencoca.config import Config
from opencoca.data.pixels import open_picture
from opencoca.jobs.finetune_data import Held
from opencoca.jobs.finetune_measure import Measured, mean_recall
from opencoca.model_card import Origin, model_card
from opencoca.ranking import top_k
from opencoca.train.metrics import read_jsonl

NAMES = {
    "i2t_recall@1": "picture to caption, R@1",
    "i2t_recall@5": "picture to caption, R@5",
    "t2i_recall@1": "caption to picture, R@1",
    "t2i_recall@5": "caption to picture, R@5",
    "cider_d": "caption CIDEr-D",
    "bleu_4": "caption BLEU-4",
}
HEADLINES = {
    "cider_d": "how like people's captions its own are, by rare words above all",
    "i2t_recall@1": "the picture's own caption comes first",
}
EXAMPLES, SHOWN_PX = 12, 96


def write_report(
    path: Path, run: Path, results: Mapping[str, Any], val: Held, before: Measured, after: Measured
) -> None:
    """Writes the page."""
    keep = [key for key in results["after"] if key.startswith("keep/")]
    sections = [
        report.Results(
            "held-out pictures",
            "Pictures of the same data that it was not trained on; no copy of a picture is on both sides.",
            len(val),
            [_figure(name, name, results, headline=name in HEADLINES) for name in NAMES],
        )
    ]
    if keep:
        description = "Pictures that have nothing to do with the new ones: what it knew before, and still knows."
        figures = [_figure(key, key.removeprefix("keep/"), results) for key in keep]
        sections.append(report.Results("untouched data", description, results["keep_pictures"], figures))
    report.write(
        path,
        report.ReportData(
            title=f"{results['base']}, fine-tuned on {results['data']}",
            subtitle=[*_story(results), *(f"Warning: {warning}" for warning in results["warnings"])],
            facts=_facts(results),
            charts=[*_blends(results), *_charts(run)],
            results=sections,
            controls=[("before", "the model that it began with, on the same pictures")],
            grid=_examples(val, before, after),
            grid_note=f"{min(EXAMPLES, len(val))} held-out pictures, evenly spaced; nobody chose them.",
            next_steps=[
                ("Describe a picture of yours", f"coca caption picture.png --model {run}"),
                ("Find pictures by words", f'coca search pictures/ "a red flower" --model {run}'),
                ("Write it in OpenCLIP's layout, where it is of that shape", f"coca convert {run} out --to open_clip"),
            ],
            credits=[
                ["Method: CoCa, ", report.Link("arXiv 2205.01917", "https://arxiv.org/abs/2205.01917"), "."],
                [
                    "Weights between two models: WiSE-FT, ",
                    report.Link("arXiv 2109.01903", "https://arxiv.org/abs/2109.01903"),
                    ". The pictures belong to whoever made them; this page shows some of them.",
                ],
            ],
        ),
    )


def card(name: str, config: Config, weights: Mapping[str, Tensor], origin: Origin, results: Mapping[str, Any]) -> str:
    """The model's card: the usual one, and how it was fine-tuned."""
    usual = model_card(config, name, checkpoint.parameters_by_part(weights), origin)
    usual = usual.replace(
        "What it was trained on, its publisher says.",
        "Whoever fine-tuned it chooses a licence, with an eye on those of the original weights, pictures and captions.",
    )
    lines = [
        "## Fine-tuning",
        "",
        *(f"{line}" for line in _story(results)),
        "",
        f"| on {results['val_measured']} held-out pictures | before | after |",
        "|---|---:|---:|",
        *(
            f"| {title} | {_cell(key, results['before'])} | {_cell(key, results['after'])} |"
            for key, title in NAMES.items()
        ),
    ]
    for key in results["after"]:
        if key.startswith("keep/"):
            title = f"untouched data: {NAMES[key.removeprefix('keep/')]}"
            lines.append(f"| {title} | {_cell(key, results['before'])} | {_cell(key, results['after'])} |")
    return usual.replace("## Limits\n", "\n".join([*lines, "", "## Limits", ""]), 1)


def _story(results: Mapping[str, Any]) -> list[str]:
    """How it came about, in two sentences."""
    how = f"low-rank updates of rank {results['lora_rank']}" if results["lora_rank"] else "all weights"
    told = (
        f"{results['train_pictures']} pictures with captions trained {how} for {results['steps']} steps of "
        f"{results['batch_size']} pairs, with both losses."
    )
    if results["alpha"] < 1:
        told += f" The weights are {results['alpha']:g} of the tuned ones and the rest of the original ones."
    return [told]


def _cell(key: str, figures: Mapping[str, float]) -> str:
    value = figures[key]
    return f"{value:.3f}" if key.endswith(("cider_d", "bleu_4")) else f"{100 * value:.1f}%"


def _figure(key: str, name: str, results: Mapping[str, Any], headline: bool = False) -> report.Figure:
    percent = "recall" in name
    captions = results["keep_captions" if key.startswith("keep/") else "val_captions"]
    pictures = results["keep_pictures" if key.startswith("keep/") else "val_measured"]
    chance = int(name[-1]) / (captions if name.startswith("i2t") else pictures) if percent else None

    def shown(figures: Mapping[str, float]) -> float:
        return 100 * figures[key] if percent else round(figures[key], 4)

    return report.Figure(
        NAMES[name],
        shown(results["after"]),
        "%" if percent else "",
        [("before", shown(results["before"]))],
        None if chance is None else 100 * chance,
        note=HEADLINES.get(name, "") if headline else "",
        headline=headline,
    )


def _blends(results: Mapping[str, Any]) -> list[report.Chart]:
    """The same figures from the original weights (0) to the tuned ones (1)."""
    measured = sorted({0.0: results["before"], **{float(a): f for a, f in results["by_alpha"].items()}}.items())
    if len(measured) < 3:
        return []
    recalls = [report.Curve("held-out pictures", [(alpha, 100 * mean_recall(f)) for alpha, f in measured])]
    if "keep" in results["after"]:
        recalls.append(report.Curve("untouched data", [(alpha, 100 * f["keep"]) for alpha, f in measured]))
    cider = [report.Curve("held-out pictures", [(alpha, f["cider_d"]) for alpha, f in measured])]
    share = "share of the tuned weights"
    return [
        report.Chart("Captions, by blend", "CIDEr-D", cider, share),
        report.Chart("Mean of R@1 and R@5, both ways, by blend", "%", recalls, share),
    ]


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("began with", results["base"]),
        ("trained", f"rank {results['lora_rank']} updates" if results["lora_rank"] else "all weights"),
        ("pictures", f"{results['train_pictures']}, and {results['val_pictures']} held out"),
        ("steps", f"{results['steps']} of {results['batch_size']} pairs"),
        ("highest rate", f"{results['peak_lr']:.1e}"),
        ("share of the tuned weights", f"{results['alpha']:g}"),
        ("training time", f"{results['seconds'] / 60:.1f} min"),
    ]


def _charts(run: Path) -> list[report.Chart]:
    rows = read_jsonl(run / "metrics.jsonl")

    def curve(name: str, key: str, factor: float = 1.0) -> report.Curve:
        return report.Curve(name, [(row["step"], factor * row[key]) for row in rows if key in row])

    charts = [
        report.Chart(
            "Losses", "nats", [curve("contrastive", "contrastive"), curve("captioning, per token", "captioning")]
        ),
        report.Chart(
            "Retrieval on held-out pictures",
            "%",
            [curve("picture to caption, R@1", "val/i2t_recall@1", 100), curve("R@5", "val/i2t_recall@5", 100)],
        ),
        report.Chart("Captions on held-out pictures", "CIDEr-D", [curve("greedy", "val/cider_d")]),
    ]
    return [chart for chart in charts if any(curve.points for curve in chart.curves)]


def _examples(val: Held, before: Measured, after: Measured) -> list[report.Example]:
    rows = np.linspace(0, len(val) - 1, min(EXAMPLES, len(val))).round().astype(int).tolist()
    scores, best = top_k(after.image_embeds[rows], after.text_embeds, k=3)
    return [
        report.Example(
            png=_thumbnail(val.source[row].picture),
            truth=val.captions[row][0],
            generated=after.captions[row],
            exact=after.captions[row].casefold() in {text.casefold() for text in val.captions[row]},
            retrieved=[
                report.Retrieved(val.texts[index], score, val.texts[index] in val.captions[row])
                for score, index in zip(scores[i].tolist(), best[i].tolist(), strict=True)
            ],
            before=before.captions[row],
        )
        for i, row in enumerate(rows)
    ]


def _thumbnail(picture: bytes) -> bytes:
    image = open_picture(picture)
    image.thumbnail((SHOWN_PX, SHOWN_PX))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
