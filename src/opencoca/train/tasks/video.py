"""Recognition of clips: labels, by a new pooler and a classifier over the encoder's tokens of all frames."""

from __future__ import annotations

import torch
from torch import Tensor

from opencoca.model.coca import CoCa
from opencoca.model.video import as_frames, frame_tokens, space_time
from opencoca.train.task import Outcome, Task
from opencoca.train.tasks.targets import Targets, judged
from opencoca.types import Batch


class VideoRecognition(Task):
    """The cross-entropy of one head's labels over a clip's space-time tokens (CoCa section 3.3); captions don't count.

    A batch's channels are those of all frames in turn. It reads the encoder, the time positions and the head; freeze
    all else (`unread_parts`), and the encoder too for frozen features.

    Args:
        keep_bytes: where the encoder is frozen and pictures aren't changed at random, tokens of clips are kept in
            memory up to so many bytes, each clip encoded once and alone, so that what a batch holds changes no value.
    """

    def __init__(self, head: str, targets: Targets, smoothing: float = 0.0, keep_bytes: int = 0) -> None:
        self.head, self.targets, self.smoothing = head, targets, smoothing
        self.weights = {"accuracy": 0.0}
        self._room, self._kept = keep_bytes, dict[str, Tensor]()
        self._keeps = keep_bytes > 0

    def forward(self, model: CoCa, batch: Batch) -> Outcome:
        pixels_BFCHW = as_frames(batch.pixels)
        tokens_BFPD = (
            torch.cat([self._alone(model, key, clip_FCHW) for key, clip_FCHW in zip(batch.keys, pixels_BFCHW, strict=True)])
            if self._keeps
            else frame_tokens(model, pixels_BFCHW, batch.patch_noise)
        )
        logits_BL = model.tasks[self.head](space_time(model, tokens_BFPD))
        shares_BL = self.targets.rows(batch.keys, logits_BL.device)
        return Outcome(judged(logits_BL, shares_BL, self.smoothing))

    @torch.no_grad()
    def _alone(self, model: CoCa, key: str, clip_FCHW: Tensor) -> Tensor:
        """Tokens [1,F,P,D] of one clip, kept while there is room."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        tokens_1FPD = frame_tokens(model, clip_FCHW[None])
        size = tokens_1FPD.numel() * tokens_1FPD.element_size()
        if size <= self._room:
            self._room -= size
            self._kept[key] = tokens_1FPD
        return tokens_1FPD


def unread_parts(model: CoCa) -> tuple[str, ...]:
    """The parts that recognition of clips doesn't read, for `OptimConfig.frozen`."""
    read = ("encoder", "tasks", "time_positions_FD")
    return tuple(dict.fromkeys(p for n, _ in model.named_parameters() if (p := n.partition(".")[0]) not in read))
