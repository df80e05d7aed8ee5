"""What an optimizer must know of parameters that FSDP2 has cut into row shards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from opencoca.errors import TrainingError


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def row_group(tensor: Tensor) -> ProcessGroup | None:
    """The ranks that hold a tensor's rows between them, in order; None where every rank holds all rows.

    Raises: TrainingError for a tensor that is cut in any other way than by rows, along one dimension of its mesh.
    """
    if not isinstance(tensor, DTensor):
        return None
    cut = [i for i, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    if not cut:
        return None
    if len(cut) > 1 or type(tensor.placements[cut[0]]) is not Shard or tensor.placements[cut[0]] != Shard(0):
        raise TrainingError(
            f"a parameter of shape {list(tensor.shape)} is sharded as {tensor.placements}; the optimizers know "
            "shards of whole rows over one group of ranks, as fully_shard makes them"
        )
    return tensor.device_mesh.get_group(cut[0])


def rows_of_ranks(rows: int, world: int) -> list[int]:
    """How many of `rows` rows each rank holds: even parts, rounded up, as long as there are rows."""
    part = -(-rows // world)
    return [max(0, min(part, rows - rank * part)) for rank in range(world)]


def along_rows(values: Tensor, parameter: Tensor) -> Tensor:
    """This rank's `values`, one for each of its rows of `parameter`, as a vector that is sharded like those rows."""
    return _vector_like(values, parameter, len(parameter), tuple(getattr(parameter, "placements", ())))


def along_columns(values: Tensor, parameter: Tensor) -> Tensor:
    """A vector with one value for each column of `parameter`, whole on every rank."""
    everywhere = tuple(Replicate() for _ in getattr(parameter, "placements", ()))
    return _vector_like(values, parameter, len(values), everywhere)


def _vector_like(values: Tensor, parameter: Tensor, length: int, placements: tuple[Placement, ...]) -> Tensor:
    if not isinstance(parameter, DTensor):
        return values
    shape = torch.Size([length])
    return DTensor.from_local(values, parameter.device_mesh, placements, run_check=False, shape=shape, stride=(1,))
