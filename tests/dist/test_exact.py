"""Loss and gradients, the temperature's too, depend neither on the number of ranks nor on that of micro-batches."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.ranks import on_ranks
from tests.support import MemorySource, samples, tiny_config, tiny_tokenizer

from opencoca.config import Config
from opencoca.data.loader import PairLoader
from opencoca.data.pixels import normalised
from opencoca.parallel.mesh import current
from opencoca.train.engine import Engine
from opencoca.train.state import fresh_state
from opencoca.train.step import update
from opencoca.train.task import Pretraining

pytestmark = pytest.mark.timeout(120)
FP64 = torch.autocast("cpu", torch.bfloat16, enabled=False)
STEPS, BATCH = 2, 16

# Measured worst case, relative: see docs/decisions/0010-the-step.md
TOLERANCE = 1e-12

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "sigmoid": ("loss.contrastive=sigmoid", "model.pair_bias=true", "loss.multi_positive=true"),
    "patches": (
        *("loss.multi_positive=true", "loss.every_caption=true", "loss.contrastive_chunk=5", "loss.caption_chunk=7"),
        *("model.vision.train_patches=3", "data.captions=sample"),
    ),
    "drawn": ("model.text.parallel_share=0.5", "model.text.token_drop=0.4", "model.pooler.train_queries=3"),
}


def config_of(variant: str, batch_size: int = BATCH, **run: Any) -> Config:
    """Two steps of AdamW with clipping that bites, an average, and captions in up to three buckets."""
    optim = {"steps": 4, "warmup_steps": 0, "clip_norm": 0.5, "ema_decay": 0.9}
    data = {"batch_size": batch_size, "text_buckets": 3}
    return tiny_config(Path("unused"), optim=optim, data=data, run=run).with_values(VARIANTS[variant])


def steps(variant: str, batch_size: int = BATCH, **run: Any) -> dict[str, np.ndarray]:
    """Losses, first gradients and last weights of this rank's share of two steps in float64, put together."""
    config, ranks = config_of(variant, batch_size, **run), current()
    items = samples()
    if config.loss.every_caption:  # the colour alone is true of several pictures of a batch
        items = [item._replace(more_captions=(item.caption.split()[0],)) for item in items]
    loader = PairLoader.from_config(config, cast(Any, MemorySource(items)), tiny_tokenizer(), ranks.rank, ranks.world)
    engine = Engine(config.run, ranks)
    state = fresh_state(config, torch.device("cpu"), lambda model: model.double() and None, engine.arrange)
    engine.begin(state.model)
    task, found = Pretraining(config.model, config.loss), {}
    for batch, _ in loader.batches():
        batch = batch._replace(pixels=normalised(batch.pixels, config.pixels).double())
        values = update(state, task, batch, config, FP64, engine)
        found |= {f"{state.step} {name}": value.numpy() for name, value in values.items()}
        if state.step == 1:
            gradients = {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}
            found |= {f"gradient {name}": whole(gradient) for name, gradient in gradients.items()}
        if state.step == STEPS:
            found |= {f"weight {name}": whole(p) for name, p in state.model.named_parameters()}
            found |= {f"average {name}": whole(tensor) for name, tensor in state.average.items()}
            return found
    raise AssertionError("the loader is endless")


def whole(tensor: Any) -> np.ndarray:
    """All of a tensor that may be cut up."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).numpy().copy()


def several(runs: list[tuple[str, dict[str, Any]]]) -> list[dict[str, np.ndarray]]:
    """`steps` of each, on one group of ranks."""
    return [steps(variant, **run) for variant, run in runs]


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """The greatest difference, relative to the tensor's greatest value, and whose it is.

    Of weights it is absolute: the gradient of a key's bias is zero but for rounding, which Adam makes as large as any.
    """
    assert a.keys() == b.keys() and len(a) > 100
    units = {n: 1.0 if n.startswith(("weight", "average")) else float(np.abs(b[n]).max()) for n in b}
    return max((float(np.abs(a[n] - b[n]).max()) / max(1e-9, units[n]), n) for n in a)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(variant) -> dict[str, np.ndarray]:
    found = steps(variant)
    assert "gradient log_scale" in found and np.abs(found["gradient log_scale"]) > 1e-4
    return found


def test_micro_batches_change_nothing(variant, alone):
    for size in (8, 4, 2, 5) if variant == "plain" else (3,):  # 2, 4, 8 of them, and uneven ones
        far, name = distance(steps(variant, micro_batch=size), alone)
        assert far < TOLERANCE, (size, name, far)


RUNS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("plain", {}),
        ("plain", {"micro_batch": 2}),
        ("plain", {"parallel": "fsdp", "micro_batch": 4, "checkpoint_activations": True}),
        ("sigmoid", {"micro_batch": 4}),
        ("patches", {"parallel": "fsdp"}),
        ("drawn", {"micro_batch": 3}),
    ],
    4: [
        ("plain", {"micro_batch": 2}),
        ("sigmoid", {"parallel": "fsdp"}),
        ("patches", {}),
        ("drawn", {"parallel": "fsdp", "micro_batch": 2}),
    ],
}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_change_nothing(world):
    of_ranks = on_ranks(world, several, RUNS[world])
    for number, (variant, run) in enumerate(RUNS[world]):
        expected = steps(variant)
        for of_rank in of_ranks:
            far, name = distance(of_rank[number], expected)
            assert far < TOLERANCE, (variant, run, name, far)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_no_combination_changes_anything(variant, alone, world):
    sizes, ways = (0, 4, 2, 1), ("ddp", "fsdp")
    runs = [
        {"micro_batch": size, "parallel": way, "checkpoint_activations": kept}
        for size in sizes
        for way in ways
        for kept in (False, True)
    ]
    for of_rank in on_ranks(world, several, [(variant, run) for run in runs], timeout_s=100):
        for run, found in zip(runs, of_rank, strict=True):
            far, name = distance(found, alone)
            assert far < TOLERANCE, (run, name, far)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # both come from torch's compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_compute_the_same():
    far, name = distance(steps("plain", compile=True, micro_batch=8, checkpoint_activations=True), steps("plain"))
    assert far < 1e-9, (name, far)


def test_the_comparison_would_notice():
    """Negatives of each half alone, as without a cache, are far away; so is a change in the eleventh digit."""
    whole, half = steps("plain"), steps("plain", batch_size=BATCH // 2)
    assert distance(half, whole)[0] > 1e-3
    slightly = whole | {"gradient log_scale": whole["gradient log_scale"] * (1 + 1e-11)}
    assert distance(slightly, whole)[0] > TOLERANCE
