"""Checkpoints of cut-up models: written by one number of ranks, read by another, bit for bit, and all or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.support import tiny_tokenizer
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint import load as load_with_torch
from torch.distributed.tensor import DTensor, distribute_tensor

from opencoca import checkpoint, recipes
from opencoca.config import Config
from opencoca.errors import CheckpointError
from opencoca.parallel import mesh
from opencoca.train.engine import Engine
from opencoca.train.saver import Saver
from opencoca.train.state import TrainState, fresh_state, load_state, save_state

CPU, TOKENIZER, DEADLINE_S = torch.device("cpu"), tiny_tokenizer(), 60
FULL = "File too large, as if the disk were full"


def config_of(optimizer: str, **run: object) -> Config:
    """`recipes.tiny` with matrices large enough for Adafactor to factor them; with it, a part is frozen."""
    config = recipes.tiny.tiny()
    text = dataclasses.replace(config.model.text, width=129, unimodal_depth=1, multimodal_depth=1, mlp_width=130)
    model = dataclasses.replace(config.model, text=text)
    frozen = ("encoder.blocks.0", "unimodal.tokens") if optimizer == "adafactor" else ()
    optim = dataclasses.replace(config.optim, optimizer=optimizer, ema_decay=0.9, frozen=frozen)
    settings = dataclasses.replace(config.run, device="cpu", parallel="fsdp", keep_checkpoints=1, **run)
    return dataclasses.replace(config, model=model, optim=optim, run=settings)


def moved_on(state: TrainState, steps: int) -> TrainState:
    """The state after steps along gradients that depend on the step alone, so the same on any number of ranks."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for parameter in state.model.parameters():
            whole = torch.randn(parameter.shape, generator=generator)
            if parameter.requires_grad:
                cut = isinstance(parameter, DTensor)
                parameter.grad = distribute_tensor(whole, parameter.device_mesh, parameter.placements) if cut else whole
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        state.position += 8
        state.update_average(0.9)
    return state


def content(state: TrainState) -> dict[str, torch.Tensor]:
    """This rank's part of every tensor of a state."""
    names = {id(p): n for n, p in state.model.named_parameters()}
    tensors = dict(state.model.named_parameters()) | {f"average.{name}": x for name, x in state.average.items()}
    for optimizer in state.optimizers:
        for parameter, moments in optimizer.state.items():
            tensors |= {f"{names[id(parameter)]}.{moment}": x for moment, x in moments.items()}
    return {n: (x.to_local() if isinstance(x, DTensor) else x).detach().clone() for n, x in tensors.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 130
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def loaded(folder: Path, config: Config) -> TrainState:
    """A checkpoint's state, cut up over the ranks that there are."""
    engine = Engine(config.run, mesh.current())
    state = load_state(folder, config, TOKENIZER, CPU, shard=engine.arrange)
    assert engine.is_cut_up == (dist.is_initialized() and dist.get_world_size() > 1)
    return state


def in_a_group(rank: int, world: int, work, folder: Path) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=DEADLINE_S)
    dist.init_process_group("gloo", f"file://{folder}/meeting{world}", timeout, world, rank)
    try:
        work(rank, world, folder)
    finally:
        dist.destroy_process_group()


def spawn(world: int, work, folder: Path) -> None:
    """`work` on so many ranks, none of which lives longer than the deadline."""
    context = mp.spawn(in_a_group, (world, work, folder), world, join=False)
    began = datetime.datetime.now()
    try:
        while not context.join(1.0):
            assert (datetime.datetime.now() - began).seconds < DEADLINE_S, "the ranks hang"
    finally:
        for process in context.processes:
            process.kill()


def read_and_write(rank: int, world: int, folder: Path) -> None:
    """1 rank's checkpoint is read, moved on, written, and read again."""
    for optimizer in ("muon", "adafactor"):
        config = config_of(optimizer)
        state = loaded(folder / optimizer, config)
        assert any(isinstance(x, DTensor) for moments in state.optimizers[0].state.values() for x in moments.values())
        alone = checkpoint.load(folder / optimizer)
        for name, average in state.average.items():
            whole = average.full_tensor() if isinstance(average, DTensor) else average
            assert torch.equal(whole, alone.weights[name]), name
        moved_on(state, 1)
        save_state(folder / f"{optimizer}-{world}", state, config, TOKENIZER)
        again = loaded(folder / f"{optimizer}-{world}", config)
        assert_same(content(state), content(again))
        assert (again.step, again.position) == (3, 24)
    saves_in_the_background(rank, folder, state)
    failures_are_shared(rank, folder, state)


def saves_in_the_background(rank: int, folder: Path, state: TrainState) -> None:
    config, run = config_of("adafactor", async_save=True), folder / "run"
    with Saver(run, config, TOKENIZER) as saver:
        for _ in range(2):
            saver.save(state)
            before = content(state)
            moved_on(state, 1)  # while the thread writes what was
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert_same(content(loaded(run, config)), before)


def failures_are_shared(rank: int, folder: Path, state: TrainState) -> None:
    """One rank can't write, or finds damage: all of them raise, and what there was stays."""
    config, run = config_of("adafactor"), folder / "run"
    whole, written = checkpoint.resolve(run), checkpoint.folders.write_pieces

    def full(path, *rest, **more):
        if rank == 1:
            raise OSError(28, FULL)
        written(path, *rest, **more)

    checkpoint.folders.write_pieces = full
    saver = Saver(run, config, TOKENIZER)
    with pytest.raises(CheckpointError, match="rank 1: .*" + FULL if rank == 0 else FULL):
        saver.save(state)
    checkpoint.folders.write_pieces = written
    dist.barrier()
    assert [path.name for path in whole.parent.iterdir() if path.name.startswith(".")] == []
    assert checkpoint.resolve(run) == whole and checkpoint.verify(whole)
    saver.save(state)
    damaged = checkpoint.resolve(run) / "training-00002-of-00002.safetensors"
    dist.barrier()
    if rank == 0:
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
    dist.barrier()
    with pytest.raises(CheckpointError, match=damaged.name):
        loaded(run, config)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # it is: torch reads here in one process
def test_one_rank_writes_two_read_and_one_again(tmp_path: Path) -> None:
    for optimizer in ("muon", "adafactor"):
        config = config_of(optimizer)
        alone = moved_on(fresh_state(config, CPU), 2)
        save_state(tmp_path / optimizer, alone, config, TOKENIZER)
    spawn(2, read_and_write, tmp_path)
    for optimizer in ("muon", "adafactor"):
        folder, config = tmp_path / f"{optimizer}-2", config_of(optimizer)
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        assert names == [f"{kind}-0000{i}-of-00002.safetensors" for kind in ("model", "training") for i in (1, 2)]
        sizes = [os.path.getsize(folder / name) for name in names]
        assert 0.6 < sizes[0] / sizes[1] < 1.7  # each rank wrote its part, not everything
        state = loaded(folder, config)
        saved = checkpoint.load(folder, digests=True)  # as inference loads it
        assert saved.weights.keys() == state.average.keys()
        assert [name for name, average in state.average.items() if not torch.equal(average, saved.weights[name])] == []
        expected = moved_on(load_state(tmp_path / optimizer, config, TOKENIZER, CPU), 1)
        close = {name: (content(state)[name] - x).abs().max() for name, x in content(expected).items()}
        assert max(close.values()) < 1e-5  # two ranks' step differs by rounding; measured: 1.5e-8, 1.2e-7
        targets = {name: torch.zeros_like(x) for name, x in saved.weights.items()}
        load_with_torch(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        assert [name for name, x in targets.items() if not torch.equal(x, saved.weights[name])] == []
    assert json.loads((tmp_path / "muon-2" / checkpoint.STATE).read_text())["position"] == 24


def read_and_move_on(rank: int, world: int, folder: Path) -> None:
    """The checkpoint of other ranks is read, and written again from here."""
    config = config_of("adafactor")
    save_state(folder / f"adafactor-{world}", loaded(folder / "adafactor", config), config, TOKENIZER)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_four_ranks_two_and_one_hold_the_same(tmp_path: Path) -> None:
    config = config_of("adafactor")
    alone = moved_on(fresh_state(config, CPU), 2)
    save_state(tmp_path / "adafactor", alone, config, TOKENIZER)
    for world in (4, 2):
        spawn(world, read_and_move_on, tmp_path)
        assert len(list((tmp_path / f"adafactor-{world}").glob("*.safetensors"))) == 2 * world
        assert_same(content(loaded(tmp_path / f"adafactor-{world}", config)), content(alone))
        (tmp_path / "adafactor").rename(tmp_path / f"before-{world}")
        (tmp_path / f"adafactor-{world}").rename(tmp_path / "adafactor")  # four ranks' pieces are what two read
