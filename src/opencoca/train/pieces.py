"""The pieces of a cut-up model that each rank writes and reads, and what ranks do together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from opencoca.checkpoint import Piece, Stored, whole
from opencoca.errors import CheckpointError
from opencoca.parallel.collectives import gathered_values
from opencoca.parallel.mesh import Ranks

T = TypeVar("T")


def own_piece(tensor: Tensor, ranks: Ranks) -> Piece | None:
    """What this rank writes of a tensor; None where it has nothing of it, or another rank writes the same.

    Raises: CheckpointError for a tensor that is cut along two dimensions.
    """
    if not isinstance(tensor, DTensor):
        return whole(tensor) if ranks.first else None
    if tensor.device_mesh.size() == 1 or all(isinstance(placement, Replicate) for placement in tensor.placements):
        return whole(tensor.to_local()) if ranks.first else None
    coordinates = tensor.device_mesh.get_coordinate() or ()
    copies = [at for at, placement in zip(coordinates, tensor.placements, strict=True) if placement == Replicate()]
    offsets, sizes = region(tensor)
    return None if any(copies) or 0 in sizes else Piece(tensor.to_local(), tuple(offsets))


def region(tensor: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    """Where this rank's part of a tensor begins in the whole, and its size.

    Raises: CheckpointError for a tensor that is cut along two dimensions.
    """
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim, tensor.shape
    cut = [placement for placement in tensor.placements if placement != Replicate()]
    if len(cut) > 1 or any(type(placement) is not Shard for placement in cut):
        raise CheckpointError(
            f"a tensor of shape {list(tensor.shape)} is cut up as {tensor.placements}; checkpoints know tensors that "
            "are cut along one dimension, as fully_shard does"
        )
    (chunk,) = tensor.__create_chunk_list__()
    return chunk.offsets, chunk.sizes


@torch.no_grad()
def fill(tensor: Tensor, stored: Stored, name: str) -> None:
    """Copies this rank's part of a stored tensor into it."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if local.numel():
        local.copy_(stored.read(name, *region(tensor)))


def together(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """What `action` returned on each rank: it is done on all of them, or every one of them raises an error.

    The value must be something that JSON can say. Returns only once every rank is done.

    Raises: the action's own error on the ranks that met one, and CheckpointError with its text on the others.
    """
    value, failure = None, None
    try:
        value = action()
    except Exception as error:
        failure = error
    if failure is not None and ranks.world == 1:
        raise failure
    message = None if failure is None else " ".join(f"{failure}".split()) or type(failure).__name__
    answers = gathered_values({"value": value, "error": message}, ranks)
    if failure is not None:
        raise failure
    for rank, answer in enumerate(answers):
        if answer["error"] is not None:
            raise CheckpointError(f"rank {rank}: {answer['error']}")
    return [answer["value"] for answer in answers]
