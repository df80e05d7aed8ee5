"""A training plan on the screen: what it needs, what it does, and how long that takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from opencoca.jobs.plan import Plan

Rows = dict[str, dict[str, str]]


def rows(plan: Plan) -> Rows:
    """The plan's figures in words, section by section."""
    machine, memory, captions = plan.machine, plan.memory, plan.captions
    how = "measured here" if machine.measured else "as given"
    per = f"{plan.micro_batch} pairs"
    if plan.micro_batches > 1:
        per = f"{plan.micro_batches} micro-batches of up to {plan.micro_batch} pairs"
    recomputed = plan.computed_flops / plan.step_flops
    once_more = f", {recomputed:.2f} times that with what is computed twice" if recomputed > 1 else ""
    shards = f"{plan.shards}, {plan.shards_per_reader:.3g} per reading process" if plan.shards else "unknown"
    return {
        "run": {
            "recipe": f"{plan.recipe}, {plan.parameters / 1e6:.1f}M parameters, {plan.precision}",
            "devices": f"{machine.devices} x {machine.kind}, {plan.mode}",
            "global batch": f"{plan.pairs_per_device * machine.devices:,} pairs; per device {per}",
        },
        "memory per device": {
            "weights": _gb(memory.weights),
            "gradients": _gb(memory.gradients),
            "optimizer": _gb(memory.optimizer),
            "moving average": _gb(memory.average),
            "activations": _gb(memory.activations),
            "losses": _gb(memory.losses),
            "exchange between ranks": _gb(memory.exchange),
            "needed at most": f"{_gb(plan.need_bytes)} of {_gb(machine.memory_bytes)} (not all at once; with the "
            "device's own context)",
        },
        "work": {
            "captions": f"{captions.mean:.1f} ids, {captions.padded:.1f} with padding ({captions.how})",
            "operations per step": f"{plan.step_flops / 1e12:,.3g} TFLOP per device{once_more}",
            "steps": f"{plan.steps:,}",
            "samples": f"{plan.samples:,}, {plan.epochs:.3g} epochs of {plan.data_samples:,}",
            "tokens": f"{plan.tokens:,.3g}",
            "shards": shards,
        },
        "time": {
            "matrix products": f"{machine.flops / 1e12:,.3g} TFLOP/s per device, {how}",
            "assumed utilisation": f"{plan.mfu:.0%} of that (--mfu)",
            "per step": f"{plan.step_s:.3g} s",
            "in all": duration(plan.eta_s),
        },
    }


def show(sections: Rows) -> None:
    """Prints the rows: aligned on a terminal, with tabs between elsewhere."""
    if not sys.stdout.isatty():
        for section, facts in sections.items():
            for name, value in facts.items():
                print(f"{section}\t{name}\t{value}")
        return
    console = Console()
    for section, facts in sections.items():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="cyan", no_wrap=True, width=24)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(Text(name), Text(value))
        console.print(Text(section, style="bold"))
        console.print(table)


def duration(seconds: float) -> str:
    """The time in its two largest units."""
    seconds = round(seconds)
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    parts = []
    for name, size in units:
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append(f"{count} {name if count != 1 else name[:-1]}")
    return " ".join(parts[:2]) or "0 seconds"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
