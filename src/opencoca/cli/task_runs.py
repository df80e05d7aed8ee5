"""What the commands that teach a model share: the one to begin with, progress, what was left out, and the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from opencoca.cli.main import DONE, SKIPPED

if TYPE_CHECKING:
    from opencoca.jobs.task_runs import Outcome

MOST_NAMED = 20

From = Annotated[str | None, arg(name="from", metavar="MODEL", help_behavior_hint="(default: the newest one)")]


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def name_skipped(skipped: Sequence[tuple[str, str]]) -> int:
    """The exit code. Names what was left out, the first of it, and counts the rest."""
    from opencoca.cli.forms import shown

    for key, reason in skipped[:MOST_NAMED]:
        say(f"skipped {shown(key)}: {shown(reason)}")
    if len(skipped) > MOST_NAMED:
        say(f"skipped {len(skipped) - MOST_NAMED} more")
    return SKIPPED if skipped else DONE


def told(outcome: Outcome, then: str) -> int:
    """The exit code. Names what was left out, prints the table, where the model is and the command to type then."""
    from opencoca.jobs.task_runs import line

    code = name_skipped(outcome.skipped)
    tested = any(row.test is not None for row in outcome.rows)
    print(f"{'':<46}{'val':>9}{'test' if tested else '':>9}")
    for row in outcome.rows:
        print(line(row))
    print(f"\nmodel: {outcome.model}\n\nnow try\n  {then}")
    return code
