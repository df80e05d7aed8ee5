"""Bulk runs and LanceDB, on this machine alone: speed beside the bare Predictor, kills, Ray on loopback, queries.

Throughput: `coca bulk` as a library against `Predictor` on the same pictures, in turn, medians. Kills: a process that
runs it is killed (SIGKILL) at a random moment, again and again until one comes through; its output must be that of a
run that nobody killed, byte for byte. Ray: the same from the shell with `--runner ray`, workers killed in the middle.
LanceDB: ten nearest of random rows and of real embeddings, one query at a time.

    benchmarks/distributed_environment.sh /tmp/distributed
    /tmp/distributed/bin/python benchmarks/bulk.py           about 8 minutes on 2 cores
    /tmp/distributed/bin/python benchmarks/bulk.py --small   to see that it runs
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating_medians, write_result

from opencoca.data.shards import ShardReader
from opencoca.infer.predictor import Predictor
from opencoca.jobs import bulk
from opencoca.jobs.bulk_input import open_input
from opencoca.jobs.bulk_output import Place
from opencoca.jobs.bulk_shard import Task
from opencoca.loading import load
from opencoca.search import exact, lance
from opencoca.search.filters import Filters
from opencoca.search.lance import Rows
from opencoca.search.manifest import Manifest
from opencoca.search.table import Row

K = 10
MODEL = Path(__file__).parents[1] / "src" / "opencoca" / "pretrained" / "drawings"
DATA = Path(__file__).parents[1] / "data" / "drawings"
GENERATION = {"beams": 1}
WORKER = b"ray::MapWorker(MapBatches(Worker))"


def main() -> None:
    """Runs the parts and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bulk-") as name:
        folder = Path(name)
        pictures = read_pictures(200 if small else 1667)
        tars = write_tars(folder / "tars", pictures, 10 if small else 40)
        large = write_tars(folder / "large", pictures, 420)
        few = write_tars(folder / "few", pictures[:400], 10 if small else 40)
        figures = {
            "versions": {name: importlib.metadata.version(name) for name in ("ray", "lancedb", "pyarrow")},
            "small": small,
            "pictures": len(pictures),
            "throughput": throughput(folder, large, pictures, 1 if small else 3),
            "kills": kills(folder, few, 3 if small else 40),
            "ray": ray(folder, tars, 1 if small else 3),
            "lancedb_random": queries_of(folder / "random", *random_rows(5_000 if small else 100_000)),
            "lancedb_drawings": queries_of(folder / "real", *real_rows(folder, 5 if small else 12)),
        }
    figures["seconds"] = round(time.perf_counter() - began)
    if small:
        print(figures)
    else:
        write_result("bulk", figures)


def read_pictures(count: int) -> list[tuple[str, bytes]]:
    """Keys and contents of drawings that the model never trained on."""
    reader = ShardReader(DATA, "test_seen")
    return [(reader.keys[i], reader[i].picture) for i in range(min(count, len(reader)))]


def write_tars(folder: Path, pictures: list[tuple[str, bytes]], per_tar: int) -> Path:
    """The pictures in small tars without captions; one picture in each of the first three is torn."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(pictures), per_tar)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i, (key, content) in enumerate(pictures[start : start + per_tar]):
                torn = number < 3 and i == 1
                entry = tarfile.TarInfo(f"{key}.png")
                entry.size = len(content) // 2 if torn else len(content)
                tar.addfile(entry, io.BytesIO(content[: entry.size]))
    return folder


def run_bulk(tars: Path, out: Path, predictor: Predictor, *do: str) -> bulk.Report:
    """One run in this process."""
    task = Task(str(MODEL), predictor.fingerprint(), do, generation=GENERATION)
    return bulk.run(open_input(str(tars)), Place(str(out)), task, model_name="drawings", predictor=predictor)


def digests(out: Path) -> dict[str, str]:
    """sha256 of each file of an output, but for records, which hold this machine's times."""
    files = [*out.glob("shards/*.parquet"), out / "manifest.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def throughput(folder: Path, tars: Path, pictures: list[tuple[str, bytes]], repeats: int) -> dict[str, Any]:
    """Pictures a second of a bulk run and of the Predictor, and their ratio."""
    predictor = load(MODEL)
    readable = [content for _, content in pictures]
    turn = iter(range(10**6))
    skip: Callable[..., None] = lambda picture, error: None  # noqa: E731

    def bulk_of(*do: str) -> Callable[[], Any]:
        return lambda: run_bulk(tars, folder / f"out-{next(turn)}", predictor, *do) is None

    seconds = alternating_medians(
        {
            "bulk_embed": bulk_of("embed"),
            "predictor_embed": lambda: predictor.embed_images(readable) is None,
            "bulk_caption_embed": bulk_of("caption", "embed"),
            "predictor_caption_embed": lambda: len([*predictor.describe(readable, on_bad=skip, beams=1)]),
        },
        repeats,
        warmup=0 if repeats == 1 else 1,
    )
    rates = {name: round(len(pictures) / timed["median_s"], 1) for name, timed in seconds.items()}
    return {
        "pictures_per_s": rates,
        "embed_share_of_predictor": round(rates["bulk_embed"] / rates["predictor_embed"], 3),
        "caption_embed_share_of_predictor": round(rates["bulk_caption_embed"] / rates["predictor_caption_embed"], 3),
        "runs": repeats,
    }


def kills(folder: Path, tars: Path, trials: int) -> dict[str, Any]:
    """Trials in which runs were killed until one came through, and how many gave the very same output."""
    torch.set_num_threads(1)  # a forked process has no other threads
    predictor = load(MODEL)
    began = time.perf_counter()
    run_bulk(tars, folder / "unkilled", predictor, "embed")
    whole_s, want = time.perf_counter() - began, digests(folder / "unkilled")
    draws, fork = random.Random(0), multiprocessing.get_context("fork")
    passed = killed = in_the_middle = silent = again = 0
    for trial in range(trials):
        out, runs = folder / f"killed-{trial}", 0
        while True:
            child = fork.Process(target=run_bulk, args=(tars, out, predictor, "embed"))
            child.start()
            child.join(draws.uniform(0, 0.6 * whole_s) if runs < 5 else None)
            runs += 1
            if child.exitcode is None:
                child.kill()
                child.join()
                killed += 1
                in_the_middle += (out / "shards").is_dir() and any((out / "shards").glob("*.json"))
            else:
                break
        same = child.exitcode == 0 and digests(out) == want and not list(out.rglob(".partial-*"))
        passed += same
        silent += child.exitcode == 0 and not same
        again += run_bulk(tars, out, predictor, "embed").done
    return {
        "trials": trials,
        "kills": killed,
        "kills_after_the_first_shard": in_the_middle,
        "passed": passed,
        "silent_failures": silent,
        "shards_made_by_a_further_run": again,
        "shards": len(want) - 1,
    }


def ray(folder: Path, tars: Path, most_kills: int) -> dict[str, Any]:
    """Seconds from the shell, and whether Ray's output is the local one, with workers killed and without."""
    local_s, _ = from_shell(tars, folder / "local", "local", 0)
    ray_s, _ = from_shell(tars, folder / "ray", "ray", 0)
    killed_s, killed = from_shell(tars, folder / "ray-killed", "ray", most_kills)
    want = digests(folder / "local")
    return {
        "local_s": round(local_s, 1),
        "ray_s": round(ray_s, 1),
        "ray_killed_s": round(killed_s, 1),
        "workers": 2,
        "workers_killed": killed,
        "same_bytes": digests(folder / "ray") == want,
        "same_bytes_after_kills": digests(folder / "ray-killed") == want,
    }


def from_shell(tars: Path, out: Path, runner: str, kills: int) -> tuple[float, int]:
    """Seconds of the command, and how many of its workers were killed meanwhile, each after further shards."""
    words = ["bulk", str(tars), "--out", str(out), "--model", str(MODEL), "--beams", "1", "--threads", "1"]
    words += ["--runner", "ray", "--workers", "2"] if runner == "ray" else []
    began, killed, done = time.perf_counter(), 0, 0
    process = subprocess.Popen([sys.executable, "-m", "opencoca", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.05)
        records = len(list((out / "shards").glob("*.json"))) if killed < kills and (out / "shards").is_dir() else 0
        if records > done + 2:
            workers = ray_workers(process.pid)
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed, done = killed + 1, records
    assert process.returncode == 3, f"exit code {process.returncode}"  # three pictures are torn
    return time.perf_counter() - began, killed


def ray_workers(driver: int) -> list[int]:
    """The processes in which Ray runs our `Worker`, among those that the driver started."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(WORKER[:20]):
                    found.append(int(entry.name))
            except (OSError, ValueError):  # it ended meanwhile
                continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != driver:
            pid = parents.get(pid, 0)
        return pid == driver

    return [pid for pid in found if ours(pid)]


def random_rows(count: int, width: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm rows float16 and queries float32, drawn by chance: the hardest there is for an index."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(count, width, generator=draws), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(100, width, generator=draws), dim=1)
    return rows.half().numpy(), queries.numpy()


def real_rows(folder: Path, shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of drawings by a bulk run, and of captions as queries."""
    import pyarrow.parquet as parquet

    predictor = load(MODEL)
    found = open_input(str(DATA), "train")
    found = found._replace(shards=found.shards[:shards])
    task = Task(str(MODEL), predictor.fingerprint(), ("embed",))
    bulk.run(found, Place(str(folder / "real-bulk")), task, model_name="drawings", predictor=predictor)
    tables = [parquet.read_table(file) for file in sorted((folder / "real-bulk").glob("shards/*.parquet"))]
    embeds = np.concatenate([np.stack(table.column("embedding").to_numpy()) for table in tables])
    reader = ShardReader(DATA, "test_seen")
    captions = sorted({reader.captions[i] for i in range(len(reader))})[:: max(1, len(reader) // 100)]
    return embeds, predictor.embed_texts(captions).numpy()


def queries_of(folder: Path, embeds: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Seconds to write, milliseconds of a query and recall of the ten nearest, for each kind of index."""
    made = Manifest("x", "m", "m", embeds.shape[1])
    scores = embeds.astype(np.float64) @ queries.astype(np.float64).T
    want = [set(np.lexsort((np.arange(len(embeds)), -column.astype(np.float32)))[:K] + 1) for column in scores.T]
    rows = [Row(i + 1, str(i), 0, 1, 0, None, None) for i in range(len(embeds))]
    vectors = torch.from_numpy(embeds)
    ours = [exact.Rows(vectors, exact.sketch_of(vectors))]
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "files": lambda query: exact.nearest(ours, query, K, None)[0] + 1
    }
    seconds: dict[str, float] = {}
    for kind in ("lance_flat", "lance_ivf_pq"):
        began = time.perf_counter()
        pieces = (Rows(rows[i : i + 16384], embeds[i : i + 16384]) for i in range(0, len(rows), 16384))
        facts = lance.write(str(folder / kind), made, pieces, lambda: queries, ivf_pq=kind.endswith("pq"))
        table = lance.opened(folder, made, facts)
        seconds[kind] = round(time.perf_counter() - began, 2)
        ways[kind] = lambda query, table=table: table.nearest(query, K, Filters())[0]
    found: dict[str, Any] = {"rows": len(embeds), "width": embeds.shape[1], "queries": len(queries), "ways": {}}
    for name, way in ways.items():
        taken, shares = [], []
        for query, best in zip(queries, want, strict=True):
            began = time.perf_counter()
            got = way(query)
            taken.append(time.perf_counter() - began)
            shares.append(len(best & set(got.tolist())) / K)
        facts_of = {"ms": round(statistics.median(taken) * 1e3, 2), "recall_at_10": round(float(np.mean(shares)), 4)}
        found["ways"][name] = {**facts_of, **({"write_and_open_s": seconds[name]} if name in seconds else {})}
    return found


if __name__ == "__main__":
    main()
