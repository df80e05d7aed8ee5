"""Clips: found by texts, recognised, described; and the baseline that a pooler over all frames has to beat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from opencoca.config import HeadConfig
from opencoca.data.clips import Clip, read_table
from opencoca.data.video import FRAMES
from opencoca.errors import DataError
from opencoca.eval.cache import fingerprint
from opencoca.eval.caption_scores import caption_scores
from opencoca.eval.ranks import ranks_both_ways
from opencoca.eval.registry import Data, Options
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.infer.heads import head_for
from opencoca.infer.predictor import Predictor
from opencoca.infer.video import How, OnBad, caption_videos, embedding, encode_videos, recognise_videos

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class ClipEvaluation:
    """What the evaluations of a table of clips share: reading them, and what is said of those that can't be read."""

    def __init__(
        self, name: str, clips: Sequence[Clip], skipped: Sequence[tuple[str, str]] = (), frames: int = FRAMES
    ) -> None:
        self.name, self.clips, self.skipped, self.frames = name, list(clips), list(skipped), frames
        rows = "\n".join(f"{clip.key}\t{clip.caption or clip.label}" for clip in self.clips)
        self.digest = hashlib.sha256(rows.encode()).hexdigest()
        self.key = f"{self.digest} {frames}"

    def _skipping(self) -> tuple[list[tuple[str, str]], OnBad]:
        """All that is left out, and what notes one more clip."""
        skipped = list(self.skipped)
        return skipped, lambda clip, error: skipped.append((clip.key, str(error)))

    def _facts(
        self, predictor: Predictor, read: Sequence[Clip], skipped: Sequence[tuple[str, str]], began: float
    ) -> dict[str, Any]:
        """Raises: DataError where no clip could be read."""
        if not read:
            raise DataError(f"{self.name}: none of the {len(self.clips)} clips can be read; the first: {skipped[0]}")
        return {
            "digest": self.digest,
            "clips": len(read),
            "frames": self.frames,
            "model": fingerprint(predictor),
            "skipped": skipped_facts(list(skipped)),
            "seconds": round(time.perf_counter() - began, 2),
        }


class VideoRetrieval(ClipEvaluation):
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
        super().__init__(name, clips, skipped, frames)
        self.how: How = how
        self.template = template
        self.key = f"{self.key} {how} {template}"

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, (skipped, skip) = time.perf_counter(), self._skipping()
        read: list[Clip] = []
        embeds: list[Tensor] = []
        for one in encode_videos(predictor, self.clips, self.frames, skip):
            assert isinstance(one.video, Clip)
            read.append(one.video)
            embeds.append(embedding(one, self.how))
        facts = self._facts(predictor, read, skipped, began)
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
            facts=facts | {"texts": len(texts), "how": self.how, "templates": [self.template]},
        )


class Recognised(NamedTuple):
    """The clips that could be read, whether the best label (one of the best five) of each is right, and the rest."""

    clips: list[Clip]
    acc1: Tensor
    acc5: Tensor
    skipped: list[tuple[str, str]]

    @property
    def figures(self) -> dict[str, float]:
        """The shares of clips."""
        return {"acc1": self.acc1.mean().item(), "acc5": self.acc5.mean().item()}


def recognise(predictor: Predictor, clips: Sequence[Clip], frames: int = FRAMES) -> Recognised:
    """How often the model's own head knows the labels of clips; one that the head doesn't have counts as wrong.

    Raises: ConfigError where the model has no head, DataError where no clip can be read.
    """
    head = clip_head(predictor)
    skipped: list[tuple[str, str]] = []
    read: list[Clip] = []
    first, fifth = [], []

    def skip(clip: Any, error: DataError) -> None:
        skipped.append((clip.key, str(error)))

    for clip, shares_L in recognise_videos(predictor, clips, frames, skip, head.name):
        assert isinstance(clip, Clip)
        best = [head.labels[i] for i in shares_L.topk(min(5, len(head.labels))).indices.tolist()]
        read.append(clip)
        first.append(clip.label == best[0])
        fifth.append(clip.label in best)
    if not read:
        raise DataError(f"none of the {len(clips)} clips can be read; the first: {skipped[0] if skipped else 'none'}")
    return Recognised(read, torch.tensor(first).double(), torch.tensor(fifth).double(), skipped)


def clip_head(predictor: Predictor) -> HeadConfig:
    """The newest of the model's heads that reads the encoder. Raises: ConfigError where it has none."""
    names = [head.name for head in predictor.model.config.heads if head.reads == "encoder"]
    return head_for(predictor, "encoder", names[-1] if names else None, pictures=1)


class VideoRecognition(ClipEvaluation):
    """Clips' labels by the model's own head, as `coca video train` makes it."""

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model. Raises: as `recognise`."""
        began, labels = time.perf_counter(), clip_head(predictor).labels
        found = recognise(predictor, self.clips, self.frames)
        facts = self._facts(predictor, found.clips, [*self.skipped, *found.skipped], began)
        unknown = sorted({clip.label for clip in found.clips} - set(labels))
        return EvaluationResult(
            name=self.name,
            figures=found.figures,
            headline="acc1",
            per_sample={"acc1": found.acc1, "acc5": found.acc5},
            sample_ids=[clip.key for clip in found.clips],
            facts=facts | {"classes": len(labels), "labels_not_known": unknown[:20]},
        )


class VideoCaptions(ClipEvaluation):
    """Captions of all frames of each clip against its caption, or its label where it has none."""

    def __init__(self, name: str, clips: Sequence[Clip], skipped: Sequence[tuple[str, str]], options: Options) -> None:
        super().__init__(name, clips, skipped)
        self._beams = options.beams
        self.key = f"{self.key} {options.beams}"

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model."""
        began, (skipped, skip) = time.perf_counter(), self._skipping()
        said = list(caption_videos(predictor, self.clips, self.frames, skip, beams=self._beams))
        read = [clip for clip, _ in said if isinstance(clip, Clip)]
        facts = self._facts(predictor, read, skipped, began)
        figures, per_sample = caption_scores(
            [text for _, text in said], [[clip.caption or clip.label] for clip in read]
        )
        return EvaluationResult(self.name, figures, "cider_d", per_sample, [clip.key for clip in read], facts)


def make(name: str, data: Data, options: Options) -> ClipEvaluation:
    """The evaluations "clips/retrieval", "/recognition" and "/captions" of a table of clips; see `eval.registry`."""
    place = data["clips"]
    table = read_table(Path(place.path), place.split)
    clips = table.clips
    if options.limit is not None and options.limit < len(clips):
        clips = [clips[i * len(clips) // options.limit] for i in range(options.limit)]
    if name.endswith("/captions"):
        return VideoCaptions(name, clips, table.skipped, options)
    return (VideoRecognition if name.endswith("/recognition") else VideoRetrieval)(name, clips, table.skipped)


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
