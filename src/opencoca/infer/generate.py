"""Captions of pictures: the one entry to greedy search, beam search, diverse groups and sampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.errors import ConfigError, DataError
from opencoca.infer.hypotheses import Generated, Plan
from opencoca.infer.search import OnStep, search
from opencoca.model.coca import CoCa

__all__ = ["Generated", "generate"]


def generate(
    model: CoCa,
    image_tokens: Tensor,
    special: SpecialIds,
    config: GenerationConfig,
    prompts: Sequence[Sequence[int]] | None = None,
    keys: Sequence[int] | None = None,
    num_captions: int = 1,
    on_step: OnStep | None = None,
) -> list[list[Generated]]:
    """Up to `num_captions` captions of each picture of image tokens [B,Q,D], the best first (see `search`).

    A picture gets the same captions whatever else is in the batch.

    Args:
        prompts: what each caption begins with, ids without start, of any lengths.
        keys: which picture this is, for sampling: the same key, seed and picture give the same captions. The default
            is the row.
        num_captions: at most as many as there are beams; samples are as many as wanted, some of which may be equal.
            Fewer come back where groups of beams agree, as all do that no `diversity_penalty` pushes apart, or where
            there are no more captions of that length.
        on_step: called while the search goes on (see `search`).

    Raises: ConfigError for more captions than beams, or a prompt that leaves no room; DataError where prompts or keys
      and pictures differ in number, or a prompt holds ids that are no words, or the weights are damaged.
    """
    pictures, text = len(image_tokens), model.config.text
    room = max(1, text.context_length - 2)
    max_tokens = min(config.max_tokens, room)
    sampling = config.temperature > 0
    if num_captions < 1:
        raise ConfigError(f"num_captions {num_captions} must be at least 1")
    if not sampling and num_captions > config.beams:
        raise ConfigError(f"num_captions {num_captions} is more than beams {config.beams}; give as many beams")
    prompts = [()] * pictures if prompts is None else prompts
    keys = range(pictures) if keys is None else keys
    if len(prompts) != pictures or len(keys) != pictures:
        raise DataError(f"{pictures} pictures, {len(prompts)} prompts and {len(keys)} keys; give one for each")
    for row, prompt in enumerate(prompts):
        if len(prompt) >= max_tokens:
            repair = "shorten it" if max_tokens == room else "raise max_tokens"
            raise ConfigError(
                f"prompt {row} has {len(prompt)} tokens and max_tokens is {config.max_tokens}, of which "
                f"context_length {text.context_length} holds {room}: nothing can follow it; {repair}"
            )
        if any(not 0 <= token < text.vocab_size or token in special for token in prompt):
            raise DataError(f"prompt {row} holds start, end, padding or ids of another vocabulary: {list(prompt)}")
    if pictures == 0:
        return []
    if sampling:
        groups, beams = num_captions, 1
    else:
        # groups that nothing pushes apart would all find the same
        groups = config.num_beam_groups if config.diversity_penalty > 0 else 1
        beams = config.beams // config.num_beam_groups
    plan = Plan(config, special, max_tokens, groups, beams, [list(prompt) for prompt in prompts], list(keys))
    found = search(model, image_tokens, plan, on_step)
    if not all(found):
        raise DataError(
            f"picture {found.index([])} has no caption: the model's logits aren't finite; restore its weights"
        )
    return [captions[:num_captions] for captions in found]
