"""Video-text retrieval without training, and the baseline that a pooler over all frames has to beat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.data.clips import Clip, read_table
from opencoca.data.video import FRAMES
from opencoca.errors import DataError
from opencoca.eval.cache import fingerprint
from opencoca.eval.ranks import ranks_both_ways
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.infer.predictor import Predictor
from opencoca.infer.video import How, embedding, encode_videos

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class VideoRetrieval:
    """Texts find clips and clips find texts: a clip is the mean of its frames' embeddings (CoCa), or pooled over all.

    Clips with one text (a caption, else the label) are all right for it, and R@k asks for the best of them.
    """

    def __init__(
        self,
        name: str,
        clips: Sequence[Clip],
        skipped: Sequence[tuple[str, str]] = (),
        frames: int = FRAMES,
        how: How = "mean",
        template: str = "{}",
    ) -> None:
        self.name, self.clips, self.skipped = name, list(clips), list(skipped)
        self.frames, self.template = frames, template
        self.how: How = how
        rows = "\n".join(f"{clip.key}\t{clip.caption or clip.label}" for clip in self.clips)
        self.digest = hashlib.sha256(rows.encode()).hexdigest()
        self.key = f"{self.digest} {frames} {how} {template}"

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        began, skipped = time.perf_counter(), list(self.skipped)

        def skip(clip: Any, error: DataError) -> None:
            skipped.append((clip.key, str(error)))

        read: list[Clip] = []
        embeds: list[Tensor] = []
        for one in encode_videos(predictor, self.clips, self.frames, skip):
            assert isinstance(one.video, Clip)
            read.append(one.video)
            embeds.append(embedding(one, self.how))
        if not read:
            raise DataError(f"{self.name}: none of the {len(self.clips)} clips can be read; the first: {skipped[0]}")
        texts = list(dict.fromkeys(clip.caption or clip.label for clip in read))
        of_clip = [texts.index(clip.caption or clip.label) for clip in read]
        text_embeds = predictor.embed_texts([self.template.replace("{}", text) for text in texts])
        # a clip has one text, a text may have several clips: texts stand where `ranks_both_ways` has pictures
        t2v, v2t = ranks_both_ways(text_embeds, torch.stack(embeds), torch.tensor(of_clip))
        figures = {
            f"{way}_recall@{k}": _share(ranks, k) for way, ranks in (("t2v", t2v), ("v2t", v2t)) for k in (1, 5, 10)
        }
        return EvaluationResult(
            name=self.name,
            figures=figures,
            headline="v2t_recall@1",
            per_sample={f"v2t_recall@{k}": (v2t < k).double() for k in (1, 5, 10)},
            sample_ids=[clip.key for clip in read],
            facts={
                "digest": self.digest,
                "clips": len(read),
                "texts": len(texts),
                "frames": self.frames,
                "how": self.how,
                "templates": [self.template],
                "model": fingerprint(predictor),
                "skipped": skipped_facts(skipped),
                "seconds": round(time.perf_counter() - began, 2),
            },
        )


def make(name: str, data: Data, options: Options) -> VideoRetrieval:
    """The evaluation "clips/retrieval" of a table of clips; see `eval.registry`."""
    place = data["clips"]
    table = read_table(Path(place.path), place.split)
    clips = table.clips
    if options.limit is not None and options.limit < len(clips):
        clips = [clips[i * len(clips) // options.limit] for i in range(options.limit)]
    return VideoRetrieval(name, clips, table.skipped)


def linear_accuracy(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Test accuracy of a linear classifier of (features [B,E], labels [B]), and its L2 penalty, chosen on val."""
    mean, std = train[0].mean(dim=0), train[0].std(dim=0).clamp(min=1e-6)
    best = (-1.0, 0.0, 0.0)
    for penalty in PENALTIES:
        weight_EL, bias_L = _fitted((train[0] - mean) / std, train[1], penalty)
        on_val, on_test = (
            (((x - mean) / std @ weight_EL + bias_L).argmax(dim=1) == y).float().mean().item() for x, y in (val, test)
        )
        best = max(best, (on_val, on_test, penalty), key=lambda one: one[0])
    return best[1], best[2]


def _fitted(x_BE: Tensor, y_B: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(x_BE.shape[1], int(y_B.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_BE @ weight + bias, y_B) + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()


def _share(ranks: Tensor, k: int) -> float:
    return (ranks < k).double().mean().item()
