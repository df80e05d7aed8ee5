"""The published figures of the LAION models, and what an installation reaches on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from opencoca.errors import OpenCoCaError
from opencoca.eval.registry import EVALUATIONS, Data, Options
from opencoca.eval.run import measure
from opencoca.interop import hub, pulled
from opencoca.loading import load

B32, L14 = "laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "laion/CoCa-ViT-L-14-laion2B-s13B-b90k"
L14_COCO = "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k"


class Published(NamedTuple):
    """One published figure, in percent (CIDEr as papers print it), and how far another installation may be from it.

    tolerance: class names and templates differ a little between publications, and captions by the search.
    """

    model: str
    evaluation: str
    metric: str
    value: float
    tolerance: float


class Checked(NamedTuple):
    """A published figure beside ours, None where it wasn't measured; what to make of it; the steps to measure it."""

    model: str
    figure: str
    published: float
    here: float | None
    verdict: str
    good: bool
    steps: tuple[str, ...] = ()


PUBLISHED = (
    Published(B32, "imagenet/zeroshot", "acc1", 63.3, 0.5),
    Published(B32, "coco/retrieval", "i2t_recall@1", 54.6, 0.5),
    Published(B32, "coco/retrieval", "t2i_recall@1", 36.2, 0.5),
    Published(L14, "imagenet/zeroshot", "acc1", 75.6, 0.5),
    Published(L14, "coco/retrieval", "i2t_recall@1", 62.9, 0.5),
    Published(L14, "coco/retrieval", "t2i_recall@1", 45.7, 0.5),
    Published(L14_COCO, "coco/captions", "cider_d", 125.3, 2.0),
)


def selfcheck(data: Data, options: Options, say: Callable[[str], None] = lambda _: None) -> list[Checked]:
    """Every published figure with what was reached here, or exactly what to give to measure it."""
    rows: list[Checked] = []
    for model in dict.fromkeys(one.model for one in PUBLISHED):
        wanted = [one for one in PUBLISHED if one.model == model]
        names = list(dict.fromkeys(one.evaluation for one in wanted))
        entries = {name: EVALUATIONS[name] for name in names if all(need in data for need in EVALUATIONS[name].needs)}
        known, results, reasons = pulled.find(model), {}, {}
        if known is not None and entries:
            try:
                outcome = measure(model, load(model), entries, data, options, say)
                results, reasons = outcome.results, outcome.not_measured
            except OpenCoCaError as error:
                reasons = dict.fromkeys(names, str(error))
        for one in wanted:
            result = results.get(one.evaluation)
            if result is None:
                rows.append(_missing(one, known is not None, data, reasons))
                continue
            here = 100 * result.figures[one.metric]
            near = abs(here - one.value) <= one.tolerance
            kept = f" (of {options.limit} samples only)" if options.limit else ""
            verdict = f"as published, within {one.tolerance:g}" if near else f"differs by {here - one.value:+.1f}"
            rows.append(Checked(model, f"{one.evaluation} {one.metric}", one.value, here, verdict + kept, near))
    return rows


def _missing(one: Published, is_pulled: bool, data: Data, reasons: dict[str, str]) -> Checked:
    entry = EVALUATIONS[one.evaluation]
    steps = [] if is_pulled else [f"coca models pull {hub.PREFIX}{one.model}"]
    steps += [f"coca eval --selfcheck --data {need}=PATH     {entry.what}" for need in entry.needs if need not in data]
    said = reasons.get(one.evaluation, "not measured")
    return Checked(one.model, f"{one.evaluation} {one.metric}", one.value, None, said, False, tuple(steps))
