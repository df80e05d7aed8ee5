"""What a training run will take, before it is launched: memory, operations, steps, time, data; or why it can't work."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opencoca.config import Config
from opencoca.data.loader import bucket_by_length
from opencoca.data.mixture import open_training_source
from opencoca.data.sources import Source, open_source
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import ConfigError, DataError, TrainingError
from opencoca.jobs.pretrain import stored_tokenizer, with_vocabulary
from opencoca.model.flops import forward_flops
from opencoca.train.engine import BYTES_PER_PARAMETER
from opencoca.train.machine import matmul_rate, memory_bytes, placement
from opencoca.train.memory import Memory, Shape, memory, parameter_bytes

ASSUMED_MFU = 0.35  # the quickstart's on two cores (benchmarks/results/quickstart.json); 0.45 is good on a GPU
CONTEXT_BYTES = {"cuda": 1.2e9, "cpu": 0.7e9}  # a device's context or the process itself, and kernels' workspaces
LOOKED_AT = 256  # captions that the lengths are taken from
PIECES_PER_WORD = 1.3  # where there is no tokenizer yet
WITHOUT_DATA = 20  # ids of a caption where there is no data either: web captions have about as many


class Machine(NamedTuple):
    """The devices of a run: how many, the memory of each, and the operations per second that one could do."""

    kind: str  # "cuda" or "cpu"
    devices: int
    memory_bytes: float
    flops: float
    measured: bool


class Captions(NamedTuple):
    """Lengths of captions in ids, start and end counted: on average, and padded as the loader does."""

    mean: float
    padded: float
    how: str


class Plan(NamedTuple):
    """A run, in figures. Bytes and operations are per device; samples, tokens and steps are of the whole run."""

    recipe: str
    machine: Machine
    mode: str
    precision: str
    parameters: int
    memory: Memory
    need_bytes: float
    pairs_per_device: int
    micro_batch: int
    micro_batches: int
    step_flops: float
    computed_flops: float
    mfu: float
    step_s: float
    steps: int
    samples: int
    epochs: float
    tokens: float
    captions: Captions
    data_samples: int
    shards: int
    shards_per_reader: float
    eta_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return self._asdict() | {name: getattr(self, name)._asdict() for name in ("machine", "memory", "captions")}


def this_machine(config: Config, devices: int = 0) -> Machine:
    """The devices at hand, as many as given or as the launcher has started; their speed is measured.

    Raises: TrainingError where run.device asks for a GPU and there is none.
    """
    device, autocast = placement(config.run)
    devices = devices or int(os.environ.get("WORLD_SIZE", 0) or 1)
    with autocast:
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    rate = matmul_rate(device, dtype, size=8192 if device.type == "cuda" else 2048)
    if device.type == "cuda":
        return Machine("cuda", devices, float(torch.cuda.get_device_properties(device).total_memory), rate, True)
    return Machine("cpu", devices, memory_bytes() / devices, rate / devices, True)  # ranks share the processor


def another_machine(gpus: int, memory_gb: float, tflops: float) -> Machine:
    """GPUs that aren't here."""
    return Machine("cuda", gpus, memory_gb * 1e9, tflops * 1e12, False)


def plan(config: Config, machine: Machine, run: Path | None = None, samples: int = 0, mfu: float = ASSUMED_MFU) -> Plan:
    """The plan of `config` on `machine`.

    Args: run is the folder to train in, whose tokenizer counts if it has one; samples above 0 stand for data that
      isn't here, and none is looked at; mfu is the share of the device's speed that training is assumed to reach.
    Raises: ConfigError, DataError or TrainingError, with the repair, for what can't work.
    """
    _check_extras(config)
    check_batch(config, machine.devices)
    shards, shards_per_reader = 0, 0.0
    if samples:
        captions = Captions(WITHOUT_DATA, WITHOUT_DATA, "assumed, since no data is looked at")
    else:
        source, samples = _data(config)
        shards = len(source.shards)
        shards_per_reader = shards / (machine.devices * max(1, config.data.workers))
        tokenizer = stored_tokenizer(config, run)
        if tokenizer is not None:
            config = with_vocabulary(config, tokenizer)
        captions = _lengths(config, [source[i].caption for i in _spread(samples)], tokenizer)
    if samples < config.data.batch_size:
        raise DataError(
            f"{config.data.folder} has {samples} training pairs, fewer than one batch of {config.data.batch_size}; "
            f"set data.batch_size={_below(samples, machine.devices)} or less, or bring more data"
        )
    bf16 = config.run.precision == "bf16" or (config.run.precision == "auto" and machine.kind == "cuda")
    pairs = config.data.batch_size // machine.devices
    micro = min(config.run.micro_batch or pairs, pairs)
    count = -(-pairs // micro)
    sharded = _is_sharded(config, machine)
    shape = Shape(micro, captions.padded, config.data.batch_size, accumulates=count > 1)
    need = memory(config, shape, bf16, machine.devices, sharded, machine.kind)
    needed = need.peak + CONTEXT_BYTES[machine.kind]
    if needed > machine.memory_bytes:
        raise TrainingError(_too_large(config, machine, shape, bf16, sharded, needed))
    forward = _forward(config, pairs, captions.mean)
    model_flops = 3 * forward["total"]
    computed = model_flops + (forward["blocks"] if config.run.checkpoint_activations else 0)
    computed += forward["towers"] if count > 1 else 0  # embeddings of the whole batch come before its gradients
    step_s = computed / (machine.flops * mfu)
    steps = config.optim.steps
    return Plan(
        recipe=config.recipe,
        machine=machine,
        mode=("fsdp" if sharded else "ddp") if machine.devices > 1 else "one device",
        precision="bf16" if bf16 else "fp32",
        parameters=parameter_bytes(config).weights // 4,
        memory=need,
        need_bytes=needed,
        pairs_per_device=pairs,
        micro_batch=-(-pairs // count),
        micro_batches=count,
        step_flops=model_flops,
        computed_flops=computed,
        mfu=mfu,
        step_s=step_s,
        steps=steps,
        samples=steps * config.data.batch_size,
        epochs=steps * config.data.batch_size / samples,
        tokens=steps * config.data.batch_size * (captions.mean - 1),
        captions=captions,
        data_samples=samples,
        shards=shards,
        shards_per_reader=shards_per_reader,
        eta_s=steps * step_s,
    )


def _check_extras(config: Config) -> None:
    """Packages that this configuration needs and a plain installation lacks."""
    places = [config.data.folder, *(place.rpartition("=")[0] for place in config.data.mixture)]
    wanted = {
        "wandb": ("run.wandb", config.run.wandb),
        "simplejpeg": ("pixels.decoder simplejpeg", config.pixels.decoder == "simplejpeg"),
        "fsspec": ("a data folder behind a URL", any("://" in place for place in places)),
        "pyarrow": ("a Parquet file", any(place.endswith(".parquet") for place in places)),
    }
    for package, (what, is_wanted) in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            extra = {"simplejpeg": "'opencoca[train]'", "pyarrow": "'opencoca[parquet]'"}.get(package, package)
            raise ConfigError(f"{what} needs the package {package}, which isn't installed; pip install {extra}")


def check_batch(config: Config, devices: int) -> None:
    """Raises: ConfigError where the devices can't have equal shares of the global batch."""
    batch = config.data.batch_size
    if batch % devices:
        above = -(-batch // devices) * devices
        near = f"{batch - batch % devices} or {above}" if batch > devices else str(above)
        raise ConfigError(f"data.batch_size {batch} can't be shared by {devices} devices; set it to {near}")


def _data(config: Config) -> tuple[Source, int]:
    source = open_training_source(config.data)
    if config.run.eval_every_steps:
        try:
            if len(open_source(config.data.folder, config.data.val_split)) == 0:
                raise DataError("it has no pairs")
        except DataError as error:
            raise DataError(
                f"run.eval_every_steps is {config.run.eval_every_steps}, but there is no data.val_split "
                f"{config.data.val_split!r} ({error}); hold some pairs out, or set run.eval_every_steps=0"
            ) from error
    return source, len(source)


def _spread(samples: int) -> list[int]:
    """Indices of the samples that are looked at."""
    count = min(samples, LOOKED_AT)
    return [i * samples // count for i in range(count)]


def _lengths(config: Config, captions: Sequence[str], tokenizer: Tokenizer | None) -> Captions:
    room = config.model.text.context_length
    if tokenizer is None:
        lengths = [min(room, 2 + math.ceil(PIECES_PER_WORD * len(caption.split()))) for caption in captions]
        how = f"estimated from the words of {len(captions)} captions, since the tokenizer is not trained yet"
    else:
        lengths = tokenizer.encode_batch(list(captions), room)[1].sum(dim=1).tolist()
        how = f"of {len(captions)} captions"
    lengths.sort()
    buckets = bucket_by_length(lengths, config.data.text_buckets, config.data.bucket_gain)
    padded = sum((last - first) * length for first, last, length in buckets) / len(lengths)
    return Captions(sum(lengths) / len(lengths), padded, how)


def _is_sharded(config: Config, machine: Machine) -> bool:
    """As `train.engine.parallel_mode` decides."""
    if machine.devices == 1 or config.run.parallel == "ddp":
        return False
    if config.run.parallel == "fsdp":
        return True
    need = BYTES_PER_PARAMETER * parameter_bytes(config).weights / 4
    return machine.kind == "cuda" and need > machine.memory_bytes / 2


def _forward(config: Config, pairs: int, length: float) -> dict[str, float]:
    """Operations of one device's forward pass: all, of the blocks alone, and of what the embeddings need."""
    read = {
        "read_patches": config.model.vision.train_patches,
        "token_drop": config.model.text.token_drop,
        "read_queries": config.model.pooler.train_queries,
    }
    low = math.floor(length)
    sizes = [forward_flops(config.model, 1, n, **read) for n in (low, low + 1)]
    parts = {
        name: pairs * (a + (length - low) * (b - a))
        for name, a, b in zip(sizes[0]._fields, sizes[0], sizes[1], strict=True)
    }
    blocks = parts["encoder"] + parts["unimodal"] + parts["multimodal"]
    towers = parts["encoder"] + parts["generative_pooler"] + parts["contrastive_pooler"] + parts["unimodal"]
    return {"total": sum(parts.values()), "blocks": blocks, "towers": towers}


def _too_large(config: Config, machine: Machine, shape: Shape, bf16: bool, sharded: bool, needed: float) -> str:
    """The refusal, with the least change that fits."""
    room = machine.memory_bytes - CONTEXT_BYTES[machine.kind]
    has = f"a step needs {needed / 1e9:.1f} GB on each device, which has {machine.memory_bytes / 1e9:.1f} GB"
    cuts = [(sharded, "")]
    if not sharded and machine.devices > 1:
        cuts.append((True, "run.parallel=fsdp"))
    for cut, said in cuts:
        for light in dict.fromkeys((config.run.checkpoint_activations, True)):
            changed = dataclasses.replace(config, run=dataclasses.replace(config.run, checkpoint_activations=light))
            pairs = shape.pairs
            while pairs >= 1:
                small = shape._replace(pairs=pairs, accumulates=shape.accumulates or pairs < shape.pairs)
                if memory(changed, small, bf16, machine.devices, cut, machine.kind).peak <= room:
                    sets = [said] if said else []
                    sets += [f"run.micro_batch={pairs}"] if pairs < shape.pairs else []
                    sets += ["run.checkpoint_activations=true"] if light > config.run.checkpoint_activations else []
                    return f"{has}; --set {' '.join(sets)} would fit"
                pairs //= 2
    if config.run.parallel == "fsdp" or machine.devices == 1:
        return f"{has}, and no micro-batch is small enough; take more devices with run.parallel=fsdp, or larger ones"
    return f"{has}, and nothing makes it fit; take more or larger devices, or a smaller model"


def _below(samples: int, devices: int) -> int:
    return max(devices, samples // devices * devices)
