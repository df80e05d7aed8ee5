"""FAISS, usearch and hnswlib as `search.py` asks them: each way to search as a function of one query.

A library that isn't there has no ways.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

EXPANSIONS = (16, 20, 22, 24, 26, 28, 32, 48, 64, 128, 256)

Ask = Callable[[np.ndarray], np.ndarray]  # a query [E] to the numbers of the rows that are found


class Setting(NamedTuple):
    """A library's index with one setting of its search."""

    library: str
    setting: dict[str, int]
    build_s: float
    ask: Ask


def peer(name: str) -> Any:
    """A library that may not be there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def versions(folder: Path) -> dict[str, str]:
    """The versions of those that pip installed into a folder."""
    found = importlib.metadata.distributions(path=[str(folder)])
    there = {one.name: one.version for one in found}
    return {name: there[name] for name in ("faiss-cpu", "usearch", "hnswlib") if name in there}


def set_threads(number: int) -> None:
    """The threads of FAISS, which takes them for the whole process."""
    if faiss := peer("faiss"):
        faiss.omp_set_num_threads(number)


def exact_ways(rows: Tensor, k: int) -> dict[str, Ask]:
    """Each way to find the best k of all rows, float16 [count,width]."""
    width, threads = rows.shape[1], torch.get_num_threads()
    ways: dict[str, Ask] = {}
    set_threads(threads)
    if faiss := peer("faiss"):
        flat = faiss.IndexFlatIP(width)
        half = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        half.train(rows[:1000].float().numpy())
        for start in range(0, len(rows), 65536):
            for index in (flat, half):
                index.add(rows[start : start + 65536].float().numpy())
        ways["faiss_flat_float32"] = lambda query: flat.search(query[None], k)[1][0]
        ways["faiss_flat_float16"] = lambda query: half.search(query[None], k)[1][0]
    if usearch := peer("usearch.index"):
        ways["usearch_exact_float16"] = lambda query: np.asarray(
            usearch.search(rows.numpy(), query[None].astype(np.float16), k, "ip", exact=True, threads=threads).keys
        ).reshape(-1)
    return ways


def approximate_settings(embeds: np.ndarray, k: int) -> list[Setting]:
    """Each library's indexes of float16 [count,width], built with all threads, with each setting of their search."""
    set_threads(torch.get_num_threads())
    full = embeds.astype(np.float32)
    return [*_usearch(embeds, k), *_hnswlib(full, k), *_faiss(full, k)]


def _usearch(embeds: np.ndarray, k: int) -> Iterator[Setting]:
    usearch = peer("usearch.index")
    for connectivity in (16, 32) if usearch else ():
        began = time.perf_counter()
        index = usearch.Index(
            ndim=embeds.shape[1], metric="ip", dtype="f16", connectivity=connectivity, expansion_add=256
        )
        index.add(np.arange(len(embeds)), embeds)
        built = time.perf_counter() - began
        for expansion in EXPANSIONS:

            def ask(query: np.ndarray, index: Any = index, expansion: int = expansion) -> np.ndarray:
                index.expansion_search = expansion
                return np.asarray(index.search(query.astype(np.float16), k, threads=1).keys).reshape(-1)

            yield Setting("usearch", {"connectivity": connectivity, "expansion": expansion}, built, ask)


def _hnswlib(full: np.ndarray, k: int) -> Iterator[Setting]:
    hnswlib = peer("hnswlib")
    for connectivity in (16, 32) if hnswlib else ():
        began = time.perf_counter()
        index = hnswlib.Index(space="ip", dim=full.shape[1])
        index.init_index(len(full), M=connectivity, ef_construction=256)
        index.add_items(full)
        built = time.perf_counter() - began
        for expansion in EXPANSIONS:

            def ask(query: np.ndarray, index: Any = index, expansion: int = expansion) -> np.ndarray:
                index.set_ef(expansion)
                return index.knn_query(query[None], k, num_threads=1)[0][0]

            yield Setting("hnswlib", {"connectivity": connectivity, "expansion": expansion}, built, ask)


def _faiss(full: np.ndarray, k: int) -> Iterator[Setting]:
    faiss = peer("faiss")
    if faiss is None:
        return
    width = full.shape[1]
    graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 256
    lists = faiss.index_factory(width, "IVF1024,SQfp16", faiss.METRIC_INNER_PRODUCT)
    for name, index, searched, field, values in (
        ("faiss_hnsw", graph, graph.hnsw, "efSearch", EXPANSIONS),
        ("faiss_ivf", lists, lists, "nprobe", (8, 16, 32, 64, 128, 256)),
    ):
        began = time.perf_counter()
        index.train(full)
        index.add(full)
        built = time.perf_counter() - began
        for value in values:

            def ask(
                query: np.ndarray, index: Any = index, searched: Any = searched, field: str = field, value: int = value
            ) -> np.ndarray:
                setattr(searched, field, value)
                return index.search(query[None], k)[1][0]

            yield Setting(name, {"search": value}, built, ask)
