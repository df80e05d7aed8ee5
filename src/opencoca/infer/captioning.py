"""From encoded pictures to captions: options, prompts, and the choice by both halves of the model."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import torch

from opencoca.config import GenerationConfig
from opencoca.data.prompts import asked
from opencoca.errors import ConfigError, DataError
from opencoca.infer.generate import generate
from opencoca.infer.search import OnStep
from opencoca.infer.stream import OnBad, Pictures, one_each
from opencoca.types import ImageFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from opencoca.infer.predictor import Predictor


class GenerationChanges(TypedDict, total=False):
    """The fields of `GenerationConfig`, each of which a call may change."""

    max_tokens: int
    min_tokens: int
    beams: int
    num_beam_groups: int
    diversity_penalty: float
    length_penalty: float
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram: int
    seed: int
    match_weight: float
    beam_scores: Literal["log_prob", "logit"]


class Caption(NamedTuple):
    """A caption: its text and token ids, the prompt included, and what both halves of the model think of it.

    log_prob: log p(text | image) in nats, as `Predictor.score` gives it; the end counts where it was reached.
    match: cosine similarity of picture and text.
    """

    text: str
    log_prob: float
    match: float
    ids: list[int]


class Described(NamedTuple):
    """A picture as it was given, its unit-norm embedding float32 [E], and its captions, the best first."""

    picture: Any
    embed: Tensor
    captions: list[Caption]


def changed(defaults: GenerationConfig, changes: Mapping[str, object]) -> GenerationConfig:
    """The defaults with fields changed; what a change rules out among the defaults gives way to it.

    Beams without a temperature mean no sampling, beams that the default groups can't share are one group, and a
    max_tokens below the default min_tokens lowers that.

    Raises: ConfigError for an unknown name or a wrong type (with the repair), or changes that contradict each other.
    """
    kinds = typing.get_type_hints(GenerationConfig)
    for name, value in changes.items():
        if name == "num_captions":
            raise ConfigError(f"num_captions {value!r}: this gives one caption per picture; `captions` gives several")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown option {name!r}; {hint}the options are {', '.join(kinds)}")
        if not _fits(value, kinds[name]):
            wanted = " or ".join(map(repr, typing.get_args(kinds[name]))) or kinds[name].__name__
            raise ConfigError(f"option {name} is {value!r}; give {wanted}")
    implied: dict[str, object] = {}
    if "beams" in changes:
        implied["temperature"] = 0.0
    if typing.cast(int, changes.get("beams", 0)) % defaults.num_beam_groups:
        implied["num_beam_groups"] = 1
    if "max_tokens" in changes:
        implied["min_tokens"] = min(defaults.min_tokens, typing.cast(int, changes["max_tokens"]))
    return dataclasses.replace(defaults, **typing.cast(Any, implied | dict(changes)))


def describe(
    predictor: Predictor,
    images: Pictures,
    prompt: str | Sequence[str],
    changes: Mapping[str, object],
    num_captions: int = 1,
    on_bad: OnBad | None = None,
    want_match: bool = True,
) -> Iterator[Described]:
    """The captions of a stream of pictures; see `Predictor.describe`. Wrong options are refused at once."""
    settings = changed(predictor.config.generation, changes)
    num_proposals(settings, num_captions, predictor.tokenizer.vocab_size)
    prompt_at = one_each(prompt, images, "prompts", lambda text: encode_prompt(predictor, text, settings))
    return _described(predictor, images, prompt_at, settings, num_captions, on_bad, want_match)


def of_features(
    predictor: Predictor,
    features: ImageFeatures,
    prompt: str | Sequence[str],
    changes: Mapping[str, object],
    num_captions: int,
    keys: Sequence[int] | None,
    on_step: OnStep | None = None,
) -> list[list[Caption]]:
    """The captions of encoded pictures; see `Predictor.caption_features`."""
    settings, places = changed(predictor.config.generation, changes), range(len(features.embed))
    num_proposals(settings, num_captions, predictor.tokenizer.vocab_size)
    prompt_at = one_each(prompt, places, "prompts", lambda text: encode_prompt(predictor, text, settings))
    if keys is not None and len(keys) != len(places):
        raise DataError(f"there are {len(keys)} keys for {len(places)} pictures; give one each")
    prompts = [prompt_at(place) for place in places]
    return _captions(predictor, features, prompts, settings, num_captions, keys or places, True, on_step)


def answer(
    predictor: Predictor, images: Pictures, questions: str | Sequence[str], changes: Mapping[str, object]
) -> list[str]:
    """How the model goes on after each question; see `Predictor.answer`."""
    settings = changed(predictor.config.generation, changes)
    num_proposals(settings, 1, predictor.tokenizer.vocab_size)
    prompt_at = one_each(questions, images, "questions", lambda text: _encode_question(predictor, text, settings))
    described = _described(predictor, images, prompt_at, settings)
    ids = [one.captions[0].ids[len(prompt_at(place)) :] for place, one in enumerate(described)]
    return [predictor.tokenizer.decode(some).strip() for some in ids]


def _described(
    predictor: Predictor,
    images: Pictures,
    prompt_at: Callable[[int], list[int]],
    settings: GenerationConfig,
    num_captions: int = 1,
    on_bad: OnBad | None = None,
    want_match: bool = False,
) -> Iterator[Described]:
    for batch in predictor.squares(images, on_bad):
        features = predictor.encode_squares(batch.squares)
        prompts = [prompt_at(place) for place in batch.places]
        keys = [zlib.crc32(square.tobytes()) for square in batch.squares]
        captions = _captions(predictor, features, prompts, settings, num_captions, keys, want_match)
        yield from map(Described, batch.pictures, features.embed.float().cpu(), captions)


@torch.no_grad()
def _captions(
    predictor: Predictor,
    features: ImageFeatures,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    num_captions: int,
    keys: Sequence[int],
    want_match: bool,
    on_step: OnStep | None = None,
) -> list[list[Caption]]:
    """As many pictures at a time as have `batch_size` beams together."""
    rows = num_captions if settings.temperature > 0 else settings.beams
    size = max(1, predictor.batch_size // rows)
    captions: list[list[Caption]] = []
    for first in range(0, len(prompts), size):
        some = slice(first, first + size)
        part = ImageFeatures(features.embed[some], features.tokens[some])
        tell = on_step and (lambda picture, ids, first=first: on_step(first + picture, ids))
        captions += _propose(predictor, part, prompts[some], settings, num_captions, keys[some], want_match, tell)
    return captions


def _propose(
    predictor: Predictor,
    features: ImageFeatures,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    num_captions: int,
    keys: Sequence[int],
    want_match: bool,
    on_step: OnStep | None = None,
) -> list[list[Caption]]:
    """Up to `num_captions` captions of each encoded picture, the best first.

    Where several are proposed, `match_weight` times their similarity to the picture, at the trained temperature, is
    added to their score. `want_match` False leaves `match` out (nan) where it decides nothing.
    """
    count = num_proposals(settings, num_captions, predictor.tokenizer.vocab_size)
    proposed = generate(
        predictor.model,
        features.tokens,
        predictor.tokenizer.special,
        settings,
        prompts,
        keys,
        num_captions=count,
        on_step=on_step,
    )
    texts = [[predictor.tokenizer.decode(one.ids).strip() for one in some] for some in proposed]
    weight = settings.match_weight * predictor.scale if count > 1 else 0.0
    matches = [[math.nan] * len(some) for some in texts]
    if want_match or weight:
        matches = _matches(predictor, features.embed, texts)
    chosen = []
    for some, ones, similar in zip(texts, proposed, matches, strict=True):
        captions = [
            Caption(text, one.log_prob, match, one.ids) for text, one, match in zip(some, ones, similar, strict=True)
        ]
        if weight:
            scores = [one.score + weight * match for one, match in zip(ones, similar, strict=True)]
            captions = [captions[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
        chosen.append(captions[:num_captions])
    return chosen


def _matches(predictor: Predictor, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Cosine similarity of each picture's unit-norm embedding and each of its texts."""
    embeds_UE = predictor.embed_texts([text for some in texts for text in some])
    groups = embeds_UE.split([len(some) for some in texts])
    return [(some @ image).tolist() for some, image in zip(groups, images.float().cpu(), strict=True)]


def num_proposals(settings: GenerationConfig, num_captions: int, vocab_size: int) -> int:
    """How many captions are generated for each picture, so that the best `num_captions` can be chosen.

    Raises: ConfigError where the settings can't give so many.
    """
    if num_captions < 1:
        raise ConfigError(f"num_captions {num_captions} must be at least 1")
    if settings.temperature > 0:
        return num_captions
    if settings.beams > vocab_size // 2:
        raise ConfigError(f"beams {settings.beams} is more than half the vocabulary of {vocab_size}; take fewer")
    if num_captions > settings.beams:
        raise ConfigError(f"num_captions {num_captions} is more than beams {settings.beams}; give as many beams")
    return settings.beams if settings.match_weight > 0 else num_captions


def encode_prompt(predictor: Predictor, prompt: str, settings: GenerationConfig) -> list[int]:
    """The token ids of a prompt, without space around it.

    Raises: ConfigError where nothing could follow it.
    """
    if not isinstance(prompt, str):
        raise DataError(f"a prompt must be a string, got {prompt!r}")
    ids = predictor.tokenizer.encode(prompt.strip())
    context = predictor.model.config.text.context_length
    room = min(settings.max_tokens, context - len(("start", "end"))) - 1
    if len(ids) > room:
        repair = "raise max_tokens" if settings.max_tokens < context - 2 else "shorten it"
        shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
        raise ConfigError(
            f"prompt {shown!r} has {len(ids)} tokens and at most {max(0, room)} fit (max_tokens {settings.max_tokens}, "
            f"context {context}, one left to generate); {repair}"
        )
    return ids


def _encode_question(predictor: Predictor, question: str, settings: GenerationConfig) -> list[int]:
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"a question must be a text that isn't empty, got {question!r}")
    return encode_prompt(predictor, asked(question), settings)


def _fits(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
