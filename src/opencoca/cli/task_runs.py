"""What `coca recognise` and `coca vqa` share: the model to begin with, progress, and the table in the end."""

from __future__ import annotations

import sys
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


def told(outcome: Outcome, then: str) -> int:
    """The exit code. Names what was left out, prints the table, where the model is and the command to type then."""
    from opencoca.cli.forms import shown
    from opencoca.jobs.task_runs import line

    for key, reason in outcome.skipped[:MOST_NAMED]:
        say(f"skipped {shown(key)}: {shown(reason)}")
    if len(outcome.skipped) > MOST_NAMED:
        say(f"skipped {len(outcome.skipped) - MOST_NAMED} more")
    tested = any(row.test is not None for row in outcome.rows)
    print(f"{'':<46}{'val':>9}{'test' if tested else '':>9}")
    for row in outcome.rows:
        print(line(row))
    print(f"\nmodel: {outcome.model}\n\nnow try\n  {then}")
    return SKIPPED if outcome.skipped else DONE
