"""How figures are called on the page of an evaluation."""

from __future__ import annotations

import re

_AFTER = {"": "", "_after": ", temperature fitted"}
_CALIBRATION = {
    "ece": "calibration error, equal width",
    "ece_mass": "calibration error, equal mass",
    "ece_floor": "calibration error of an honest model",
    "brier": "Brier score",
    "nll": "negative log-likelihood, nats",
    "confidence": "mean confidence",
}
NAMES = {  # how figures are called on the page; others as they are in the JSON
    "acc1": "accuracy, first guess",
    "acc5": "accuracy, first five",
    "mean_per_class_recall": "mean recall of classes",
    **{f"i2t_recall@{k}": f"picture to caption, R@{k}" for k in (1, 5, 10)},
    **{f"t2i_recall@{k}": f"caption to picture, R@{k}" for k in (1, 5, 10)},
    **{f"bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "cider": "CIDEr",
    **{f"cider_d_{domain}": f"CIDEr-D, {domain}-domain" for domain in ("in", "near", "out")},
    "meteor": "METEOR",
    "spice": "SPICE",
    "mean_corruption_acc": "accuracy, mean over corruptions",
    "relative_drop": "share of the accuracy that is lost",
    **{f"severity_{n}": f"severity {n}, mean over corruptions" for n in range(1, 6)},
    **{f"fgsm_{n}": f"accuracy under FGSM, eps {n}/255" for n in (1, 2, 4, 8)},
    **{f"pgd_{n}": f"accuracy under PGD, eps {n}/255" for n in (1, 2, 4, 8)},
    "acc1_written": "accuracy, a wrong name on it",
    "acc1_blank": "accuracy, a blank label on it",
    "acc1_true_name": "accuracy, its own name on it",
    "fell_for": "taken for the wrong name on it",
    "fell_for_unwritten": "taken for that anyway, label blank",
    "acc1_other": "accuracy in the other style",
    "drop": "accuracy lost by the style",
    "retained": "share of the accuracy that is left",
    "acc1_clean": "accuracy without duplicates",
    "acc1_duplicates": "accuracy on duplicates",
    "duplicates": "pictures that training has too",
    "near_in_embedding": "pictures near one of training's in embedding",
    "acc1_not_near_in_embedding": "accuracy without those",
    **{f"{key}{end}": f"{name}{more}" for key, name in _CALIBRATION.items() for end, more in _AFTER.items()},
    "factor": "factor on logits, fitted",
    "caption_names_label": "captions that name the label",
    "caption_names_group": "captions that name the group",
    "largest_gap": "largest gap of accuracy between groups",
}
_SHAPES = (  # figures that come once per size, group or column; the first part is a name of its own
    (r"acc1_(\d+)px", "accuracy at {} pixels"),
    (r"gamma_(\d+)px", "share of the accuracy left at {} pixels (gamma)"),
    (r"improved_gamma_(\d+)px", "the same, 0 near chance (Gamma), {} pixels"),
    (r"war_(\d+)px", "WAR at {} pixels"),
    (r"sar_(\d+)px", "SAR at {} pixels"),
    (r"gap_(.+)\[(.+)\]", "gap by {1}: {0}"),
    (r"(.+)\[(.+)=(.+)\]", "{1} {2}: {0}"),
    (r"(.+)\[(.+)\]", "{0}, {1}"),
)


def shown_name(metric: str) -> str:
    """A figure's name in words where there are any, else as it is in the JSON, with spaces."""
    if metric in NAMES:
        return NAMES[metric]
    for pattern, words in _SHAPES:
        found = re.fullmatch(pattern, metric)
        if found:
            return words.format(*(NAMES.get(part, part) for part in found.groups()))
    return metric.replace("_", " ")
