"""Data for all ranks alike: one that can't read its share stops them all, and what was left out is counted together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from opencoca.data.loader import PairLoader
from opencoca.errors import DataError
from opencoca.parallel.collectives import gathered_values, summed
from opencoca.parallel.mesh import Ranks
from opencoca.train.run_folder import QUARANTINE, append
from opencoca.types import Batch

FEWEST_DRAWN = 1000  # a share of fewer pairs than these says little: one picture in the first batch stops no run


def batches_for_all(loader: PairLoader, position: int, ranks: Ranks) -> Iterator[tuple[Batch, int]]:
    """The loader's batches from `position` on, as long as every rank has one.

    Raises: DataError, on all ranks, where one of them can't go on.
    """
    batches = loader.batches(position)
    while True:
        found, problem = None, None
        try:
            found = next(batches)
        except DataError as error:
            if ranks.world == 1:
                raise
            problem = error
        if ranks.world > 1 and summed([problem is not None], ranks).item():
            said = gathered_values(None if problem is None else str(problem), ranks)
            raise DataError("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(said) if text)) from problem
        assert found is not None
        yield found


class Skips:
    """What couldn't be read, over all ranks."""

    def __init__(self, loader: PairLoader, run: Path, ranks: Ranks, most: float) -> None:
        self.loader, self.run, self.ranks, self.most = loader, run, ranks, most
        self._listed = 0

    def check(self) -> dict[str, float]:
        """Counts for the log, empty where nothing was skipped; new ones are listed in RUN/quarantine.jsonl.

        Raises: DataError, on all ranks, where more than the share `data.max_skip_fraction` was skipped.
        """
        new, self._listed = self.loader.skipped[self._listed :], len(self.loader.skipped)
        counts: Counter[str] = Counter()
        drawn, listed = 0, []
        for answer in gathered_values([dict(self.loader.counts), self.loader.drawn, new], self.ranks):
            counts.update(answer[0])
            drawn += answer[1]
            listed += answer[2]
        if listed and self.ranks.first:
            append(self.run / QUARANTINE, [{"key": key, "reason": reason} for key, reason in listed])
        skipped = counts.total()
        if skipped > self.most * max(drawn, FEWEST_DRAWN):
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(5))
            raise DataError(
                f"{skipped} of {drawn} pairs couldn't be read ({reasons}), more than data.max_skip_fraction "
                f"{self.most:g}; {self.run / QUARANTINE} lists them: repair the data, or allow more"
            )
        return {"skipped": float(skipped), "skipped_share": skipped / max(1, drawn)} if skipped else {}
