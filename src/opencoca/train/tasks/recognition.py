"""Recognition: labels of pictures, by a pooler and a classifier over the encoder's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from opencoca.model.coca import CoCa
from opencoca.train.task import Outcome, Task
from opencoca.train.tasks.targets import Targets, counted, judged
from opencoca.types import Batch


class Recognition(Task):
    """The cross-entropy of one head's labels (CoCa section 3.3); captions count for nothing.

    It reads the encoder and the head: freeze all else (`unread_parts`), and the encoder too for frozen features.

    Args:
        keep_bytes: where the encoder is frozen and pictures aren't changed at random, their tokens are kept in memory
            up to so many bytes, each picture encoded once and alone, so that what a batch holds changes no value.
    """

    def __init__(self, head: str, targets: Targets, smoothing: float = 0.0, keep_bytes: int = 0) -> None:
        self.head, self.targets, self.smoothing = head, targets, smoothing
        self.weights = {"accuracy": 0.0}
        self._keeps, self._room, self._kept = keep_bytes > 0, keep_bytes, dict[str, Tensor]()

    def counts(self, batch: Batch) -> dict[str, int]:
        return counted(self.targets, batch.keys)

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        if self._keeps:
            pairs = zip(batch.keys, batch.pixels, strict=True)
            tokens_BPD = torch.cat([self._alone(model, key, pixels_CHW) for key, pixels_CHW in pairs])
        else:
            tokens_BPD = model.encoder(batch.pixels, batch.patch_noise)
        logits_BL = model.tasks[self.head](tokens_BPD)
        shares_BL = self.targets.rows(batch.keys, logits_BL.device)
        return Outcome(judged(logits_BL, shares_BL, self.smoothing))

    @torch.no_grad()
    def _alone(self, model: CoCa, key: str, pixels_CHW: Tensor) -> Tensor:
        """Tokens [1,P,D] of one picture, kept while there is room."""
        kept = self._kept.get(key)
        if kept is None:
            kept = model.encoder(pixels_CHW[None])
            size = kept.numel() * kept.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = kept
        return kept


def unread_parts(model: CoCa) -> tuple[str, ...]:
    """The parts that recognition doesn't read, for `OptimConfig.frozen`."""
    return tuple(dict.fromkeys(n.partition(".")[0] for n, _ in model.named_parameters() if not _is_read(n)))


def _is_read(name: str) -> bool:
    return name.startswith(("encoder.", "tasks."))
