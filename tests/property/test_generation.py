"""Laws of generation over random options: the documented search, batches, prompts, seeds, and `score`."""

import dataclasses
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plain_generation import NATS, SPECIAL, opinionated, picture_tokens, plain_greedy, plain_search
from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.infer.generate import generate
from opencoca.infer.hypotheses import Generated
from opencoca.infer.score import score
from opencoca.model.coca import CoCa

WORDS = [token for token in range(9) if token not in SPECIAL]
PICTURES = 4
few = settings(max_examples=25, deadline=None)

prompts = st.lists(st.lists(st.sampled_from(WORDS), max_size=3), min_size=PICTURES, max_size=PICTURES)


@functools.cache
def model() -> CoCa:
    return opinionated(vocab_size=9, seed=23)


@functools.cache
def tokens() -> Tensor:
    return picture_tokens(model(), PICTURES)


@st.composite
def searches(draw: Any) -> GenerationConfig:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    max_tokens = draw(st.integers(4, 8))
    return GenerationConfig(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        beams=groups * draw(st.integers(1, 3)),
        num_beam_groups=groups,
        diversity_penalty=draw(st.sampled_from([0.0, 0.4, 3.0])),
        length_penalty=draw(st.sampled_from([0.0, 0.7, 1.0, 2.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        no_repeat_ngram=draw(st.sampled_from([0, 0, 1, 2, 3])),
        beam_scores=draw(st.sampled_from(["log_prob", "log_prob", "logit"])),
    )


samplings = st.builds(
    GenerationConfig,
    max_tokens=st.integers(4, 8),
    min_tokens=st.integers(0, 3),
    beams=st.just(1),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 2, 5]),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    no_repeat_ngram=st.sampled_from([0, 2]),
    seed=st.integers(0, 5),
)


def assert_equal(ours: list[Generated], expected: list[Generated]) -> None:
    assert [one.ids for one in ours] == [one.ids for one in expected]
    for one, other in zip(ours, expected, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=NATS)
        assert one.score == pytest.approx(other.score, abs=NATS)


@few
@given(config=searches(), starts=prompts)
def test_generation_with_cache_and_batch_equals_the_plain_search(config: GenerationConfig, starts: list) -> None:
    found = generate(model(), tokens(), SPECIAL, config, starts, num_captions=config.beams)
    for row, prompt, captions in zip(tokens(), starts, found, strict=True):
        assert_equal(captions, plain_search(model(), row, config, prompt))


@few
@given(config=searches() | samplings, starts=prompts, rows=st.permutations(range(PICTURES)), size=st.integers(1, 4))
def test_a_caption_depends_on_its_picture_prompt_and_key_alone(
    config: GenerationConfig, starts: list, rows: list[int], size: int
) -> None:
    keys = [17, 3, 2**40, -1]
    count = config.beams if config.temperature == 0 else 3
    together = generate(model(), tokens(), SPECIAL, config, starts, keys, count)
    rows = rows[:size]
    some = generate(
        model(), tokens()[rows], SPECIAL, config, [starts[row] for row in rows], [keys[row] for row in rows], count
    )
    for row, captions in zip(rows, some, strict=True):
        assert_equal(captions, together[row])


@few
@given(config=searches() | samplings, starts=prompts)
def test_log_prob_is_what_score_says(config: GenerationConfig, starts: list) -> None:
    count = config.beams if config.temperature == 0 else 3
    found = generate(model(), tokens(), SPECIAL, config, starts, num_captions=count)
    for row, prompt, captions in zip(tokens(), starts, found, strict=True):
        assert 1 <= len(captions) <= count
        for one in captions:
            assert one.ids[: len(prompt)] == prompt and len(one.ids) <= config.max_tokens
            ended = [SPECIAL.end] * (len(one.ids) < config.max_tokens)
            expected = score(model(), row[None], [[SPECIAL.start, *one.ids, *ended]], SPECIAL)
            assert one.log_prob == pytest.approx(expected[0], abs=NATS)


@few
@given(length_penalty=st.floats(0, 3), max_tokens=st.integers(1, 8))
def test_one_beam_is_greedy(length_penalty: float, max_tokens: int) -> None:
    config = GenerationConfig(beams=1, length_penalty=length_penalty, max_tokens=max_tokens)
    for row, captions in zip(tokens(), generate(model(), tokens(), SPECIAL, config), strict=True):
        expected = plain_greedy(model(), row, max_tokens)
        assert captions[0].ids == expected.ids
        assert captions[0].log_prob == pytest.approx(expected.log_prob, abs=NATS)


@few
@given(config=samplings, keys=st.lists(st.integers(), min_size=PICTURES, max_size=PICTURES))
def test_sampling_from_one_token_is_greedy(config: GenerationConfig, keys: list[int]) -> None:
    alone = dataclasses.replace(config, top_k=1)
    by_greed = dataclasses.replace(config, temperature=0.0, top_k=0)
    drawn = generate(model(), tokens(), SPECIAL, alone, keys=keys)
    for captions, expected in zip(drawn, generate(model(), tokens(), SPECIAL, by_greed), strict=True):
        assert_equal(captions, expected)
