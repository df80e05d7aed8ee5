"""What decoding carries from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opencoca.model.attention import KeysValues, KVCache


class DecodeCache:
    """Each layer's past, and each multimodal layer's view of the pictures.

    The rows of a picture write into one cache, which holds S slots by now; `seen_BRS` says which of them are the past
    of each of the picture's R rows, and beams are reordered there alone. As long as a picture has one row, it sees all
    that there is and there is no `seen_BRS`.
    """

    def __init__(
        self,
        unimodal: list[KVCache],
        multimodal: list[KVCache],
        pictures: list[KeysValues],
        num_pictures: int | None = None,
    ) -> None:
        """Without `num_pictures`, every row has a picture of its own for good."""
        self.unimodal, self.multimodal, self.pictures = unimodal, multimodal, pictures
        self.num_pictures = num_pictures
        self.seen_BRS: Tensor | None = None
        self.length = unimodal[0].length  # text positions held so far
        self.step: Callable[[Tensor, DecodeCache], Tensor] | None = None  # computes single positions, if it is there
        self.told: Any = None  # what that made for itself of where all this lies

    def extend(self, rows: int, steps: int) -> Tensor | None:
        """Moves on by `steps` positions in each row; says what they see [B,R*T,S], or None for all before them."""
        self.length += steps
        if self.num_pictures is None or (self.seen_BRS is None and rows == self.num_pictures):
            return None
        sharing, slots = rows // self.num_pictures, self.unimodal[0].length
        device = self.unimodal[0].keys_BNSK.device
        seen_BRS = self.seen_BRS
        if seen_BRS is None:  # the rows of a picture have one beginning
            seen_BRS = torch.ones(self.num_pictures, sharing, slots, dtype=torch.bool, device=device)
        own_RX = torch.eye(sharing, dtype=torch.bool, device=device).repeat_interleave(steps, dim=1)
        causal_TT = torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
        own_XX = own_RX.repeat_interleave(steps, dim=0) & causal_TT.repeat(sharing, sharing)
        self.seen_BRS = torch.cat((seen_BRS, own_RX.expand(self.num_pictures, -1, -1)), dim=2)
        return torch.cat((seen_BRS.repeat_interleave(steps, dim=1), own_XX.expand(self.num_pictures, -1, -1)), dim=2)

    def select_beams(self, parents_BR: Tensor) -> None:
        """Each picture's rows go on from these of its rows; one row may branch into several."""
        if self.seen_BRS is not None:
            slots = self.seen_BRS.shape[2]
            self.seen_BRS = self.seen_BRS.gather(1, parents_BR[..., None].expand(-1, -1, slots))

    def keep_pictures(self, keep_B: Tensor) -> Tensor:
        """Drops the other pictures with their rows; returns which pictures [B'] stand where now.

        Of those behind, some move into the places that become free, so as little as possible is copied.
        """
        kept = keep_B.nonzero()[:, 0]
        count = len(kept)
        order = torch.arange(count, device=keep_B.device)
        holes, fillers = (~keep_B[:count]).nonzero()[:, 0], kept[kept >= count]
        order[holes] = fillers

        def moved(held: Tensor, slots: int) -> Tensor:
            held[holes, :, :slots] = held[fillers, :, :slots]
            return held[:count]

        for cache in self.unimodal + self.multimodal:
            cache.keys_BNSK = moved(cache.keys_BNSK, cache.length)
            cache.values_BNSK = moved(cache.values_BNSK, cache.length)
        self.pictures = [KeysValues(*(moved(part, part.shape[2]) for part in both)) for both in self.pictures]
        if self.seen_BRS is not None:
            self.seen_BRS = self.seen_BRS[order]
        self.num_pictures = count
        return order
