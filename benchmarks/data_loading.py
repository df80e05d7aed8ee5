"""C9 and C10: decoding pictures for training, and reading shards into batches, against Pillow and webdataset.

C9 decodes JPEGs of three sizes to 224 px on one core: ours with simplejpeg, the Pillow path (which is inference's), and
the limit, decoding at the smallest scale, which is hardly more than the entropy decoding. C10 reads shards of small
pictures into batches of pixels and ids: ours with worker processes and with threads (data.workers=0, nothing cached),
and webdataset with torch's DataLoader. Each runs in a process of its own; its whole tree of processes is weighed. Runs
alternate; medians.

    python benchmarks/data_loading.py                (in an environment with webdataset; without it, ours alone)
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from opencoca.config import PixelConfig
from opencoca.data.decode import decode_square
from opencoca.data.pixels import normalise, to_square
from opencoca.data.shards import ShardReader, ShardWriter

SIZE_PX, BATCH, CONTEXT = 224, 64, 64
SIZES = {"0.2 MP": (512, 384, 48), "2 MP": (1664, 1216, 8), "12 MP": (4032, 3024, 2)}  # width, height, pictures a run
GOALS = {"0.2 MP": 1.5, "2 MP": 3.0, "12 MP": 4.0}
PILLOW, SCALED = PixelConfig(), PixelConfig(decoder="simplejpeg")


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photograph (1/f) and about 2 bits a pixel, as cameras write them."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 11):
        wide = min(width, 2**octave)
        high = max(2, wide * height // width)
        layer = Image.fromarray(generator.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        resized = np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        total += (resized - 127.5) / 2 ** (0.8 * (octave - 2))
    total += generator.normal(0, 10, total.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray((total * 0.6 + 127.5).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def decoding(repeats: int) -> dict[str, Any]:
    """Images per second on one core, of each size: ours, Pillow's, the limit."""
    from common import alternating_medians

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    figures: dict[str, Any] = {}
    try:
        for name, (width, height, count) in SIZES.items():
            contents = [photo(width, height, seed) for seed in range(count)]
            pairs = [[decode_square(c, SIZE_PX, pixels).astype(int) for pixels in (PILLOW, SCALED)] for c in contents]
            taken = alternating_medians(
                {
                    "ours": lambda all=contents: [decode_square(c, SIZE_PX, SCALED) for c in all],
                    "pillow": lambda all=contents: [decode_square(c, SIZE_PX, PILLOW) for c in all],
                    "limit": lambda all=contents: [simplejpeg.decode_jpeg(c, min_width=1, min_height=1) for c in all],
                },
                repeats,
            )
            rates = {who: count / values["median_s"] for who, values in taken.items()}
            figures[name] = {
                "bytes": round(statistics.mean(len(content) for content in contents)),
                "images_per_s_per_core": rates,
                "seconds": taken,
                "ours_over_pillow": rates["ours"] / rates["pillow"],
                "goal": GOALS[name],
                "ours_over_limit": rates["ours"] / rates["limit"],
                "mean_difference_from_pillow_levels": float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
            }
            print(name, json.dumps({k: v for k, v in figures[name].items() if k != "seconds"}))
    finally:
        os.sched_setaffinity(0, cores)
    return figures


# --- C10: shards to batches; each function runs in a process of its own ------------------------------------------


def tokenizer() -> Any:
    """The tokenizer that ships with the quickstart, for both."""
    from importlib import resources

    from opencoca.data.tokenizer import Tokenizer

    return Tokenizer.from_json((resources.files("opencoca.data") / "openmoji_tokenizer.json").read_text("utf-8"))


def ours(folder: Path, workers: int, pixels: PixelConfig = SCALED) -> Iterator[int]:
    """Sizes of our loader's batches."""
    from opencoca.data.loader import PairLoader

    loader = PairLoader(
        ShardReader(folder, "train", verify=False),
        tokenizer(),
        batch_size=BATCH,
        image_size_px=SIZE_PX,
        context_length=CONTEXT,
        pixels=pixels,
        seed=0,
        shuffle_window=2,
        workers=workers,
        cache_bytes=0,
    )
    for batch, _ in loader.batches():
        yield len(batch.keys)


def webdataset(folder: Path, workers: int, as_float: bool = True) -> Iterator[int]:
    """Sizes of the batches of webdataset and torch's DataLoader, set up as their documentation does.

    as_float: workers give normalised float32, as open_clip's do; else uint8, like ours.
    """
    import torch
    import webdataset as wds  # pyright: ignore[reportMissingImports]

    encoder = tokenizer()

    def square(image: Image.Image) -> np.ndarray:
        pixels = to_square(image.convert("RGB"), SIZE_PX, PILLOW)
        return normalise(pixels, PILLOW.mean, PILLOW.std)[0] if as_float else pixels.transpose(2, 0, 1)

    def collate(rows: list[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, _ = encoder.encode_batch([caption for _, caption in rows], CONTEXT)
        return torch.from_numpy(np.stack([pixels for pixels, _ in rows])), ids

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=wds.split_by_node, seed=0)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(square, lambda caption: caption)
        .repeat()
    )
    for pixels, _ in torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=collate):
        yield len(pixels)


def idle(folder: Path, workers: int) -> Iterator[int]:
    """A process that has imported torch and waits."""
    import torch

    assert torch.ones(1).sum() == 1
    while True:
        time.sleep(0.01)
        yield 0


READERS = {
    "ours": ours,
    "ours_threads": lambda folder, workers: ours(folder, 0),
    "webdataset": webdataset,
    "webdataset_uint8": functools.partial(webdataset, as_float=False),
    "idle": idle,
}


def one_run(who: str, folder: Path, workers: int, batches: int) -> dict[str, float]:
    """Samples per second once the batches flow, and the greatest memory of the tree of processes meanwhile."""
    stop, peak = threading.Event(), [0]

    def weigh() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], tree_bytes(os.getpid()))

    stream = READERS[who](folder, workers)
    for _ in itertools.islice(stream, batches // 4):  # processes start, buffers fill
        pass
    watcher = threading.Thread(target=weigh)
    watcher.start()
    began = time.perf_counter()
    samples = sum(itertools.islice(stream, batches))
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    return {"samples_per_s": samples / seconds, "peak_bytes": max(peak[0], tree_bytes(os.getpid()))}


def tree_bytes(pid: int) -> int:
    """Private memory of a process and its children, with its share of what they share, and all shared memory.

    Shared memory is counted where it is kept: batches that wait in a queue are mapped into no process.
    """
    shared = os.statvfs("/dev/shm")
    return (shared.f_blocks - shared.f_bfree) * shared.f_frsize + _own_bytes(pid)


def _own_bytes(pid: int) -> int:
    total = 0
    try:
        sizes = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        total += (int(sizes["Pss"].split()[0]) - int(sizes["Pss_Shmem"].split()[0])) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_own_bytes(int(child)) for child in (task / "children").read_text().split())
    except OSError:  # it has ended meanwhile
        pass
    return total


def write_shards(folder: Path, count: int, distinct: int) -> None:
    """Shards of 0.2 MP pictures, `distinct` of them over and over."""
    width, height, _ = SIZES["0.2 MP"]
    contents = [photo(width, height, seed) for seed in range(distinct)]
    with ShardWriter(folder, samples_per_shard=250) as writer:
        for i in range(count):
            caption = f"a picture of number {i} with some more words that describe what there is to see"
            writer.add("train", f"p{i:06d}", contents[i % distinct], caption, {})


def loading(repeats: int, count: int, distinct: int, workers: int, per_core: float) -> dict[str, Any]:
    """Medians of each reader's runs, each in a fresh process, in turn."""
    readers = ["ours", "ours_threads", "idle"]
    if importlib.util.find_spec("webdataset"):
        readers[2:2] = ["webdataset", "webdataset_uint8"]
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in readers}
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), count, distinct)
        for turn in range(repeats):
            for who in readers:
                batches = 20 if who == "idle" else count // BATCH
                command = [sys.executable, __file__, "--run", who, name, str(workers), str(batches)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[who].append(json.loads(done.stdout.splitlines()[-1]))
                print(turn, who, runs[who][-1], flush=True)
    median = {who: {k: statistics.median(run[k] for run in all) for k in all[0]} for who, all in runs.items()}
    above = {who: median[who]["peak_bytes"] - median["idle"]["peak_bytes"] for who in readers if who != "idle"}
    limit = per_core * workers
    figures: dict[str, Any] = {
        "workers": workers,
        "samples": count,
        "distinct_pictures": distinct,
        "runs": runs,
        "samples_per_s": {who: median[who]["samples_per_s"] for who in above},
        "limit_samples_per_s": limit,
        "ours_over_limit": median["ours"]["samples_per_s"] / limit,
        "ours_threads_over_limit": median["ours_threads"]["samples_per_s"] / limit,
        "goal_over_limit": 0.95,
        "bytes_above_idle_torch": above,
    }
    if "webdataset" in above:
        for peer in ("webdataset", "webdataset_uint8"):
            for own in ("ours", "ours_threads"):
                figures[f"{own}_over_{peer}"] = median[own]["samples_per_s"] / median[peer]["samples_per_s"]
                figures[f"memory_of_{own}_over_{peer}"] = above[own] / above[peer]
        figures["goal_memory"] = 0.25
        figures["webdataset"] = importlib.metadata.version("webdataset")
    return figures


def main() -> None:
    """Measures both and writes the result."""
    from common import write_result

    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--distinct", type=int, default=200)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--print-only", action="store_true", help="write no result")
    asked = parser.parse_args()
    decoded = decoding(asked.repeats)
    rate = decoded["0.2 MP"]["images_per_s_per_core"]["ours"]
    loaded = loading(asked.repeats, asked.samples, asked.distinct, asked.workers, rate)
    figures = {"decoding": decoded, "loading": loaded}
    figures |= {name: importlib.metadata.version(name) for name in ("pillow", "simplejpeg", "numpy")}
    if asked.print_only:
        print(json.dumps(loaded, indent=1))
    else:
        write_result("data_loading", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        who, folder, workers, batches = sys.argv[2:]
        print(json.dumps(one_run(who, Path(folder), int(workers), int(batches))))
    else:
        main()
