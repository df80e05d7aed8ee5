"""`coca doctor`: what is installed, what is missing, and how fast this machine is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from opencoca.cli.main import BAD_INPUT, DONE, Flag


@dataclass(frozen=True)
class Args:
    """Show what is installed, what is missing, and how fast this machine is.

    Takes a few seconds. The exit code is 0 unless something that OpenCoCa needs is missing or broken (then 2).

    Examples:
      coca doctor
      coca doctor --json > doctor.json
      coca doctor --no-speed
    """

    no_speed: Flag = False
    """Don't measure."""
    json: Flag = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Looks at one thing after another, and prints each as soon as it is known."""
    from opencoca.cli import checkup
    from opencoca.cli.forms import json_text

    report: dict[str, Any] = {}
    for section, facts in checkup.sections(speed=not args.no_speed):
        report[section] = facts
        if not args.json:
            _print(section, facts)
    if args.json:
        print(json_text(report, indent=2))
    for problem in report["problems"]:
        print(f"coca: {problem}", file=sys.stderr)
    return BAD_INPUT if report["problems"] else DONE


def _print(section: str, facts: Any) -> None:
    """A section's facts, one a line: aligned on a terminal, with tabs between elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from opencoca.cli.forms import shown

    if not isinstance(facts, dict):  # problems go to standard error
        return
    if not sys.stdout.isatty():
        for name, value in facts.items():
            print(f"{section}\t{name}\t{shown(_said(value))}", flush=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True, width=22)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(shown(_said(value))))
    console = Console()
    console.print(Text(section, style="bold"))
    console.print(table)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
