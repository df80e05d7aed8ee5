"""What each option of generation does to captions, and what is refused."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from tests.plain_generation import NATS, SPECIAL, Stubborn, opinionated, picture_tokens
from torch import Tensor

from opencoca.config import GenerationConfig
from opencoca.errors import ConfigError, DataError
from opencoca.infer.continuations import BLOCK, _top
from opencoca.infer.generate import generate
from opencoca.infer.hypotheses import Generated
from opencoca.model.coca import CoCa


@pytest.fixture(scope="module")
def model() -> CoCa:
    return opinionated(vocab_size=9, seed=23)


@pytest.fixture(scope="module")
def tokens(model: CoCa) -> Tensor:
    return picture_tokens(model, 8)


def captions(
    model: CoCa, tokens: Tensor, prompts: Any = None, keys: Any = None, num_captions: int = 1, **options: Any
) -> list[list[Generated]]:
    config = GenerationConfig(**{"beams": 1, "max_tokens": 8} | options)
    return generate(model, tokens, SPECIAL, config, prompts, keys, num_captions)


def ids(found: list[list[Generated]]) -> list[list[int]]:
    return [some[0].ids for some in found]


@pytest.mark.parametrize("beams", [1, 3])
def test_min_tokens_holds_the_end_back_and_counts_the_prompt(model: CoCa, tokens: Tensor, beams: int) -> None:
    free, held = (ids(captions(model, tokens, beams=beams, min_tokens=least)) for least in (0, 6))
    assert min(map(len, free)) < 6 <= min(map(len, held))
    prompts = [[5]] * 8
    prompted = ids(captions(model, tokens, prompts, beams=beams, min_tokens=4))
    assert (
        min(map(len, prompted)) == 4 < min(map(len, ids(captions(model, tokens, prompts, beams=beams, min_tokens=6))))
    )


def test_repetition_is_penalised_and_encouraged(model: CoCa, tokens: Tensor) -> None:
    def repetitions(penalty: float) -> int:
        found = ids(captions(model, tokens, repetition_penalty=penalty, min_tokens=8))
        return sum(len(one) - len(set(one)) for one in found)

    assert repetitions(5.0) < repetitions(1.0) < repetitions(0.2)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("beams", [1, 3])
def test_no_ngram_comes_twice(model: CoCa, tokens: Tensor, size: int, beams: int) -> None:
    def most(**options: Any) -> int:
        found = ids(captions(model, tokens, beams=beams, max_tokens=12, min_tokens=6, **options))
        return max(max(Counter(zip(*(one[i:] for i in range(size)), strict=False)).values()) for one in found)

    assert most() > 1 == most(no_repeat_ngram=size)


def test_a_caption_that_may_say_nothing_more_ends(model: CoCa, tokens: Tensor) -> None:
    """Six words, none of them twice: there is no seventh, whatever min_tokens asks for."""
    found = captions(model, tokens, max_tokens=12, min_tokens=12, no_repeat_ngram=1, beams=2)
    assert all(sorted(one) == [1, 3, 5, 6, 7, 8] for one in ids(found))
    assert all(math.isfinite(some[0].log_prob) for some in found)


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"temperature": 1.0}])
def test_prompts_of_any_length_share_a_batch(model: CoCa, tokens: Tensor, options: dict) -> None:
    prompts = [[], [5], [5, 1], [1], [3, 3, 3], [], [8, 7], [6, 1, 5, 6]]
    together = captions(model, tokens, prompts, **options)
    for row, (prompt, found) in enumerate(zip(prompts, together, strict=True)):
        alone = captions(model, tokens[row : row + 1], [prompt], [row], **options)[0]
        assert found[0].ids[: len(prompt)] == prompt and found[0].ids == alone[0].ids
        assert found[0].log_prob == pytest.approx(alone[0].log_prob, abs=NATS)
    assert ids(together) != ids(captions(model, tokens, **options))


def test_what_all_prompts_begin_with_is_read_in_one_step(model: CoCa, tokens: Tensor) -> None:
    lengths: list[int] = []
    hook = model.unimodal.blocks[0].register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    captions(model, tokens[:2], [[1, 3, 5], [5, 6, 7, 8]])
    hook.remove()
    assert lengths[:3] == [4, 1, 1]


def test_an_unlikely_prompt_does_not_lengthen_captions(model: CoCa, tokens: Tensor) -> None:
    """Only what follows it is ranked; its probability belongs to log_prob all the same."""
    model = opinionated(vocab_size=9, seed=23)
    model.head = Stubborn(model.head, {1: -200.0})  # pyright: ignore[reportAttributeAccessIssue]
    found = captions(model, tokens, [[1]] * 8, beams=4, num_captions=4)
    for one in (one for some in found for one in some):
        length = len(one.ids) - 1 + (len(one.ids) < 8)
        assert one.log_prob < -190 and one.score * length > -100
    assert min(map(len, ids(found))) < 8


def test_groups_are_pushed_apart(model: CoCa, tokens: Tensor) -> None:
    def firsts(penalty: float) -> list[int]:
        found = captions(
            model, tokens, beams=3, num_beam_groups=3, diversity_penalty=penalty, num_captions=3, min_tokens=1
        )
        return [len({one.ids[0] for one in some}) for some in found]

    assert set(firsts(0.0)) == {1}
    assert set(firsts(1e3)) == {3}


def test_without_a_push_one_group_is_searched(model: CoCa, tokens: Tensor) -> None:
    alike = captions(model, tokens, beams=6, num_beam_groups=3, num_captions=6)
    assert alike == captions(model, tokens, beams=2, num_captions=2)


def test_a_slight_push_finds_a_caption_once(model: CoCa, tokens: Tensor) -> None:
    found = captions(model, tokens, beams=4, num_beam_groups=4, diversity_penalty=0.01, num_captions=4)
    assert min(map(len, found)) < 4
    for some in found:
        assert len({tuple(one.ids) for one in some}) == len(some)


def test_samples_are_ranked_and_may_be_equal(model: CoCa, tokens: Tensor) -> None:
    found = captions(model, tokens, temperature=1.0, num_captions=40)
    for some in found:
        assert len(some) == 40 and [one.score for one in some] == sorted((one.score for one in some), reverse=True)
        assert 1 < len({tuple(one.ids) for one in some}) < 40
    more = captions(model, tokens, temperature=1.0, num_captions=41)
    for some, others in zip(found, more, strict=True):
        assert not Counter(tuple(one.ids) for one in some) - Counter(tuple(one.ids) for one in others)


def test_keys_and_seeds_draw_different_captions(model: CoCa, tokens: Tensor) -> None:
    same = tokens[:1].expand(8, -1, -1)
    by_default = ids(captions(model, same, temperature=1.5))
    assert by_default == ids(captions(model, same, temperature=1.5, keys=range(8)))
    assert len(set(map(tuple, by_default))) > 4
    assert by_default != ids(captions(model, same, temperature=1.5, seed=1))
    assert len(set(map(tuple, ids(captions(model, same, temperature=1.5, keys=[3] * 8))))) == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_captions": 0}, ConfigError, "num_captions 0 must be at least 1"),
        ({"num_captions": 2}, ConfigError, "num_captions 2 is more than beams 1; give as many beams"),
        ({"num_captions": 4, "beams": 3}, ConfigError, "num_captions 4 is more than beams 3"),
        ({"prompts": [[1], [3] * 8]}, ConfigError, "prompt 1 has 8 tokens and max_tokens is 8.*raise max_tokens"),
        ({"prompts": [[1], [3] * 14], "max_tokens": 99}, ConfigError, "context_length 16 holds 14.*shorten it"),
        ({"prompts": [[1]]}, DataError, "2 pictures, 1 prompts and 2 keys"),
        ({"keys": [1, 2, 3]}, DataError, "2 pictures, 2 prompts and 3 keys"),
        ({"prompts": [[1], [SPECIAL.end]]}, DataError, "prompt 1 holds start, end, padding"),
        ({"prompts": [[9], [1]]}, DataError, "prompt 0 holds .* ids of another vocabulary"),
        ({"prompts": [[-1], [1]]}, DataError, "prompt 0 holds"),
    ],
)
def test_refusals(model: CoCa, tokens: Tensor, arguments: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        captions(model, tokens[:2], **arguments)


def test_weights_that_are_not_numbers_are_named(tokens: Tensor) -> None:
    broken = opinionated(vocab_size=9, seed=23)
    with torch.no_grad():
        broken.multimodal.norm_out.weight[0] = math.nan
    for options in ({"beams": 1}, {"beams": 3}, {"temperature": 1.0}):
        with pytest.raises(DataError, match="picture 0 has no caption: the model's logits aren't finite"):
            captions(broken, tokens, **options)


@pytest.mark.parametrize("vocab", [5, BLOCK, 4 * BLOCK, 20 * BLOCK, 20 * BLOCK + 1])
@pytest.mark.parametrize("count", [1, 4, 12])
def test_the_likeliest_tokens_are_found_block_by_block(vocab: int, count: int) -> None:
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(0))
    logits[1, : vocab // 2] = -math.inf
    logits[2] = logits[2].sort(descending=True).values  # all in one block
    count = min(count, vocab // 2)
    assert torch.equal(_top(logits, count), logits.topk(count, dim=1).indices)
