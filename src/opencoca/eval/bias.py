"""Bias audit: how accuracy and captions differ between annotated groups of pictures.

A gap is the best group's figure less the worst's. It is above 0 by chance alone, the more so the smaller the groups
are: so beside its bootstrap interval (pictures drawn anew within each group) stands p, how often a gap as large comes
about when the pictures' groups are shuffled. Groups of fewer than 10 pictures are shown, and in no gap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.eval.annotated import Annotated, open_groups, open_openmoji
from opencoca.eval.captioned import captions_of
from opencoca.eval.embed import embed_labels, embed_pictures
from opencoca.eval.metrics import cider
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.robustness.pictures import common_facts, is_right, truths_of
from opencoca.eval.statistics import CONFIDENCE, RESAMPLES, bootstrap_interval, digest, resampled_means
from opencoca.eval.suite import named_label
from opencoca.infer.predictor import Predictor
from opencoca.ranking import top_k

SMALLEST = 10  # pictures of a group that counts in a gap
SHUFFLES = 2_000
MEASURES = {
    "acc1": "accuracy, first guess",
    "cider_d": "captions, CIDEr-D",
    "caption_names_label": "captions that name the label",
    "caption_names_group": "captions that name the group",
}


def gaps(values: Tensor, groups: Sequence[str], resamples: int = RESAMPLES, shuffles: int = SHUFFLES) -> dict[str, Any]:
    """Mean, interval and number of each group, the worst and best of those large enough, their gap, its interval and p.

    Args: values [I], nan where a picture has none; groups, one name each, "" for none.
    """
    array, names = values.double().numpy(), np.array(groups)
    known = np.isfinite(array) & (names != "")
    array, names = array[known], names[known]
    rows, draws = {}, {}
    for i, group in enumerate(sorted(set(names.tolist()))):
        own = array[names == group]
        rows[group] = {"n": len(own), "mean": float(own.mean()), "interval": list(bootstrap_interval(own, resamples))}
        if len(own) >= SMALLEST:
            draws[group] = resampled_means(own, resamples, i)
    found: dict[str, Any] = {"groups": rows, "too_small": [group for group in rows if group not in draws]}
    if len(draws) < 2:
        return {**found, "gap": None}
    means = {group: rows[group]["mean"] for group in draws}
    worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    stacked = np.stack(list(draws.values()))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(stacked.max(axis=0) - stacked.min(axis=0), [tail, 1 - tail])
    gap = means[best] - means[worst]
    return {
        **found,
        "worst": worst,
        "best": best,
        "gap": gap,
        "gap_interval": [float(low), float(high)],
        "p": _shuffled(array, names, list(draws), gap, shuffles),
    }


def _shuffled(values: np.ndarray, names: np.ndarray, counted: Sequence[str], gap: float, shuffles: int) -> float:
    """How often a gap at least as large comes about when the groups are shuffled, with (1 + hits) / (1 + draws)."""
    kept = np.isin(names, counted)
    values, codes = values[kept], np.searchsorted(np.sort(np.array(counted)), names[kept])
    sizes = np.bincount(codes)
    rng, hits = np.random.default_rng(0), 0
    for _ in range(shuffles):
        means = np.bincount(rng.permutation(codes), weights=values) / sizes
        hits += means.max() - means.min() >= gap - 1e-12
    return (1 + hits) / (1 + shuffles)


class BiasAudit:
    """Zero-shot accuracy and captions by group.

    figures: acc1 and the captions' measures over all pictures; NAME[COLUMN=GROUP] of each group; gap_NAME[COLUMN]; and
      the headline largest_gap, the largest of the accuracy's gaps over the columns.
    """

    def __init__(self, name: str, annotated: Annotated, options: Options) -> None:
        self.name, self._annotated, self._options = name, annotated.spread(options.limit), options
        pictures, columns = self._annotated.pictures, self._annotated.columns
        self.key = digest([name, pictures.stamp, pictures.digest, options.beams, sorted(columns.items())])

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, annotated, cache = time.perf_counter(), self._annotated, self._options.cache
        pictures = annotated.pictures
        embedded = embed_pictures(predictor, pictures.read, pictures.ids, cache, pictures.stamp)
        places = embedded.places
        if not places:
            raise DataError(f"{self.name}: none of {len(pictures)} pictures can be read; {embedded.skipped[0][1]}")
        labels = embed_labels(predictor, pictures.names, pictures.templates, cache)
        guesses = top_k(embedded.embeds, labels, k=1)[1][:, 0].numpy()
        told = captions_of(predictor, pictures.read, pictures.ids, pictures.stamp, self._options)
        captions = [str(told["said"][place]) for place in places]
        columns = {name: [groups[place] for place in places] for name, groups in annotated.columns.items()}
        per_sample = {"acc1": is_right(guesses, truths_of(pictures, places))} | self._of_captions(captions, places)
        measures = [(measure, name, per_sample[measure]) for measure in per_sample for name in columns]
        for name, words in annotated.words.items():
            named = _names_own(captions, columns[name], words)
            measures.append(("caption_names_group", name, named))
            per_sample[f"caption_names_group[{name}]"] = named
        found = []
        for measure, name, values in measures:
            row = {"measure": measure, "column": name, **gaps(values, columns[name])}
            found.append(row)
            for group in row["groups"]:
                own = torch.tensor([one == group for one in columns[name]])
                per_sample[f"{measure}[{name}={group}]"] = torch.where(own, values, torch.full_like(values, torch.nan))
        kept = {metric: values for metric, values in per_sample.items() if values.isfinite().any()}
        figures = {metric: float(values[values.isfinite()].mean()) for metric, values in kept.items()}
        figures |= {f"gap_{r['measure']}[{r['column']}]": r["gap"] for r in found if r["gap"] is not None}
        of_accuracy = [row["gap"] for row in found if row["measure"] == "acc1" and row["gap"] is not None]
        if not of_accuracy:
            raise DataError(
                f"{self.name}: no column has two groups of {SMALLEST} pictures or more; annotate more pictures"
            )
        figures["largest_gap"] = max(of_accuracy)
        facts = {
            **common_facts(pictures, places, [*pictures.skipped, *embedded.skipped]),
            "chance": None,  # of the gap
            "what": annotated.what,
            "beams": self._options.beams,
            "gaps": found,
            "columns_left_out": annotated.left_out,
            "smallest_group": SMALLEST,
            "bands": [_band(row) for row in found],
            "skipped": skipped_facts([*pictures.skipped, *embedded.skipped]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        ids = [pictures.ids[place] for place in places]
        return EvaluationResult(self.name, figures, "largest_gap", kept, ids, facts, higher_is_better=False)

    def _of_captions(self, captions: Sequence[str], places: Sequence[int]) -> dict[str, Tensor]:
        pictures, references = self._annotated.pictures, self._annotated.references
        if references is None and pictures.template_source == "captions":
            references = [pictures.read(place).caption for place in range(len(pictures))]
        if references is not None:
            scores = cider(captions, [[references[place]] for place in places])
            return {"cider_d": torch.tensor(scores.items, dtype=torch.double)}
        names = [pictures.names[pictures.truths[place]] for place in places]
        named = [any(_names(caption, one) for one in own) for caption, own in zip(captions, names, strict=True)]
        return {"caption_names_label": torch.tensor(named, dtype=torch.double)}


def _names(caption: str, label: str) -> bool:
    """Whether the label's words stand in the caption, one behind the other."""
    spaced = " ".join("".join(c if c.isalnum() else " " for c in caption.lower()).split())
    return f" {label.lower()} " in f" {spaced} "


def _names_own(captions: Sequence[str], groups: Sequence[str], words: Mapping[str, str]) -> Tensor:
    """1 where a caption names its picture's group and no other, 0 where it doesn't, nan where it has none."""
    names, spoken = list(words), list(words.values())
    values = [
        float(named_label(caption, spoken) == names.index(group)) if group in words else float("nan")
        for caption, group in zip(captions, groups, strict=True)
    ]
    return torch.tensor(values, dtype=torch.double)


def _band(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the report draws of one measure by one column."""
    fraction = row["measure"] != "cider_d"
    factor = 100.0 if fraction else 1.0
    note = "no gap"
    if row["gap"] is not None:
        low, high = (factor * one for one in row["gap_interval"])
        unit = " points" if fraction else ""
        note = (
            f"gap {factor * row['gap']:.3g}{unit} [{low:.3g}, {high:.3g}], {row['worst']} below {row['best']}; "
            f"p {row['p']:.3f} if groups are shuffled"
        )
    if row["too_small"]:
        note += f"; in no gap, of fewer than {SMALLEST} pictures: {', '.join(row['too_small'])}"
    rows = []
    for group, one in row["groups"].items():
        low, high = one["interval"]
        rows.append(
            {"name": group, "n": one["n"], "value": factor * one["mean"], "low": factor * low, "high": factor * high}
        )
    return {
        "title": f"{MEASURES[row['measure']]}, by {row['column']}",
        "note": note,
        "unit": "%" if fraction else "",
        "rows": rows,
    }


def make(name: str, data: Data, options: Options) -> BiasAudit:
    """The audit of one's own pictures, annotated by the table at `--data groups=TABLE`, or `--groups TABLE`."""
    return BiasAudit(name, open_groups(data["groups"], data), options)


def make_openmoji(name: str, data: Data, options: Options) -> BiasAudit:
    """The audit on OpenMoji's cartoons at `--data openmoji=PATH#SPLIT`."""
    return BiasAudit(name, open_openmoji(data["openmoji"]), options)
