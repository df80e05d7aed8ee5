"""Tensors in safetensors files, whole or cut up: one file of one process, or one of each rank.

A tensor that is cut up lies in several files, a run of its rows (or of another dimension) in each. Where a piece
begins stands in its file's metadata, in the form of `torch.distributed.checkpoint`, whose HuggingFaceStorageReader can
read the files too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opencoca.errors import CheckpointError

_OFFSETS = "DCP_SHARDING_INFO"  # the key, and "saved_offsets" below: torch's names
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Piece(NamedTuple):
    """A part of a tensor, and where it begins in the whole."""

    tensor: Tensor
    offsets: tuple[int, ...]


def whole(tensor: Tensor) -> Piece:
    """A tensor as its own only piece."""
    return Piece(tensor, (0,) * tensor.ndim)


def part_name(name: str, part: int, parts: int) -> str:
    """The file of the 0-based `part`: `model.safetensors`, or `model-00001-of-00004.safetensors`."""
    return name if parts == 1 else name.replace(".", f"-{part + 1:05d}-of-{parts:05d}.", 1)


def part_names(name: str, files: Collection[str]) -> list[str]:
    """The files among `files` that hold `name`'s tensors, in order; none where there are none.

    Raises: CheckpointError where one of them is missing, or there are two sets of them.
    """
    stem, _, suffix = name.partition(".")
    found = {file: re.fullmatch(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{suffix}", file) for file in files}
    totals = {int(match[1]) for match in found.values() if match}
    if not totals:
        return [name] if name in files else []
    if len(totals) > 1 or name in files:
        raise CheckpointError(f"there are two sets of {stem} files; restore the folder from a copy")
    (parts,) = totals
    expected = [part_name(name, part, parts) for part in range(parts)]
    missing = [file for file in expected if file not in files]
    if missing:
        raise CheckpointError(f"{', '.join(missing[:3])} of {parts} {stem} files is missing; copy the folder again")
    return expected


def without_copies(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """The pieces, of two names for one memory (a tied head) only the first: safetensors refuses the second."""
    seen: set[int] = set()
    kept: dict[str, Piece] = {}
    for name, piece in pieces.items():
        if not piece.tensor.numel() or piece.tensor.data_ptr() not in seen:
            kept[name] = piece
        seen.add(piece.tensor.data_ptr())
    return kept


def write_pieces(path: Path, pieces: Mapping[str, Piece], cut: bool) -> None:
    """Writes a safetensors file; `cut`: it also says where pieces begin."""
    metadata = None
    if cut:
        offsets = {name: {"saved_offsets": list(piece.offsets)} for name, piece in pieces.items()}
        metadata = {_OFFSETS: json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    save_file({name: piece.tensor.detach().cpu().contiguous() for name, piece in pieces.items()}, path, metadata)


class Stored(Mapping[str, Tensor]):
    """The tensors of one or several files, read when they are asked for: each whole, or only a part of it.

    Raises: CheckpointError, naming `folder`, for files that aren't safetensors, or whose pieces don't fit together.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, list(names)
        self._pieces: dict[str, list[_Placed]] = {}
        try:
            self._files = [safe_open(folder / name, framework="pt") for name in names]
            for file in self._files:
                for name, placed in _placed(file):
                    self._pieces.setdefault(name, []).append(placed)
            self._dims = {name: _dimension(name, pieces) for name, pieces in self._pieces.items()}
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / names[0]} can't be read ({error}); restore the folder from a copy or train again"
            ) from error

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __contains__(self, name: object) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.read(name, (0,) * len(shape), shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        pieces, dim = self._pieces[name], self._dims[name]
        shape = list(pieces[0].shape)
        if shape:
            shape[dim] = pieces[-1].offsets[dim] + pieces[-1].shape[dim]
        return tuple(shape)

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The part of a tensor that begins at `offsets` and has `sizes`, from those files alone that hold it."""
        pieces, dim = self._pieces[name], self._dims[name]
        if not sizes:
            return pieces[0].file.get_tensor(name)
        first, end = offsets[dim], offsets[dim] + sizes[dim]
        parts = []
        for piece in pieces:
            start = piece.offsets[dim]
            low, high = max(first, start), min(end, start + piece.shape[dim])
            if low < high or (first == end and not parts):  # an empty part has a dtype too
                region = [slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
                region[dim] = slice(low - start, high - start) if low < high else slice(0, 0)
                everything = all(r == slice(0, length) for r, length in zip(region, piece.shape, strict=True))
                parts.append(piece.file.get_tensor(name) if everything else piece.file.get_slice(name)[tuple(region)])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors; those that lie in one piece are mapped from the file, not read."""
        return {name: self[name] for name in self}

    def described(self) -> dict[str, Tensor]:
        """Tensors of the right names, shapes and dtypes without content."""
        return {
            name: torch.empty(self.shape(name), dtype=pieces[0].dtype, device="meta")
            for name, pieces in self._pieces.items()
        }


class _Placed(NamedTuple):
    file: Any
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def _placed(file: Any) -> Iterator[tuple[str, _Placed]]:
    """The pieces that a file holds."""
    text = (file.metadata() or {}).get(_OFFSETS)
    table = json.loads(text) if text else None
    for name in file.keys():  # noqa: SIM118 (it is no dict)
        found = file.get_slice(name)
        shape = tuple(found.get_shape())
        offsets = (0,) * len(shape) if table is None else tuple(int(n) for n in table[name]["saved_offsets"])
        if len(offsets) != len(shape) or min(offsets, default=0) < 0:
            raise ValueError(f"{name} {list(shape)} can't begin at {list(offsets)}")
        yield name, _Placed(file, offsets, shape, _DTYPES[found.get_dtype()])


def _dimension(name: str, pieces: list[_Placed]) -> int:
    """The dimension along which pieces follow each other, after sorting them, without a gap and without an overlap."""
    pieces.sort(key=lambda piece: piece.offsets)
    first, last = pieces[0], pieces[-1]
    varying = [dim for dim, (a, b) in enumerate(zip(first.offsets, last.offsets, strict=True)) if a != b]
    dim = varying[0] if varying else 0
    end = 0
    for piece in pieces:
        others = [(o, s) for i, (o, s) in enumerate(zip(piece.offsets, piece.shape, strict=True)) if i != dim]
        expected = [(0, size) for i, size in enumerate(first.shape) if i != dim]
        begins = piece.offsets[dim] if piece.shape else 0
        if len(varying) > 1 or others != expected or begins != end or piece.dtype != first.dtype:
            raise ValueError(f"the pieces of {name} overlap or leave gaps")
        end += piece.shape[dim] if piece.shape else 1
    return dim
