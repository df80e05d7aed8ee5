"""A run's checkpoints: saved at once, or written while training goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from opencoca import checkpoint
from opencoca.checkpoint import Piece
from opencoca.config import Config
from opencoca.data.tokenizer import Tokenizer
from opencoca.errors import CheckpointError
from opencoca.parallel.mesh import PATIENCE_S, current
from opencoca.train.pieces import together
from opencoca.train.state import Parts, TrainState, parts_of, write_parts


class Saver:
    """Writes checkpoints into a run folder, moves `latest`, and removes old ones; every rank has one and calls alike.

    With `run.async_save`, `save` returns once the tensors are copied, and a thread does the rest; its error comes out
    of the next call. `latest` moves only when every rank's files are on disk and verified. Use it in a `with` block,
    whose end waits.
    """

    def __init__(self, run: Path, config: Config, tokenizer: Tokenizer) -> None:
        self.run, self.config, self.tokenizer = run, config, tokenizer
        self._ranks = current()
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if config.run.async_save and self._ranks.world > 1:  # the thread must not mix its messages with the loop's
            group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=PATIENCE_S))
            self._ranks = dataclasses.replace(self._ranks, patient=group)

    def save(self, state: TrainState) -> None:
        """Saves the state as the checkpoint of its step, after the one before is written.

        Raises: CheckpointError where this one can't be written (of a thread: the one before), on all ranks.
        """
        self.wait()
        folder = checkpoint.checkpoint_folder(self.run, state.step)
        parts = parts_of(state, self._ranks)
        if not self.config.run.async_save:
            self._write(folder, parts)
            return
        if parts.cut or self._ranks.first:
            parts = self._copied(parts)
        self._thread = threading.Thread(target=self._work, args=(folder, parts), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Returns at once. Raises: what a save that has ended ran into; several ranks learn it at the next."""
        if self._ranks.world == 1 and self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns once nothing is being written. Raises: what the save ran into."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(CheckpointError) if error is not None else contextlib.nullcontext():
            self.wait()

    def _work(self, folder: Path, parts: Parts) -> None:
        try:
            self._write(folder, parts)
        except BaseException as error:
            self._error = error

    def _write(self, folder: Path, parts: Parts) -> None:
        ranks, keep = self._ranks, self.config.run.keep_checkpoints
        write_parts(folder, parts, self.config, self.tokenizer, ranks)
        if not parts.cut:
            together(ranks, lambda: checkpoint.mark_latest(folder, keep) if ranks.first else None)
            return
        together(ranks, lambda: checkpoint.verify(folder, part=ranks.rank, parts=ranks.world) and None)
        together(ranks, lambda: checkpoint.move_latest(folder, keep) if ranks.first else None)

    @torch.no_grad()
    def _copied(self, parts: Parts) -> Parts:
        """The parts in memory of their own, the same at every save: pinned, where they come from a GPU."""

        def copy(kind: str, pieces: dict[str, Piece]) -> dict[str, Piece]:
            copies = {}
            for name, (tensor, offsets) in checkpoint.without_copies(pieces).items():
                buffer = self._buffers.get(f"{kind}{name}")
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._buffers[f"{kind}{name}"] = buffer
                copies[name] = Piece(buffer.copy_(tensor, non_blocking=True), offsets)
            return copies

        copied = parts._replace(weights=copy("", parts.weights), training=copy("training.", parts.training))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied
