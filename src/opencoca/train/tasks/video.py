"""Recognition of clips: labels, by a new pooler and a classifier over the encoder's tokens of all frames."""

from __future__ import annotations

import torch
from torch import Tensor

from opencoca.model.coca import CoCa
from opencoca.model.video import as_frames, frame_tokens, space_time
from opencoca.train.task import Outcome, Task
from opencoca.train.tasks.targets import Targets, judged
from opencoca.types import Batch

KEPT_BYTES = 1 << 30


class VideoRecognition(Task):
    """The cross-entropy of one head's labels over a clip's space-time tokens (CoCa section 3.3); captions don't count.

    A batch's channels are those of all frames in turn. It reads the encoder, the time positions and the head; freeze
    all else (`unread_parts`), and the encoder too for frozen features.

    Args:
        kept: where the encoder is frozen and pictures aren't changed at random, tokens [1,F,P,D] of clips by key, which
            fills up to `KEPT_BYTES`. A clip is then encoded once, and alone, so that its batch changes no value.
    """

    def __init__(
        self, head: str, targets: Targets, smoothing: float = 0.0, kept: dict[str, Tensor] | None = None
    ) -> None:
        self.head, self.targets, self.smoothing, self.kept = head, targets, smoothing, kept
        self.weights = {"accuracy": 0.0}

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        pixels_BFCHW = as_frames(batch.pixels)
        if self.kept is None:
            tokens_BFPD = frame_tokens(model, pixels_BFCHW, batch.patch_noise)
        else:
            clips = zip(batch.keys, pixels_BFCHW, strict=True)
            tokens_BFPD = torch.cat([_alone(model, key, pixels_FCHW, self.kept) for key, pixels_FCHW in clips])
        logits_BL = model.tasks[self.head](space_time(model, tokens_BFPD))
        shares_BL = self.targets.rows(batch.keys, logits_BL.device)
        return Outcome(judged(logits_BL, shares_BL, self.smoothing))


@torch.no_grad()
def _alone(model: CoCa, key: str, pixels_FCHW: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """Tokens [1,F,P,D] of one clip, kept while there is room."""
    if key in kept:
        return kept[key]
    tokens_1FPD = frame_tokens(model, pixels_FCHW[None])
    if (len(kept) + 1) * tokens_1FPD.numel() * tokens_1FPD.element_size() <= KEPT_BYTES:
        kept[key] = tokens_1FPD
    return tokens_1FPD


def unread_parts(model: CoCa) -> tuple[str, ...]:
    """The parts that recognition of clips doesn't read, for `OptimConfig.frozen`."""
    read = ("encoder", "tasks", "time_positions_FD")
    return tuple(dict.fromkeys(p for n, _ in model.named_parameters() if (p := n.partition(".")[0]) not in read))
