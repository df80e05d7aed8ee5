"""What `coca data` tells while it works and in the end: progress, what is skipped, and a fact a line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opencoca.cli.progress import PictureProgress

MOST_NAMED = 20


class Progress:
    """A bar on a terminal, as soon as it is known how much there is."""

    def __init__(self) -> None:
        self._bar: PictureProgress | None = None

    def __call__(self, done: int, total: int) -> None:
        from opencoca.cli.progress import PictureProgress

        self._bar = self._bar or PictureProgress(total)
        self._bar.move(done)

    def close(self) -> None:
        """Ends the bar, if there is one."""
        if self._bar:
            self._bar.close()


class Named:
    """Names what is skipped on standard error, the first of it; the rest it counts. skipped: (key, reason) of all."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []

    def __call__(self, key: str, reason: str) -> None:
        from opencoca.cli.forms import shown

        self.skipped.append((key, reason))
        if len(self.skipped) <= MOST_NAMED:
            print(f"skipped {shown(key)}: {shown(reason)}", file=sys.stderr)

    def finish(self) -> None:
        """Says how many more there were."""
        more = len(self.skipped) - MOST_NAMED
        if more > 0:
            print(f"skipped {more} more; --json lists all", file=sys.stderr)


def print_report(report: Mapping[str, Any]) -> None:
    """A fact a line, with a tab between; facts of a split have its name before theirs."""
    from opencoca.cli.forms import shown

    plain = {name: value for name, value in report.items() if name not in ("splits", "shared")}
    if "splits" in report:
        plain.pop("skipped")  # each split says it, and why
    facts = _facts(plain)
    for split, found in report.get("splits", {}).items():
        facts += _facts(found, "" if split == "all" else f"{split}.")
    for shared in report.get("shared", []):
        both = "+".join(shared["splits"])
        facts += [(f"{both}.{what}", shared[what]) for what in ("pictures", "captions")]
    for name, value in facts:
        print(f"{name}\t{shown(value)}")


def _facts(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            facts += [(prefix + name, entry) for entry in value]
        else:
            facts.append((prefix + name, value))
    return facts
