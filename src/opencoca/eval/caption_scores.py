"""All caption metrics of a set at once: ours, and METEOR and SPICE by the reference package where it can run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opencoca.errors import DataError
from opencoca.eval.metrics import bleu, cider, rouge_l
from opencoca.eval.ptb import words

PACKAGE = "pycocoevalcap"
REPAIR = f"install Java and `pip install {PACKAGE}` to measure it"


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures of the set, and per sample those of which the set's figure is the mean (BLEU counts over the set)."""
    figures = {f"bleu_{n}": scores.total for n, scores in enumerate(bleu(candidates, references), 1)}
    means = {
        "rouge_l": rouge_l(candidates, references),
        "cider_d": cider(candidates, references, "cider_d"),
        "cider": cider(candidates, references, "cider"),
    }
    figures |= {name: scores.total for name, scores in means.items()}
    return figures, {name: torch.tensor(scores.items, dtype=torch.double) for name, scores in means.items()}


def reference_package(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, tuple[float, list[float]]], dict[str, str]]:
    """METEOR and SPICE (total, per sample), and the reason for each that isn't measured.

    Both are Java programs of the reference package, which get our tokens.
    """
    if importlib.util.find_spec(PACKAGE) is None or shutil.which("java") is None:
        lacking = "Java isn't installed" if shutil.which("java") is None else f"{PACKAGE} isn't installed"
        return {}, dict.fromkeys(("meteor", "spice"), f"{lacking}; {REPAIR}")
    keys = range(len(candidates))
    results = {key: [" ".join(words(candidates[key]))] for key in keys}
    truths = {key: [" ".join(words(text)) for text in references[key]] for key in keys}
    measured: dict[str, tuple[float, list[float]]] = {}
    reasons: dict[str, str] = {}
    for name, compute in (("meteor", _meteor), ("spice", _spice)):
        try:
            with _quiet():
                measured[name] = compute(truths, results)
        except DataError as error:
            reasons[name] = str(error)
        except Exception as error:  # a foreign program: any failure of it costs its own figure and no other
            reasons[name] = f"the reference package failed ({type(error).__name__}: {str(error)[:120]}); {REPAIR}"
    return measured, reasons


def _meteor(truths: dict[int, list[str]], results: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]

    total, items = Meteor().compute_score(truths, results)
    return float(total), [float(item) for item in items]


def _spice(truths: dict[int, list[str]], results: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.spice import spice  # pyright: ignore[reportMissingImports]

    if not any((Path(spice.__file__).parent / "lib").glob("stanford-corenlp-*models.jar")):
        raise DataError(f"CoreNLP's models, which SPICE needs, are not there; run {PACKAGE}/get_stanford_models.sh")
    total, items = spice.Spice().compute_score(truths, results)
    return float(total), [_f_score(item) for item in items]


def _f_score(item: dict[str, Any]) -> float:
    return float(item["All"]["f"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that these programs print reaches standard output, which holds our results."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield
