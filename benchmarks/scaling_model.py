"""Step time and memory on 8 to 1,024 GPUs, computed from the configuration: a model, not a measurement.

Compute is the operations of `model/flops.py` at an assumed share of the GPU's matrix-product rate; memory is
`train/memory.py`; communication is rings over stated bandwidths, of which a stated share hides behind the compute.
Each case takes the fastest micro-batch that fits, with activations recomputed where that helps. The global batch stays
the same, so more GPUs means fewer pairs on each. Where modes take equally long, the one with fewer parts is named: ddp,
then hsdp, then fsdp. docs/scaling.md says what follows and what is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from common import RESULTS, write_result
from step_cost import BATCH, MEDIUM, TEXT_LENGTH

from opencoca import recipes
from opencoca.config import Config
from opencoca.model.flops import forward_flops
from opencoca.train.memory import Shape, embedding_bytes, memory, parameter_bytes

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
MODELS = {"CoCa-Base": "paper.base", "L/14": "open_clip.vit_l_14", "CoCa 2.1B": "paper.coca"}
MODES = ("ddp", "hsdp", "fsdp")
CAPTION_IDS = 20  # of a web caption, start and end counted; the context is longer, but padding is cut
CONTEXT_GB = 3.0  # the device's context, communication buffers, fragmentation


@dataclass(frozen=True)
class Cluster:
    """The inputs. Bandwidths are one way, per GPU; `reached` is the share of them that rings get in practice."""

    gpus_per_node: int = 8
    memory_gb: float = 80.0
    matmul_tflops: float = 794.0  # bf16, large products, as one H200 was seen to do (nominal: 989)
    mfu: float = 0.45  # of that, by the step without communication
    nvlink_gb_s: float = 450.0
    infiniband_gb_s: float = 50.0  # 400 Gbit/s, one card per GPU
    reached: float = 0.8
    hop_s: float = 6e-6  # start-up of one hop of a ring
    hidden: float = 0.8  # share of compute behind which the gradients' and weights' exchange can hide
    global_batch: int = 65_536


class Step(NamedTuple):
    """One training step, in seconds; `exposed` is what isn't hidden of the exchange of weights and gradients."""

    mode: str
    micro_batch: int
    recompute: bool
    memory_gb: float
    compute_s: float
    exchange_s: float
    exposed_s: float
    embeddings_s: float
    step_s: float
    efficiency: float
    samples_per_s: float


def ring_s(size: float, ranks: int, bandwidth: float, hop_s: float) -> float:
    """Seconds of a ring all-gather or reduce-scatter of `size` bytes in all; an all-reduce takes two of them."""
    return (ranks - 1) / ranks * size / bandwidth + (ranks - 1) * hop_s if ranks > 1 else 0.0


def bandwidth(cluster: Cluster, gpus: int) -> float:
    """Bytes per second of rings over all GPUs: within a node NVLink's; between nodes all of a node's cards together."""
    between = cluster.infiniband_gb_s * cluster.gpus_per_node
    slowest = cluster.nvlink_gb_s if gpus <= cluster.gpus_per_node else min(cluster.nvlink_gb_s, between)
    return slowest * 1e9 * cluster.reached


def exchange_s(
    cluster: Cluster, mode: str, gpus: int, weights: float, passes: int, backwards: int, blocks: int
) -> float:
    """Seconds that weights and gradients are under way in one step.

    Args: weights is their number; passes counts forward passes, each of which gathers bf16 weights where they are cut
      up, as each backward pass does; `backwards` counts the latter, each of which scatters fp32 gradients.
    """
    ring = bandwidth(cluster, gpus)
    if mode == "ddp":
        return 2 * ring_s(4 * weights, gpus, ring, cluster.hop_s)
    group = gpus if mode == "fsdp" else min(gpus, cluster.gpus_per_node)
    inside = bandwidth(cluster, group)
    gather = ring_s(2 * weights, group, inside, cluster.hop_s * blocks)
    scatter = ring_s(4 * weights, group, inside, cluster.hop_s * blocks)
    total = (passes + backwards) * gather + backwards * scatter
    if mode == "hsdp" and gpus > group:  # every GPU sums its share with its counterparts, over its own card
        card = cluster.infiniband_gb_s * 1e9 * cluster.reached
        total += 2 * ring_s(4 * weights / group, gpus // group, card, cluster.hop_s)
    return total


def step(cluster: Cluster, config: Config, mode: str, gpus: int, micro: int, recompute: bool) -> Step | None:
    """One way to run a step; None where it doesn't fit."""
    pairs = cluster.global_batch // gpus
    count = pairs // micro
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, checkpoint_activations=recompute))
    shape = Shape(micro, CAPTION_IDS, cluster.global_batch, accumulates=count > 1)
    group = {"ddp": gpus, "fsdp": gpus, "hsdp": min(gpus, cluster.gpus_per_node)}[mode]
    needed = memory(config, shape, True, group, mode != "ddp").peak / 1e9 + CONTEXT_GB
    if needed > cluster.memory_gb:
        return None
    parts = forward_flops(config.model, 1, CAPTION_IDS)
    towers = parts.encoder + parts.generative_pooler + parts.contrastive_pooler + parts.unimodal
    blocks = parts.encoder + parts.unimodal + parts.multimodal
    model_flops = 3 * parts.total * pairs
    flops = model_flops + (blocks * pairs if recompute else 0) + (towers * pairs if count > 1 else 0)
    flops += 12 * pairs * cluster.global_batch * config.model.embed_dim  # the contrastive loss, both directions
    rate = cluster.matmul_tflops * 1e12 * cluster.mfu
    compute = flops / rate
    passes = count * (2 if count > 1 else 1)  # embeddings of the whole batch come before its gradients
    layers = config.model.vision.depth + config.model.text.unimodal_depth + config.model.text.multimodal_depth
    weights = parameter_bytes(config).weights / 4
    exchange = exchange_s(cluster, mode, gpus, weights, passes, count, layers)
    exposed = max(0.0, exchange - cluster.hidden * compute * (2 / 3 / count if mode == "ddp" else 1.0))
    size = embedding_bytes(config.model, cluster.global_batch)
    embeddings = 2 * ring_s(size, gpus, bandwidth(cluster, gpus), cluster.hop_s)
    total = compute + exposed + embeddings
    ideal = model_flops / rate
    return Step(
        mode,
        micro,
        recompute,
        needed,
        compute,
        exchange,
        exposed,
        embeddings,
        total,
        ideal / total,
        cluster.global_batch / total,
    )


def best(cluster: Cluster, config: Config, mode: str, gpus: int) -> Step | None:
    """The fastest way to run a step in this mode, over micro-batches and recomputing."""
    pairs = cluster.global_batch // gpus
    sizes = [pairs // cut for cut in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if pairs // cut >= 1]
    found = [step(cluster, config, mode, gpus, micro, light) for micro in sizes for light in (False, True)]
    return min((one for one in found if one is not None), key=lambda one: one.step_s, default=None)


def simulate(cluster: Cluster) -> dict[str, Any]:
    """Every model, number of GPUs and mode, and the best mode of each; None where nothing fits."""
    figures: dict[str, Any] = {}
    for name, recipe in MODELS.items():
        config = recipes.get(recipe)
        rows = []
        for gpus in GPUS:
            steps = {mode: best(cluster, config, mode, gpus) for mode in MODES}
            fitting = {mode: one for mode, one in steps.items() if one is not None}
            fastest = min(fitting, key=lambda mode: fitting[mode].step_s) if fitting else None
            rounded = {mode: None if one is None else _rounded(one) for mode, one in steps.items()}
            rows.append({"gpus": gpus, "pairs_per_gpu": cluster.global_batch // gpus, "best": fastest, **rounded})
        figures[name] = rows
    return figures


def checked() -> dict[str, float]:
    """The compute part against measured times of the same model: benchmarks/results/step_cost.json."""
    measured = json.loads((RESULTS / "step_cost.json").read_text())
    ratios, times = measured["operations_medium_64_tokens"], measured["time_medium_64_tokens"]["median_s"]
    flops = 3 * forward_flops(MEDIUM, BATCH, TEXT_LENGTH).total
    differing = [times[name] / ratio - 1 for name, ratio in ratios.items()]
    seconds = measured["seconds"]["coca"]["median_s"]
    return {
        "largest_difference_of_a_ratio_of_step_times": max(differing, key=abs),
        "share_of_the_processors_matmul_rate": flops / seconds / (measured["matmul_gflops"] * 1e9),
    }


def _rounded(one: Step) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in one._asdict().items()}


def table(figures: dict[str, Any]) -> str:
    """The best mode of every case, as docs/scaling.md shows it."""
    lines = ["| model | GPUs | pairs per GPU | best | step | efficiency | samples/s | GB per GPU | micro-batch |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|---:|---:|")
    for name, rows in figures.items():
        for row in rows:
            one = row[row["best"]] if row["best"] else None
            lead = f"| {name} | {row['gpus']:,} | {row['pairs_per_gpu']:,} |"
            if one is None:
                lines.append(f"{lead} nothing fits | | | | | |")
                continue
            light = ", recomputed" if one["recompute"] else ""
            lines.append(
                f"{lead} {row['best']} | {one['step_s']:.3g} s | {one['efficiency']:.0%} | "
                f"{one['samples_per_s']:,.0f} | {one['memory_gb']:.0f} | {one['micro_batch']}{light} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulates and writes the result; the inputs are options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in dataclasses.fields(Cluster):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    parser.add_argument("--print", action="store_true", help="print the table and write nothing")
    chosen = vars(parser.parse_args(arguments))
    only_print = chosen.pop("print")
    cluster = Cluster(**chosen)
    figures = simulate(cluster)
    if only_print:
        print(table(figures))
        return
    kind = "a simulation from stated inputs; nothing here was measured but what `check` is about"
    inputs = {**dataclasses.asdict(cluster), "caption_ids": CAPTION_IDS, "context_gb": CONTEXT_GB}
    write_result("scaling_model", {"kind": kind, "inputs": inputs, "check": checked(), "models": figures})


if __name__ == "__main__":
    main()
