"""Sharded optimizers: two ranks that hold half of every parameter's rows take the steps that one process takes."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from opencoca.config import OptimConfig
from opencoca.train.muon import orthogonalise
from opencoca.train.optim import first_moments, make_optimizers

STEPS, RANKS, TOLERANCE = 4, 2, 1e-12  # worst case measured: 2e-15
SIDE = 130  # both sides of `blocks.0.wide` are large enough for Adafactor to factor it


class Toy(nn.Module):
    """Matrices of several shapes, rows that don't divide by the ranks, one row, vectors, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"wide": (SIDE + 1, SIDE), "same": (SIDE + 1, SIDE), "third": (SIDE + 1, SIDE), "flat": (6, 40)}
        shapes |= {"thin": (41, 6), "row": (1, 12)}
        generator = torch.Generator().manual_seed(0)

        def matrix(rows: int, columns: int) -> nn.Linear:
            linear = nn.Linear(columns, rows, dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
                linear.bias.fill_(0.1)
            return linear

        self.blocks = nn.ModuleList([nn.ModuleDict({name: matrix(*shape) for name, shape in shapes.items()})])
        self.log_scale = nn.Parameter(torch.ones(1, dtype=torch.float64))


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) * 1.5**step
        for name, p in model.named_parameters()
    }


def trained(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Takes a few steps with given gradients, cut up as the parameters are."""
    optimizers = make_optimizers(model, config)
    for step in range(STEPS):
        whole = gradients(model, step)
        for name, parameter in model.named_parameters():
            parameter.grad = whole[name]
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.grad = torch.distributed.tensor.distribute_tensor(whole[name], mesh, placements)
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(kind: str, mesh_shape: tuple[int, ...]) -> None:
    config = OptimConfig(steps=10, optimizer=kind, beta2=0.99, weight_decay=0.1, muon_peak_lr=0.1, peak_lr=0.1)
    alone = Toy()
    sharded = copy.deepcopy(alone)
    fully_shard(sharded, mesh=init_device_mesh("cpu", mesh_shape, mesh_dim_names=("copy", "cut")[-len(mesh_shape) :]))
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    expected, found = trained(alone, config), trained(sharded, config)
    began = dict(Toy().named_parameters())
    for (name, parameter), other in zip(alone.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(whole(other), parameter, rtol=0, atol=TOLERANCE, msg=f"{kind} {mesh_shape} {name}")
        assert (parameter - began[name]).abs().max() > 1e-3, f"{kind} doesn't move {name}"
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(*([p for g in o.param_groups for p in g["params"]] for o in (one, other)), strict=True):
            template = first_moments(other, b)
            for moment, tensor in one.state[a].items():
                theirs = other.state[b][moment]
                torch.testing.assert_close(whole(theirs), tensor, rtol=1e-12, atol=TOLERANCE)
                assert isinstance(theirs, DTensor) == isinstance(template[moment], DTensor) == (moment != "step")
                if isinstance(theirs, DTensor) and isinstance(template[moment], DTensor):
                    assert theirs.placements == template[moment].placements
                    assert theirs.to_local().shape == template[moment].to_local().shape


def work_is_shared() -> None:
    """No rank orthogonalises all matrices."""
    import opencoca.train.muon as module

    seen = []

    def counted(matrices: Tensor) -> Tensor:
        seen.append(len(matrices))
        return orthogonalise(matrices)

    module.orthogonalise = counted
    model = Toy()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    trained(model, OptimConfig(steps=10, optimizer="muon"))
    module.orthogonalise = orthogonalise
    counts: list = [None] * RANKS
    dist.all_gather_object(counts, sum(seen))
    assert counts == [3 * STEPS] * RANKS  # of 6 matrices


def on_a_rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    try:
        for kind in ("adamw", "adafactor", "muon"):
            for mesh_shape in ((RANKS,), (1, RANKS), (RANKS, 1)):
                compare(kind, mesh_shape)
        work_is_shared()
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(60)
def test_two_ranks_take_the_steps_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_a_rank, (port,), nprocs=RANKS)
