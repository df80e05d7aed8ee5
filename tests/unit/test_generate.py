"""Caption generation, against decoding without a cache and against enumerating every caption there is."""

import math
from collections.abc import Iterator

import pytest
import torch
from tests.plain_generation import (
    NATS,
    SPECIAL,
    Stubborn,
    assert_same,
    likelihood,
    next_log_probs,
    opinionated,
    picture_tokens,
    plain_greedy,
    plain_search,
)
from torch import Tensor

from opencoca import recipes
from opencoca.config import GenerationConfig
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import generate
from opencoca.infer.hypotheses import Generated
from opencoca.model.coca import CoCa
from opencoca.model.init import build


def n_best(model, tokens, special, max_tokens, beams, length_penalty=1.0, **options) -> list[list[Generated]]:
    config = GenerationConfig(max_tokens=max_tokens, beams=beams, length_penalty=length_penalty, **options)
    return generate(model, tokens, special, config, num_captions=beams)


def beam_search(*arguments, **options) -> list[Generated]:
    """The best caption of each picture."""
    return [captions[0] for captions in n_best(*arguments, **options)]


def greedy(model, tokens, special, max_tokens, **options) -> list[Generated]:
    return beam_search(model, tokens, special, max_tokens, beams=1, **options)


def wordy(model: CoCa) -> CoCa:
    """The model without a probability for pad and start, so that those of all captions add up to 1."""
    model.head = Stubborn(model.head, {SPECIAL.pad: -1e4, SPECIAL.start: -1e4})  # pyright: ignore[reportAttributeAccessIssue]
    return model


@pytest.fixture(scope="module")
def model() -> CoCa:
    return opinionated(vocab_size=9, seed=23)


@pytest.fixture(scope="module")
def tokens(model: CoCa) -> Tensor:
    return picture_tokens(model, 8)


def plain(model: CoCa, tokens_QD: Tensor, max_tokens: int, beams: int, penalty: float) -> Generated:
    config = GenerationConfig(max_tokens=max_tokens, beams=beams, length_penalty=penalty)
    return plain_search(model, tokens_QD, config)[0]


def caption_of(ids, log_prob: float) -> Generated:
    return Generated(list(ids), log_prob, math.nan)


def test_greedy_equals_argmax_without_a_cache(model: CoCa, tokens: Tensor) -> None:
    captions = greedy(model, tokens, SPECIAL, max_tokens=8)
    assert_same(captions, [plain_greedy(model, row, 8) for row in tokens])
    lengths = {len(caption.ids) for caption in captions}
    assert len(lengths) >= 5 and 8 in lengths, f"{lengths}: captions of one length would test little"
    assert len({tuple(caption.ids) for caption in captions}) >= 5


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_gives_what_each_picture_gives_alone(model: CoCa, tokens: Tensor, beams: int) -> None:
    """Pictures that are done leave the batch at different steps, and the others don't notice."""

    def run(rows: Tensor) -> list[Generated]:
        return beam_search(model, rows, SPECIAL, 8, beams)

    together = run(tokens)
    assert_same(together, [run(tokens[i : i + 1])[0] for i in range(len(tokens))])
    assert_same(list(reversed(together)), run(tokens.flip(0)))


@pytest.mark.parametrize("beams", [1, 2])
def test_finished_captions_leave_the_computation(model: CoCa, tokens: Tensor, beams: int) -> None:
    rows: list[int] = []
    hook = model.unimodal.blocks[0].register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    captions = beam_search(model, tokens, SPECIAL, 8, beams)
    hook.remove()
    assert rows[:2] == [len(tokens), len(tokens) * beams], "beams have one beginning"
    assert rows[1:] == sorted(rows[1:], reverse=True) and rows[-1] < rows[1]
    if beams == 1:
        assert rows == [sum(len(caption.ids) >= t for caption in captions) for t in range(8)]


def test_generation_stops_when_every_caption_has_ended(model: CoCa, tokens: Tensor) -> None:
    captions = greedy(model, tokens, SPECIAL, 8)
    short = tokens[[i for i, caption in enumerate(captions) if len(caption.ids) < 8]]
    steps: list[int] = []
    hook = model.unimodal.blocks[0].register_forward_hook(lambda *_: steps.append(1))
    longest = max(len(caption.ids) for caption in greedy(model, short, SPECIAL, 8))
    hook.remove()
    assert len(steps) == longest + 1 < 8


def test_log_prob_is_the_teacher_forced_likelihood(model: CoCa, tokens: Tensor) -> None:
    for beams in (1, 2, 4):
        captions = beam_search(model, tokens, SPECIAL, 6, beams)
        for row, caption in zip(tokens, captions, strict=True):
            expected = likelihood(model, row, caption.ids, ended=len(caption.ids) < 6)
            assert caption.log_prob == pytest.approx(expected, abs=NATS)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_one_beam_is_greedy(model: CoCa, tokens: Tensor, penalty: float) -> None:
    for max_tokens in (1, 2, 8):
        captions = beam_search(model, tokens, SPECIAL, max_tokens, beams=1, length_penalty=penalty)
        assert_same(captions, [plain_greedy(model, row, max_tokens) for row in tokens])


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beam_search_equals_a_plain_one(model: CoCa, tokens: Tensor, beams: int, penalty: float) -> None:
    captions = beam_search(model, tokens, SPECIAL, 6, beams, penalty)
    assert_same(captions, [plain(model, row, 6, beams, penalty) for row in tokens])
    assert [c.ids for c in captions] != [c.ids for c in greedy(model, tokens, SPECIAL, 6)]


def every_caption(model: CoCa, tokens_QD: Tensor, max_tokens: int) -> Iterator[tuple[list[int], float, bool]]:
    """All (ids, log-probability, whether it ended) that there are."""
    prefixes: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(max_tokens):
        log_p_XV = next_log_probs(model, tokens_QD, [ids for ids, _ in prefixes])[:, -1].tolist()
        longer = []
        for (ids, total), log_p_V in zip(prefixes, log_p_XV, strict=True):
            yield [*ids], total + log_p_V[SPECIAL.end], True
            longer += [((*ids, token), total + p) for token, p in enumerate(log_p_V) if token not in SPECIAL]
        prefixes = longer
    yield from (([*ids], total, False) for ids, total in prefixes)


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_enough_beams_find_the_best_of_all_captions(max_tokens: int) -> None:
    """Three words, up to three in a caption: 1 + 3 + 9 that end and 27 that are cut off, 64 beams."""
    model = wordy(opinionated(vocab_size=6, seed=4))
    tokens = picture_tokens(model, 6)
    everything = [list(every_caption(model, row, max_tokens)) for row in tokens]
    for captions in everything:
        assert len(captions) == {1: 1 + 3, 3: 1 + 3 + 9 + 27}[max_tokens]
        assert sum(math.exp(log_prob) for _, log_prob, _ in captions) == pytest.approx(1.0, abs=1e-9)
    for penalty in (0.0, 1.0, 2.0):
        found = beam_search(model, tokens, SPECIAL, max_tokens, beams=64, length_penalty=penalty)
        best = [
            max(captions, key=lambda caption, p=penalty: caption[1] / (len(caption[0]) + caption[2]) ** p)
            for captions in everything
        ]
        assert_same(found, [caption_of(ids, log_prob) for ids, log_prob, _ in best])


def test_enough_beams_list_every_caption_in_order() -> None:
    """All 40 of them, each once: beams without a hypothesis are no captions, of probability 0 or otherwise."""
    model = wordy(opinionated(vocab_size=6, seed=4))
    tokens = picture_tokens(model, 3)
    for row, found in zip(tokens, n_best(model, tokens, SPECIAL, 3, beams=64, length_penalty=0.7), strict=True):
        ranked = sorted(every_caption(model, row, 3), key=lambda c: c[1] / (len(c[0]) + c[2]) ** 0.7, reverse=True)
        assert_same(found, [caption_of(ids, log_prob) for ids, log_prob, _ in ranked])


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_best_of_the_list_is_what_beam_search_returns(model: CoCa, tokens: Tensor, beams: int) -> None:
    lists = n_best(model, tokens, SPECIAL, 6, beams)
    assert_same([captions[0] for captions in lists], beam_search(model, tokens, SPECIAL, 6, beams))
    for row, captions in zip(tokens, lists, strict=True):
        assert 1 <= len(captions) <= beams
        assert len({tuple(caption.ids) for caption in captions}) == len(captions)
        scores = [caption.log_prob / (len(caption.ids) + (len(caption.ids) < 6)) for caption in captions]
        assert scores == sorted(scores, reverse=True)
        for caption in captions:
            expected = likelihood(model, row, caption.ids, ended=len(caption.ids) < 6)
            assert caption.log_prob == pytest.approx(expected, abs=NATS)


def test_beams_that_have_nothing_to_say_end_nothing() -> None:
    """With one word, one beam of 12 is alive; if the ends of the others counted, the cut-off caption would be lost."""
    special = SpecialIds(pad=3, start=0, end=2)
    model = opinionated(vocab_size=4, seed=4)
    logits = {1: 0.0, special.end: -10.0, special.pad: -1e4, special.start: -1e4}
    model.head = Stubborn(model.head, logits)  # pyright: ignore[reportAttributeAccessIssue]
    captions = beam_search(model, picture_tokens(model, 2), special, 10, beams=12, length_penalty=0.0)
    assert [caption.ids for caption in captions] == [[1] * 10] * 2
    assert captions[0].log_prob == pytest.approx(-10 * math.log1p(math.exp(-10)), abs=NATS)


def test_captions_that_ended_come_before_ones_that_were_cut_off() -> None:
    """With as many ended captions as beams, a hypothesis that max_tokens cut off isn't returned, whatever its score."""
    model = opinionated(vocab_size=9, seed=3)
    tokens = picture_tokens(model, 8)
    captions = beam_search(model, tokens, SPECIAL, 4, beams=2)
    assert_same(captions, [plain(model, row, 4, 2, 1.0) for row in tokens])
    by_greed = greedy(model, tokens, SPECIAL, 4)
    passed_over = [
        caption
        for caption, rival in zip(captions, by_greed, strict=True)
        if len(rival.ids) == 4 and rival.log_prob > caption.log_prob + 0.1
    ]
    assert len(passed_over) >= 2 and all(len(caption.ids) < 4 for caption in passed_over)


def test_more_beams_find_what_greedy_misses(model: CoCa, tokens: Tensor) -> None:
    by_greed = greedy(model, tokens, SPECIAL, 6)
    by_beams = beam_search(model, tokens, SPECIAL, 6, beams=60, length_penalty=0.0)
    gains = [beam.log_prob - greed.log_prob for beam, greed in zip(by_beams, by_greed, strict=True)]
    assert min(gains) > -NATS and max(gains) > 0.1


def test_the_length_penalty_prefers_longer_captions(model: CoCa, tokens: Tensor) -> None:
    short, long = (
        sum(len(caption.ids) for caption in beam_search(model, tokens, SPECIAL, 6, 4, penalty))
        for penalty in (0.0, 2.0)
    )
    assert short < long


def stubborn(**logits: float) -> CoCa:
    model = opinionated(vocab_size=9, seed=23)
    model.head = Stubborn(model.head, {getattr(SPECIAL, name): value for name, value in logits.items()})  # pyright: ignore
    return model


@pytest.mark.parametrize("beams", [1, 4])
def test_pad_and_start_are_never_said(tokens: Tensor, beams: int) -> None:
    model = stubborn(pad=50.0, start=60.0)
    captions = beam_search(model, tokens, SPECIAL, 8, beams)
    said = {token for caption in captions for token in caption.ids}
    assert said and not said & set(SPECIAL)
    for row, caption in zip(tokens, captions, strict=True):
        expected = likelihood(model, row, caption.ids, ended=len(caption.ids) < 8)
        assert caption.log_prob == pytest.approx(expected, abs=NATS) and expected < -30, "nor share the others theirs"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("max_tokens", "said"), [(1, 1), (5, 5), (14, 14), (1000, 14)])
def test_a_caption_without_end_is_cut_at_max_tokens_or_at_the_context(
    tokens: Tensor, max_tokens: int, said: int, beams: int
) -> None:
    """The context is 16: start, 14 words, end."""
    model = stubborn(end=-1e4)
    few = tokens[:2]
    captions = beam_search(model, few, SPECIAL, max_tokens, beams)
    assert [len(caption.ids) for caption in captions] == [said, said]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_may_be_empty(tokens: Tensor, beams: int) -> None:
    model = stubborn(end=50.0)
    captions = beam_search(model, tokens, SPECIAL, 8, beams)
    assert [caption.ids for caption in captions] == [[]] * 8
    assert all(-1e-9 < caption.log_prob <= 0 for caption in captions)


def test_no_pictures_give_no_captions(model: CoCa, tokens: Tensor) -> None:
    assert greedy(model, tokens[:0], SPECIAL, 4) == []
    assert beam_search(model, tokens[:0], SPECIAL, 4, beams=2) == []


def test_generation_takes_no_gradient_and_changes_nothing(model: CoCa, tokens: Tensor) -> None:
    learning = tokens.clone().requires_grad_()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    first = greedy(model, learning, SPECIAL, 4)
    assert learning.grad is None and torch.equal(learning, tokens)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert first == greedy(model, tokens, SPECIAL, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_precise_whatever_the_model_is(dtype: torch.dtype) -> None:
    """Where every id is as likely as any other, each costs log 9."""
    model = opinionated(vocab_size=9, seed=1)
    tokens = picture_tokens(model, 2).to(dtype)
    model = model.to(dtype)
    model.head.weight.zero_()
    for beams in (1, 3):
        for caption in beam_search(model, tokens, SPECIAL, 5, beams):
            said = len(caption.ids) + (len(caption.ids) < 5)
            assert caption.log_prob == pytest.approx(-said * math.log(9), rel=1e-6)


def test_special_ids_of_the_tokenizer_work_on_an_untrained_model_in_fp32() -> None:
    model = build(recipes.tiny.tiny().model)
    tokens = model.encode_image(torch.zeros(2, 3, 16, 16)).tokens
    for captions in (greedy(model, tokens, SpecialIds(), 5), beam_search(model, tokens, SpecialIds(), 5, 3)):
        assert captions[0] == captions[1] and all(0 < len(caption.ids) <= 5 for caption in captions)
