"""A source whose samples misbehave when they are read. Worker processes import this: no torch in here."""

import os
import signal
import time
from pathlib import Path

from opencoca.data.sample import Sample
from opencoca.data.shards import ShardReader
from opencoca.errors import DataError


class Faulty:
    """The training shards of a folder; faults say what reading a key does: lost, kill, hang, bug."""

    def __init__(self, folder: Path, **faults: str) -> None:
        self.reader, self.faults = ShardReader(folder, "train"), faults
        self.keys, self.shards, self.fingerprint, self.skipped = list(self.reader.keys), self.reader.shards, "", ()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int, /) -> Sample:
        sample = self.reader[i]
        match self.faults.get(sample.key):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(1000)
            case "bug":
                raise ZeroDivisionError("a bug")
            case "lost":
                raise DataError(f"the picture of {sample.key} can't be read; copy it again")
        return sample
