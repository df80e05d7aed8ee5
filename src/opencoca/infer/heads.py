"""What a model's own heads say: labels of pictures, answers to questions, verdicts on statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from opencoca.config import HeadConfig
from opencoca.data.prompts import asked
from opencoca.errors import ConfigError, DataError
from opencoca.infer import stream

if TYPE_CHECKING:
    import numpy as np

    from opencoca.infer.predictor import Predictor

WHAT = {"encoder": "labels of pictures", "decoder": "questions"}


def head_for(
    predictor: Predictor, reads: Literal["encoder", "decoder"], name: str | None = None, pictures: int | None = None
) -> HeadConfig:
    """The model's head of that kind: the one called `name`, else the last one that was added.

    pictures: the head must take so many for each sample; None takes any.

    Raises: ConfigError where there is none, or none of that name.
    """
    of_kind = [head for head in predictor.model.config.heads if head.reads == reads]
    fitting = [head for head in of_kind if pictures in (None, head.pictures)]
    others = [head for head in of_kind if head not in fitting and name in (None, head.name)]
    if pictures is not None and others and (name is not None or not fitting):
        about = "this model's"
        if name is None:
            about = f"this model has no head for {WHAT[reads]} about {_counted(pictures)}: its"
        wanted = "pairs, (left, right)" if others[-1].pictures == 2 else _counted(others[-1].pictures)
        raise ConfigError(
            f"{about} head {others[-1].name!r} takes {_counted(others[-1].pictures)} for each, and {pictures} "
            f"{'is' if pictures == 1 else 'are'} given; give {wanted} for each"
        )
    if not fitting:
        trained_by = "coca recognise" if reads == "encoder" else "coca vqa"
        raise ConfigError(f"this model has no head for {WHAT[reads]}; train one with `{trained_by}`")
    if name is None:
        return fitting[-1]
    named = [head for head in fitting if head.name == name]
    if not named:
        raise ConfigError(f"this model has no head {name!r} for {WHAT[reads]}; it has {', '.join(_names(fitting))}")
    return named[0]


@torch.no_grad()
def label_logits(predictor: Predictor, head: HeadConfig, squares: np.ndarray) -> Tensor:
    """Logits float32 [B,L] of one batch of squares uint8 [B,H,W,3], as `Predictor.squares` makes them."""
    pixels_BCHW = stream.to_input(squares, predictor.config.pixels, predictor.device)
    dtype = next(predictor.model.parameters()).dtype
    return predictor.model.tasks[head.name](predictor.model.encoder(pixels_BCHW.to(dtype))).float().cpu()


@torch.no_grad()
def answer_logits(predictor: Predictor, head: HeadConfig, tokens: Tensor, questions: Sequence[str]) -> Tensor:
    """Logits float32 [B,L] of questions about encoded pictures, decoder tokens [B*F,Q,D], F pictures each in turn."""
    special = predictor.tokenizer.special
    ids = [question_ids(predictor, question) for question in questions]
    lengths_B = torch.tensor([len(one) for one in ids], device=tokens.device)
    longest = max(map(len, ids), default=1)
    padded_BT = torch.tensor([[*one, *[special.pad] * (longest - len(one))] for one in ids], device=tokens.device)
    keep_BT = torch.arange(longest, device=tokens.device) < lengths_B[:, None]
    padded_XT, keep_XT = (x.repeat_interleave(head.pictures, dim=0) for x in (padded_BT, keep_BT))
    return predictor.model.tasks[head.name](predictor.model.decode_ids(tokens, padded_XT), keep_XT).float().cpu()


def question_ids(predictor: Predictor, question: str, spare: int = 0) -> list[int]:
    """start and the tokens of a question as the model reads it.

    Raises: DataError for an empty question, or one that the context has no room for, with `spare` tokens behind it.
    """
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"a question must be a text that isn't empty, got {question!r}")
    ids = [predictor.tokenizer.special.start, *predictor.tokenizer.encode(asked(question))]
    room = predictor.model.config.text.context_length - spare
    if len(ids) > room:
        raise DataError(f"question {question[:40]!r} has {len(ids)} tokens and {room} fit; shorten it")
    return ids


def _counted(pictures: int) -> str:
    return "one picture" if pictures == 1 else f"{pictures} pictures"


def _names(heads: Sequence[HeadConfig]) -> list[str]:
    return [head.name for head in heads]
