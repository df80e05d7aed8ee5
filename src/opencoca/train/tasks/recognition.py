"""Recognition: labels of pictures, by a pooler and a classifier over the encoder's tokens."""

from __future__ import annotations

from opencoca.model.coca import CoCa
from opencoca.model.flops import forward_flops
from opencoca.train.task import Outcome, Task
from opencoca.train.tasks.targets import Targets, judged
from opencoca.types import Batch


class Recognition(Task):
    """The cross-entropy of one head's labels (CoCa section 3.3); captions count for nothing.

    It reads the encoder and the head: freeze all else (`unread_parts`), and the encoder too for frozen features.
    """

    def __init__(self, head: str, targets: Targets, smoothing: float = 0.0) -> None:
        self.head, self.targets, self.smoothing = head, targets, smoothing
        self.weights = {"accuracy": 0.0}

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        logits_BL = model.tasks[self.head](model.encoder(batch.pixels, batch.patch_noise))
        shares_BL = self.targets.rows(batch.keys, logits_BL.device)
        return Outcome(judged(logits_BL, shares_BL, self.smoothing))


def encoder_flops(model: CoCa, batch: Batch) -> int:
    """Operations of the encoder's forward pass over a batch's pictures."""
    count, channels, size_px, _ = batch.pixels.shape
    return forward_flops(model.config, count * channels // 3, 2, size_px).encoder


def unread_parts(model: CoCa) -> tuple[str, ...]:
    """The parts that recognition doesn't read, for `OptimConfig.frozen`."""
    return tuple(dict.fromkeys(n.partition(".")[0] for n, _ in model.named_parameters() if not _is_read(n)))


def _is_read(name: str) -> bool:
    return name.startswith(("encoder.", "tasks."))
