"""`coca info`: show what a model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, Flag

if TYPE_CHECKING:
    from opencoca.checkpoint import Checkpoint


@dataclass(frozen=True)
class Args:
    """Show what a model is: recipe, sizes, training, results.

    Every file of the model is checked against its digest first.

    Examples:
      coca info
      coca info runs/quickstart
      coca info runs/quickstart --json > model.json
    """

    model: Annotated[str | None, Positional, arg(metavar="[MODEL]", help_behavior_hint="(default: the newest one)")] = (
        None
    )
    """A run or model folder."""
    json: Flag = False
    """Print one JSON object, with whole numbers."""


def run(args: Args) -> int:
    """Reads the model folder without building the model."""
    from pathlib import Path

    from opencoca import checkpoint
    from opencoca.cli.output import json_text
    from opencoca.loading import newest_run

    facts = describe(checkpoint.load(Path(args.model) if args.model is not None else newest_run()))
    if args.json:
        print(json_text(facts, indent=2))
    else:
        _print(facts)
    return DONE


def describe(saved: Checkpoint) -> dict[str, Any]:
    """What is known of a saved model, ready for JSON.

    Raises: CheckpointError where its weights don't fit its configuration.
    """
    import json

    import torch

    from opencoca.checkpoint import MANIFEST, MODEL, STATE, load_weights
    from opencoca.model.coca import CoCa
    from opencoca.model.flops import forward_flops

    config = saved.config
    with torch.device("meta"):
        model = CoCa(config.model)
    load_weights(model, saved.weights, saved.folder / MODEL)  # only compares: nothing is copied to "meta"
    parameters = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    parameters["log_scale"] = model.log_scale.numel()
    if config.model.text.tie_output:  # the head is the token embedding, which the unimodal half counts
        parameters["head"] = 0
    flops = forward_flops(config.model, 1, config.model.text.context_length)
    manifest = json.loads((saved.folder / MANIFEST).read_text())
    state_file = saved.folder / STATE
    state = json.loads(state_file.read_text()) if STATE in manifest["files"] else {}
    vision, text = config.model.vision, config.model.text
    return {
        "recipe": config.recipe,
        "folder": str(saved.folder.resolve()),
        "sha256": manifest["files"][MODEL]["sha256"],
        "parameters": {**parameters, "total": sum(parameters.values())},
        "forward_flops": {**flops._asdict(), "total": flops.total},
        "image_size_px": vision.image_size_px,
        "patch_size_px": vision.patch_size_px,
        "vocabulary": text.vocab_size,
        "context_length": text.context_length,
        "embed_dim": config.model.embed_dim,
        "trained_steps": state.get("step"),
        "planned_steps": config.optim.steps,
        "metrics": state.get("metrics", {}),
    }


def _print(facts: Mapping[str, Any]) -> None:
    """One fact a line: aligned on a terminal, with a tab between elsewhere."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from opencoca.cli.output import shown

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
