"""What the loader does with odd pictures, bombs, corrupt data and broken workers: rows 17, 18 and 21 to 23.

Run from the repository's root: `python -m benchmarks.reliability.loader_faults`. Every row has its trials, those that
went as they must, and silent failures: wrong pixels, or a sample lost, without an error or a count; a hang is one, too.
The baseline of row 17 is `Image.open(...).convert("RGB")`, which is how the common stack reads pictures.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import resource
import signal
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import write_result
from PIL import Image
from tests.faults import Faulty
from tests.odd_pictures import WIDTH, bombs, odd_pictures
from tests.pairs import make, photo

from opencoca.config import PixelConfig
from opencoca.data.decode import decode_square
from opencoca.data.loader import PairLoader
from opencoca.data.sample import Sample
from opencoca.data.shards import ShardWriter
from opencoca.errors import DataError
from opencoca.parallel.mesh import ALONE
from opencoca.train.feed import Skips

DECODERS = ("pillow", "simplejpeg")
PATIENCE_S = 60.0  # a trial that takes longer hangs


def row(trials: int, passes: int, silent: int, **more: Any) -> dict[str, Any]:
    print(f"{passes} of {trials} passed, {silent} silent failures", more, flush=True)
    return {"trials": trials, "passes": passes, "silent_failures": silent, **more}


# --- 17: odd pictures; 18: bombs ----------------------------------------------------------------------------------


def odd() -> dict[str, Any]:
    """Each of sixty through a loader, with both decoders: its pixels, or a counted skip."""
    trials = passes = silent = 0
    wrong = []
    spare = Sample("spare", _png(photo(WIDTH, WIDTH)), "red", {})
    for decoder in DECODERS:
        pixels = PixelConfig(fit="pad", decoder=decoder)
        for picture in odd_pictures():
            trials += 1
            items = [Sample(picture.name, picture.content, "red", {}), spare]
            loader = make(items, batch_size=2, image_size_px=WIDTH, pixels=pixels)
            batch = loader.batch(0)
            if picture.name in batch.keys:
                read = batch.pixels[batch.keys.index(picture.name)].permute(1, 2, 0).numpy()
                good = _shows(read, picture.expected, picture.tolerance)
                silent += not good
            else:
                good = picture.expected is None and [key for key, _ in loader.skipped] == [picture.name]
            passes += good
            wrong += [] if good else [picture.name]
    return row(trials, passes, silent, pictures=len(odd_pictures()), wrong=wrong, baseline=_plain_pillow())


def _shows(read: np.ndarray, expected: np.ndarray | None, tolerance: int) -> bool:
    if expected is None:
        return False
    top = (WIDTH - len(expected)) // 2
    return bool(np.abs(read[top : top + len(expected)].astype(int) - expected).max() <= tolerance)


def _plain_pillow() -> dict[str, Any]:
    passes, wrong = 0, []
    for picture in odd_pictures():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)
        except Exception:
            passes += picture.expected is None
            continue
        same = picture.expected is not None and read.shape == picture.expected.shape
        if same and np.abs(read - picture.expected).max() <= picture.tolerance:
            passes += 1
        elif picture.expected is not None:  # one that we refuse and it reads is no failure of its
            wrong.append(picture.name)
    return {"trials": len(odd_pictures()), "passes": passes, "silent_failures": len(wrong), "wrong": wrong}


def bombed() -> dict[str, Any]:
    """Each bomb is refused within 0.1 s and 16 MB."""
    trials = passes = silent = 0
    seconds, grown = [], []
    for decoder, (_, content) in itertools.product(DECODERS, bombs().items()):
        trials += 1
        before, began = _peak_bytes(), time.perf_counter()
        try:
            decode_square(content, 32, PixelConfig(decoder=decoder))
            silent += 1
        except DataError:
            seconds.append(time.perf_counter() - began)
            grown.append(_peak_bytes() - before)
            passes += seconds[-1] < 0.1 and grown[-1] < 16 * 2**20
    return row(trials, passes, silent, slowest_s=max(seconds), most_bytes=max(grown))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# --- 21: corrupt data ---------------------------------------------------------------------------------------------


def corrupt(trials: int) -> dict[str, Any]:
    """Of 2,000 pictures 30% are broken in some way: the threshold of 1% stops the run; 0.3% don't, and are counted."""
    passes, silent, stopped_after = 0, 0, []
    good = _png(photo(20, 20))
    breaks: tuple[Callable[[bytes], bytes], ...] = (
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: bytes(len(content)),
    )
    for trial in range(trials):
        generator = random.Random(trial)
        share = 0.3 if trial % 2 == 0 else 0.003
        broken = set(generator.sample(range(2000), int(2000 * share)))
        items = [
            Sample(f"k{i}", generator.choice(breaks)(good) if i in broken else good, f"picture {i}", {})
            for i in range(2000)
        ]
        with tempfile.TemporaryDirectory() as run:
            loader = make(items, trial, batch_size=50)
            skips, stopped = Skips(loader, Path(run), ALONE, 0.01), False
            for batch, position in loader.batches():
                silent += bool({f"k{i}" for i in broken} & set(batch.keys))
                try:
                    skips.check()
                except DataError:
                    stopped = True
                    stopped_after.append(loader.drawn)
                if stopped or position >= 2000:
                    break
            whole = loader.counts.total() >= len(broken) and len(loader.skipped) == len(broken)
            passes += stopped if share == 0.3 else (not stopped and whole)
    return row(trials, passes, silent, drawn_when_stopped=statistics.median(stopped_after))


# --- 22: fewer shards than workers; 23: a worker killed, hung; flat memory ------------------------------------------


def write(folder: Path, samples: int, shards: int) -> Path:
    with ShardWriter(folder, samples_per_shard=-(-samples // shards)) as writer:
        for i in range(samples):
            file = io.BytesIO()
            photo(96, 64, seed=i % 40).save(file, "JPEG")
            writer.add("train", f"k{i:04d}", file.getvalue(), f"picture {i}", {})
    return folder


def few_shards() -> dict[str, Any]:
    """Every number of shards below that of the workers, and batches larger than all there is."""
    trials = passes = silent = 0
    with tempfile.TemporaryDirectory() as name:
        for shards, workers, batch_size in itertools.product((1, 2, 3), (2, 4, 6), (8, 90)):
            trials += 1
            folder = Path(name) / f"{shards}"
            source = Faulty(folder if folder.exists() else write(folder, 60, shards))
            options = {"batch_size": batch_size, "shuffle_window": 2}
            plain, loader = make(source, **options), make(source, workers=workers, timeout_s=PATIENCE_S, **options)
            same = True
            for batch, position in itertools.islice(loader.batches(), 6):
                expected = plain.batch(position - batch_size)
                same &= batch.keys == expected.keys and torch.equal(batch.pixels, expected.pixels)
            loader.close()
            passes += same
            silent += not same
    return row(trials, passes, silent)


def broken_workers(trials: int) -> dict[str, Any]:
    """A worker is killed or stopped at a random instant: an error names it soon, and closing takes no time."""
    passes = silent = 0
    wrong: list[str] = []
    seconds: dict[str, list[float]] = {"killed": [], "stopped": [], "close": []}
    with tempfile.TemporaryDirectory() as name:
        source = Faulty(write(Path(name), 600, 6))
        for trial in range(trials):
            generator = random.Random(trial)
            how = "killed" if trial % 2 == 0 else "stopped"
            loader = make(source, trial, batch_size=24, workers=3, timeout_s=PATIENCE_S)
            stream = loader.batches()
            for _ in range(3):  # by then every worker has started
                next(stream)
            pool: Any = loader._pool
            pool.timeout_s = 3.0
            number = generator.randrange(3)
            process = pool._processes[number]
            hit: list[float] = []
            timer = threading.Timer(generator.uniform(0, 0.3), _strike, (process.pid, how, hit))
            timer.start()
            problem, last = "", time.monotonic()
            began = last
            try:
                while time.monotonic() - began < PATIENCE_S:
                    last = time.monotonic()
                    next(stream)
            except DataError as error:
                problem = str(error)
                seconds[how].append(time.monotonic() - max(last, hit[0]))
            timer.join()
            began = time.monotonic()
            loader.close()
            seconds["close"].append(time.monotonic() - began)
            named = f"loader worker {number}" in problem and "k" in problem.partition("read ")[2]
            wrong += [] if named else [problem]
            passes += named and seconds["close"][-1] < 5
            silent += not problem
    worst = {f"slowest_{what}_s": round(max(taken), 2) for what, taken in seconds.items() if taken}
    return row(trials, passes, silent, timeout_s=3.0, wrong=wrong, **worst)


def _strike(pid: int, how: str, hit: list[float]) -> None:
    hit.append(time.monotonic())
    os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)


def flat_memory(batches: int) -> dict[str, Any]:
    """Memory of the workers and of this process after a tenth of the batches, and at the end: within 5% or 4 MB."""
    with tempfile.TemporaryDirectory() as name:
        source = Faulty(write(Path(name), 600, 6))
        loader: PairLoader = make(source, batch_size=48, workers=2, image_size_px=64)
        weights = []
        for number, _ in enumerate(itertools.islice(loader.batches(), batches)):
            if number in (batches // 10, batches - 1):
                pool: Any = loader._pool
                weights.append([_resident(os.getpid()), *(_resident(process.pid) for process in pool._processes)])
        loader.close()
    growth = [late - early for early, late in zip(*weights, strict=True)]
    passes = sum(grown < max(0.05 * early, 4 * 2**20) for grown, early in zip(growth, weights[0], strict=True))
    return row(len(growth), passes, 0, batches=batches, samples=48 * batches, early=weights[0], growth_bytes=growth)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Runs every row and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40, help="of the rows that are drawn at random")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--print-only", action="store_true", help="write no result")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        "17_odd_pictures": odd(),
        "18_bombs": bombed(),
        "21_corrupt_data": corrupt(asked.trials),
        "22_fewer_shards_than_workers": few_shards(),
        "23_workers_killed_and_stopped": broken_workers(asked.trials),
        "23_flat_memory": flat_memory(asked.batches),
    }
    if not asked.print_only:
        write_result("reliability_loader", figures)


if __name__ == "__main__":
    main()
