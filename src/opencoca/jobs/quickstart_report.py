"""Fills the quickstart's report from what was measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from opencoca import report
from opencoca.data.openmoji import render
from opencoca.data.sources import open_source
from opencoca.eval.openmoji import attributes
from opencoca.infer.predictor import Predictor
from opencoca.ranking import top_k
from opencoca.train.metrics import read_jsonl

if TYPE_CHECKING:
    from opencoca.jobs.quickstart import SplitOutcome

CONTROLS = {
    "pixel_neighbour": ("nearest pixels", "the caption of the training picture that differs least, pixel by pixel"),
    "colour_histogram": (
        "colours alone",
        "logistic regression on each picture's colour counts, fitted on the training split",
    ),
    "no_image": ("no image", "the model's own caption of a blank white picture, given to every picture"),
    "shuffled_images": (
        "shuffled images",
        "the model's own output, each handed to another picture: nothing should be left",
    ),
}
DESCRIPTIONS = {
    "test_pictures": "Pictures at random. About half show a concept that training showed in another tone or gender.",
    "test_combinations": "Role and skin tone were both seen in training, but never together.",
    "test_concepts": "Whole concepts, in every tone and gender, that training never showed: the hard one.",
}
NAMES = {
    "i2t_recall@1": "image-to-text R@1",
    "i2t_recall@5": "image-to-text R@5",
    "i2t_recall@10": "image-to-text R@10",
    "t2i_recall@1": "text-to-image R@1",
    "t2i_recall@5": "text-to-image R@5",
    "exact_match": "caption exactly right",
    "cider_d": "caption CIDEr-D",
    "zeroshot_skin_tone": "zero-shot skin tone",
    "zeroshot_gender": "zero-shot man or woman",
    "caption_skin_tone": "skin tone named in caption",
    "caption_gender": "man or woman named in caption",
    "caption_attributes_alone": "caption of tone or gender alone",
}
HEADLINES = {
    ("test_pictures", "i2t_recall@1"): "its own caption comes first of all in the list",
    ("test_combinations", "i2t_recall@1"): "its own caption comes first; training never showed this role in this tone",
    ("test_concepts", "i2t_recall@1"): "its own caption comes first; training never showed the concept at all",
    ("test_pictures", "zeroshot_skin_tone"): "the right one of five tones is the most probable",
}
EXAMPLES_PER_SPLIT = 14


def write_report(
    path: Path, run: Path, predictor: Predictor, outcomes: Sequence[SplitOutcome], facts: dict[str, Any]
) -> None:
    """Writes `report.html`."""
    report.write(
        path,
        report.ReportData(
            title="A Contrastive Captioner, trained from scratch on OpenMoji",
            subtitle=[
                "One model, one forward and backward pass per step, two losses: it matches pictures with texts and "
                "writes captions. All is measured on pictures it never saw, beside what simpler means reach."
            ],
            facts=_facts(facts),
            charts=_charts(run, predictor),
            results=[_results(outcome) for outcome in outcomes],
            controls=[(title, meaning) for title, meaning in CONTROLS.values()],
            grid=[example for outcome in outcomes for example in _examples(outcome)],
            grid_note=f"{EXAMPLES_PER_SPLIT} pictures of each held-out list, evenly spaced in it; nobody chose them.",
            confusions=_confusions(outcomes[0]),
            next_steps=[
                ("Describe a picture of yours", f"coca caption picture.png --model {run}"),
                ("Choose among labels", f'coca classify picture.png --labels "dog,cat,bicycle" --model {run}'),
                ("Find pictures by words", f'coca search pictures/ "red flower" --model {run}'),
                ("See what the model is", f"coca info {run}"),
                ("Train again with another seed", "coca quickstart --seed 1 --run runs/quickstart-1"),
            ],
            credits=[
                [
                    "Pictures: ",
                    report.Link("OpenMoji", "https://openmoji.org"),
                    ", the open-source emoji and icon project, licence ",
                    report.Link("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
                    ". This page shows them and is shared alike.",
                ],
                ["Method: CoCa, ", report.Link("arXiv 2205.01917", "https://arxiv.org/abs/2205.01917"), "."],
            ],
        ),
    )


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("recipe", facts["recipe"]),
        ("parameters", f"{facts['parameters'] / 1e6:.1f}M"),
        ("training", f"{facts['steps']} steps of {facts['batch_size']} pairs"),
        ("training time", f"{facts['train_seconds'] / 60:.1f} min"),
        ("seed", str(facts["seed"])),
        ("machine", f"{facts['processor']}, {facts['threads']} threads, {facts['matmul_gflops']:.0f} GFLOP/s matmul"),
        ("peak memory", f"{facts['peak_memory_gb']:.1f} GB"),
        ("torch", facts["versions"]["torch"]),
        ("commit", facts["commit"]),
    ]


def _charts(run: Path, predictor: Predictor) -> list[report.Chart]:
    rows, data = read_jsonl(run / "metrics.jsonl"), predictor.config.data
    val = len(open_source(data.folder, data.val_split))
    tones = next(len(attribute.labels) for attribute in attributes() if attribute.name == "skin_tone")

    def curve(name: str, key: str, factor: float = 1.0) -> report.Curve:
        return report.Curve(name, [(row["step"], factor * row[key]) for row in rows if key in row])

    charts = [
        report.Chart(
            "Losses", "nats", [curve("contrastive", "contrastive"), curve("captioning, per token", "captioning")]
        ),
        report.Chart(
            "Retrieval on val",
            "%",
            [curve(f"image to text, R@{k}", f"val/i2t_recall@{k}", 100) for k in (1, 5)],
            levels=[(f"chance, R@{k}", 100 * k / val) for k in (1, 5)],
        ),
        report.Chart(
            "Skin tone on val",
            "%",
            [curve("zero-shot", "val/zeroshot_skin_tone", 100), curve("in the caption", "val/caption_skin_tone", 100)],
            levels=[("chance, zero-shot", 100 / tones)],
        ),
        report.Chart("Captions on val", "CIDEr-D", [curve("greedy", "val/cider_d")]),
        report.Chart("Speed", "samples/s", [curve("training", "samples_per_s")]),
        report.Chart("Model-FLOPs utilisation", "%", [curve("of the machine's matmul rate", "mfu", 100)]),
    ]
    return [chart for chart in charts if any(curve.points for curve in chart.curves)]


def _results(outcome: SplitOutcome) -> report.Results:
    split = outcome.held_out.name
    figures = []
    for key, name in NAMES.items():
        if key not in outcome.result.figures:
            continue
        factor, unit = (1.0, "") if key == "cider_d" else (100.0, "%")
        controls = [
            (title, None if value is None else factor * value)
            for control, (title, _) in CONTROLS.items()
            for value in [outcome.controls[control].get(key)]
        ]
        chance = outcome.controls["chance"].get(key)
        figures.append(
            report.Figure(
                name,
                factor * outcome.result.figures[key],
                unit,
                controls,
                None if chance is None else factor * chance,
                note=HEADLINES.get((split, key), ""),
                headline=(split, key) in HEADLINES,
            )
        )
    return report.Results(split, DESCRIPTIONS.get(split, ""), len(outcome.held_out), figures)


def _examples(outcome: SplitOutcome) -> list[report.Example]:
    held_out, result, _ = outcome
    rows = np.linspace(0, len(held_out) - 1, min(EXAMPLES_PER_SPLIT, len(held_out))).round().astype(int).tolist()
    scores, best = top_k(result.image_embeds[rows], result.text_embeds, k=3)
    return [
        report.Example(
            png=_shown(held_out.keys[row]),
            truth=held_out.captions[row],
            generated=result.captions[row],
            exact=result.captions[row].casefold() == held_out.captions[row].casefold(),
            retrieved=[
                report.Retrieved(held_out.captions[index], score, index == row)
                for score, index in zip(scores[i].tolist(), best[i].tolist(), strict=True)
            ],
            held_out=held_out.name,
        )
        for i, row in enumerate(rows)
    ]


def _shown(key: str, size_px: int = 96) -> bytes:
    """The picture as a small palette PNG, sharper than what the model sees."""
    image = Image.open(io.BytesIO(render(key, size_px))).convert("RGB").quantize(64)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _confusions(outcome: SplitOutcome) -> list[report.Confusion]:
    return [
        report.Confusion(
            f"Zero-shot {attribute.name.replace('_', ' ')} on {outcome.held_out.name}",
            attribute.labels,
            confusion.counts,
            100 * confusion.accuracy,
            100 / len(attribute.labels),
            [
                (
                    CONTROLS["colour_histogram"][0],
                    100 * outcome.controls["colour_histogram"][f"zeroshot_{attribute.name}"],
                )
            ],
            f"{len(attribute.templates)} prompts for each label, such as “{attribute.prompts(0)[-1]}”.",
        )
        for attribute in attributes()
        if (confusion := outcome.result.confusions.get(attribute.name)) is not None
    ]
