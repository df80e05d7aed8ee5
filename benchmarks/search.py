"""Exact and approximate search against FAISS, usearch and hnswlib, and what a search costs from the command line.

Exact: the best 10 of unit-norm rows, one query at a time, in turn, medians; recall against float64 beside. The limit is
this machine's memory bandwidth, measured in the same run as the fastest of several ways to read memory; rates are of
the rows' float16 bytes. Approximate: text queries among picture embeddings of the model that ships, made of drawings
that are turned, mirrored, shifted, scaled and tinted; the quickest setting of each library that reaches the recall,
all in turn, medians of 31 rounds of 300 queries.
Indexing: 10,000 files, against `Predictor.embed_images` of the same. Command: `coca search` with a resident process,
the start of its own process included.

    pip install --target /tmp/peers faiss-cpu usearch hnswlib
    python benchmarks/search.py --peers /tmp/peers           about 20 minutes on 2 cores, and 9 GB of memory
    python benchmarks/search.py --peers /tmp/peers --small   to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import search_peers
import torch
from common import RESULTS, alternating_medians, write_result
from search_data import MODEL, SHARDS, pictures, recall, rows_of, truth, vary
from search_peers import EXPANSIONS, Ask, Setting
from torch import Tensor

from opencoca.loading import load
from opencoca.search import exact, graph

PARTS = ("exact", "indexing", "command", "approximate")
K = 10
WIDTH = 768
QUERIES = 20
RECALL = 0.95
ROUNDS = 31


def bandwidth(rows: Tensor) -> float:
    """Bytes a second that this machine reads from memory: the fastest of three ways, best of 7."""
    whole = rows.view(torch.float32)
    ways: list[Callable[[], Any]] = [whole.sum, whole.max, lambda: rows.view(torch.int64).max()]
    seconds = []
    for way in ways:
        for _ in range(7):
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
    return rows.numel() * 2 / min(seconds)


def exact_part(count: int, width: int, repeats: int) -> dict[str, Any]:
    """Seconds and recall of each way to find the best 10 of all rows."""
    rows = rows_of(count, width)
    queries = rows_of(QUERIES, width, 1).float().numpy()
    want = truth(rows, queries, K)
    began = time.perf_counter()
    parts = [exact.Rows(rows, exact.sketch_of(rows))]
    sketch_s = time.perf_counter() - began
    ways: dict[str, Ask] = {
        "opencoca": lambda query: exact.nearest(parts, query, K, None)[0],
        "torch_half_mv": lambda query: torch.mv(rows, torch.from_numpy(query).half()).topk(K).indices.numpy(),
        **search_peers.exact_ways(rows, K),
    }
    found = {name: np.stack([way(query) for query in queries]) for name, way in ways.items()}
    turn = iter(range(10**9))

    def one(way: Ask) -> Callable[[], None]:
        return lambda: [way(queries[next(turn) % QUERIES]) for _ in range(3)] and None

    limit = bandwidth(rows)
    seconds = alternating_medians({name: one(way) for name, way in ways.items()}, repeats)
    limit = max(limit, bandwidth(rows))
    size = count * width * 2
    ours = seconds["opencoca"]["median_s"] / 3
    return {
        "rows": count,
        "width": width,
        "bandwidth_gb_s": round(limit / 1e9, 2),
        "sketch_s": round(sketch_s, 2),
        "ways": {
            name: {
                "ms": round(timed["median_s"] / 3 * 1e3, 2),
                "ms_fastest": round(timed["min_s"] / 3 * 1e3, 2),
                "gb_s_of_float16": round(size / (timed["median_s"] / 3) / 1e9, 2),
                "share_of_bandwidth": round(size / (timed["median_s"] / 3) / limit, 3),
                "recall_at_10": round(recall(found[name], want, rows, queries), 5),
                "times_opencoca": round(timed["median_s"] / 3 / ours, 2),
            }
            for name, timed in seconds.items()
        },
    }


def approximate_part(count: int) -> dict[str, Any]:
    """The quickest setting of each library that reaches recall@10 0.95, one query at a time in one thread."""
    embeds, captions = pictures(count)
    texts = sorted(set(captions))[:1000]
    queries = load(MODEL).embed_texts(texts).numpy()
    half = torch.from_numpy(embeds)
    want = truth(half, queries, K)
    settings = search_peers.approximate_settings(embeds, K)
    parts = [exact.Rows(half, exact.sketch_of(half))]
    if graph.is_there():
        file = Path(tempfile.mkdtemp()) / "graph.faiss"
        began = time.perf_counter()
        graph.make([embeds], embeds.shape[1], file)
        built = time.perf_counter() - began
        for expansion in EXPANSIONS:
            ours = graph.opened(file, count, embeds.shape[1], expansion)

            def ask(query: np.ndarray, ours: graph.Graph = ours) -> np.ndarray:
                return exact.rescored(parts, query, ours.proposed(query, K), K)[0]

            settings.append(Setting("opencoca_graph", {"expansion": expansion}, built, ask))
    settings.append(Setting("opencoca_exact", {}, 0.0, lambda query: exact.nearest(parts, query, K, None)[0]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    search_peers.set_threads(1)
    curve: list[dict[str, Any]] = []
    for name, setting, built, one in settings:
        found = np.stack([one(query) for query in queries])
        row = {"library": name, **setting, "build_s": round(built, 1)}
        row["recall_at_10"] = round(recall(found, want, half, queries), 4)
        row["ms"] = round(_median_s(one, queries[:300]) * 1e3, 4)
        print(row, flush=True)
        curve.append(row)
    best: dict[str, Any] = {}
    for row, seconds in _in_turn([(row, s.ask) for row, s in zip(curve, settings, strict=True)], queries[:300]):
        ms = sorted(1e3 * one for one in seconds)
        timed = row | {"ms": round(statistics.median(ms), 4), "from_ms": round(ms[0], 4), "to_ms": round(ms[-1], 4)}
        print(timed, flush=True)
        if timed["ms"] < best.get(row["library"], {"ms": float("inf")})["ms"]:
            best[row["library"]] = timed
    torch.set_num_threads(threads)
    return {
        "pictures": count,
        "distinct_drawings": len(captions),
        "queries": len(texts),
        "rounds": ROUNDS,
        "best": best,
        "curve": curve,
    }


def _median_s(ask: Ask, queries: np.ndarray) -> float:
    seconds = []
    for query in queries:
        began = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _in_turn(
    rows: list[tuple[dict[str, Any], Ask]], queries: np.ndarray
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """The two quickest settings by nature (those that look at least) of each index that reach the recall, timed again,
    all in turn in every round."""
    chosen: dict[tuple[str, int], list[tuple[dict[str, Any], Ask]]] = {}
    for row, ask in rows:  # an index's settings come in ascending order
        there = chosen.setdefault((row["library"], row.get("connectivity", 0)), [])
        if row["recall_at_10"] >= RECALL and len(there) < 2:
            there.append((row, ask))
    every = [one for there in chosen.values() for one in there]
    seconds: list[list[float]] = [[] for _ in every]
    for _ in range(ROUNDS):
        for (_, ask), timed in zip(every, seconds, strict=True):
            timed.append(_median_s(ask, queries))
    yield from ((row, timed) for (row, _), timed in zip(every, seconds, strict=True))


def indexing_part(count: int) -> dict[str, Any]:
    """Pictures a second of `Predictor.embed_images` and of indexing the same files; what indexing adds to memory."""
    import resource

    from PIL import Image

    from opencoca.data.shards import ShardReader
    from opencoca.search.update import update

    predictor = load(MODEL)
    reader = ShardReader(Path(__file__).parents[1] / SHARDS[0][0], SHARDS[0][1])
    samples = [reader[i].picture for i in range(min(len(reader), 2000))]
    base = np.concatenate([batch.squares for batch in predictor.squares(samples)])
    draws = np.random.default_rng(1)
    rates: dict[str, list[float]] = {"predictor": [], "index": []}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "pictures"
        for i in range(count):
            file = folder / f"{i // 1000}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(vary(base[i % len(base)], draws)).save(file)
        files = sorted(folder.rglob("*.png"))
        predictor.embed_images(files[:256])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for turn in range(3):
            began = time.perf_counter()
            update(folder, predictor, "drawings", index=Path(home) / f"index{turn}")
            rates["index"].append(count / (time.perf_counter() - began))
            if turn == 0:
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            began = time.perf_counter()
            predictor.embed_images(files)
            rates["predictor"].append(count / (time.perf_counter() - began))
        began = time.perf_counter()
        update(folder, predictor, "drawings", index=Path(home) / "index0")
        again = time.perf_counter() - began
    index, alone = (statistics.median(rates[name]) for name in ("index", "predictor"))
    return {
        "pictures": count,
        "index_per_s": round(index, 1),
        "predictor_per_s": round(alone, 1),
        "share": round(index / alone, 3),
        "memory_added_mb": round(grown / 1024, 1),
        "nothing_new_s": round(again, 3),
    }


def command_part(repeats: int) -> dict[str, Any]:
    """Milliseconds of `coca search` on 400 pictures with a resident process, the process's start included."""
    from opencoca.data.shards import ShardReader

    reader = ShardReader(Path(__file__).parents[1] / "data/drawings", "test_seen")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "pictures"
        folder.mkdir()
        for i in range(min(400, len(reader))):
            (folder / f"{i}.png").write_bytes(reader[i].picture)
        variables = {**os.environ, "XDG_CACHE_HOME": home, "XDG_RUNTIME_DIR": home}
        words = [sys.executable, "-m", "opencoca", "search", str(folder), "a red flower", "--model", str(MODEL)]

        def ask(*more: str) -> float:
            began = time.perf_counter()
            subprocess.run([*words, *more], env=variables, check=True, capture_output=True)
            return (time.perf_counter() - began) * 1e3

        first, second = ask(), ask()
        ask("--resident")
        warm = [ask() for _ in range(repeats)]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        python = (time.perf_counter() - began) * 1e3
        for line in Path("/proc").glob("[0-9]*/cmdline"):  # it would end by itself after a quarter of an hour
            if f"opencoca.search.resident\0{folder}".encode() in _read(line):
                os.kill(int(line.parent.name), 15)
    return {
        "first_ms": round(first),
        "without_resident_ms": round(second),
        "resident_ms": round(statistics.median(warm)),
        "resident_ms_slowest": round(max(warm)),
        "runs": repeats,
        "bare_python_ms": round(python),
    }


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a folder that pip installed the other libraries into")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=PARTS, help="the other parts keep their figures")
    args = parser.parse_args()
    if args.peers:
        sys.path.append(str(args.peers))
    rows, count = (50_000, 3_000) if args.small else (args.rows, args.pictures)
    figures: dict[str, Any] = {}
    if args.only and (path := RESULTS / "search.json").is_file():
        figures = {part: figures for part, figures in json.loads(path.read_text()).items() if part in (*PARTS, "peers")}
    if args.only in (None, "exact"):
        figures["exact"] = exact_part(rows, WIDTH, args.repeats)
        print(figures["exact"], flush=True)
    if args.only in (None, "indexing"):
        figures["indexing"] = indexing_part(500 if args.small else 10_000)
        print(figures["indexing"], flush=True)
    if args.only in (None, "command"):
        figures["command"] = command_part(args.repeats)
        print(figures["command"], flush=True)
    if args.only in (None, "approximate"):
        figures["approximate"] = approximate_part(count)
    if args.peers:
        figures["peers"] = search_peers.versions(args.peers)
    if not args.small:
        write_result("search", figures)


if __name__ == "__main__":
    main()
