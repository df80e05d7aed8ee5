"""`coca info`: show what a model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, Flag

if TYPE_CHECKING:
    from opencoca.config import HeadConfig
    from opencoca.loading import Opened

SHOWN_LABELS = 20


@dataclass(frozen=True)
class Args:
    """Show what a model is: sizes, training, results, where it came from.

    Parameters, operations (FLOPs) per picture and per caption token, resolution, vocabulary, context, how it writes
    captions unless it is told otherwise, source and licence. `coca models verify` checks the digests of large files.

    Examples:
      coca info
      coca info runs/quickstart
      coca info hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k
      coca info runs/quickstart --json > model.json
    """

    model: Annotated[str | None, Positional, arg(metavar="[MODEL]", help_behavior_hint="(default: the newest one)")] = (
        None
    )
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    json: Flag = False
    """Print one JSON object, with whole numbers."""


def run(args: Args) -> int:
    """Opens the model, whose weights stay in their file."""
    from opencoca.cli.forms import json_text
    from opencoca.loading import open_model

    facts = describe(open_model(args.model))
    if args.json:
        print(json_text(facts, indent=2))
    else:
        _print(facts)
    return DONE


def describe(opened: Opened) -> dict[str, Any]:
    """What is known of a model, ready for JSON."""
    from opencoca.checkpoint import parameters_by_part
    from opencoca.model.flops import forward_flops

    config, origin, state = opened.config, opened.origin, opened.state or {}
    vision, text = config.model.vision, config.model.text
    parameters = parameters_by_part(dict(opened.model.named_parameters()))
    if text.tie_output:  # the head is the token embedding, which the unimodal half counts
        parameters["head"] = 0
    flops = forward_flops(config.model, 1, text.context_length)
    # One token more, where causal attention that is counted in full grows by as many keys as the context has.
    longer, shorter = (forward_flops(config.model, 1, text.context_length // 2 + more) for more in (1, 0))
    return {
        "recipe": config.recipe,
        "folder": str(opened.path.resolve()),
        "source": origin.source if origin else f"trained with the recipe {config.recipe}",
        "revision": origin.revision if origin else None,
        "licence": origin.licence if origin else None,
        "sha256": opened.sha256,
        "parameters": {**parameters, "total": sum(parameters.values())},
        "flops_per_image": flops.encoder + flops.generative_pooler + flops.contrastive_pooler,
        "flops_per_caption_token": longer.total - shorter.total,
        "forward_flops": {**flops._asdict(), "total": flops.total},
        "image_size_px": vision.image_size_px,
        "patch_size_px": vision.patch_size_px,
        "vocabulary": text.vocab_size,
        "context_length": text.context_length,
        "embed_dim": config.model.embed_dim,
        "heads": {head.name: _head(head) for head in config.model.heads},
        "generation": asdict(config.generation),
        "initialised_from": _start(state),
        "trained_steps": state.get("step"),
        "planned_steps": config.optim.steps,
        "metrics": state.get("metrics", {}),
    }


def _start(state: Mapping[str, Any]) -> str | None:
    """Where the weights before the first step were from; None where that isn't known."""
    source = state.get("initialised_from")
    return "random weights" if source == "" else source


def _head(head: HeadConfig) -> str:
    """What a head chooses among, and from what."""
    more = ", ..." if len(head.labels) > SHOWN_LABELS else ""
    what = "the encoder" if head.reads == "encoder" else "the decoder"
    return f"{len(head.labels)} labels from {what}: {', '.join(head.labels[:SHOWN_LABELS])}{more}"


def _print(facts: Mapping[str, Any]) -> None:
    """One fact a line: aligned on a terminal, with a tab between elsewhere."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from opencoca.cli.forms import shown

    rows = _flat(facts)
    if not sys.stdout.isatty():
        for name, value in rows:
            print(f"{name}\t{shown(value)}")
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(f"{value:,}" if isinstance(value, int) else shown(value)))
    Console().print(table)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "unknown" if value is None else value))
    return rows
