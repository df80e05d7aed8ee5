"""Caption generation, against decoding without a cache and against enumerating every caption there is."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from opencoca import recipes
from opencoca.data.tokenizer import SpecialIds
from opencoca.infer.generate import Generated, greedy, n_best
from opencoca.model.coca import CoCa
from opencoca.model.init import build

SPECIAL = SpecialIds(pad=4, start=0, end=2)  # not the usual order, so that an id written into the code would show
NATS = 1e-10  # worst measured: 1e-14


def beam_search(*arguments, **options) -> list[Generated]:
    """The best caption of each picture."""
    return [captions[0] for captions in n_best(*arguments, **options)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared between cores, four times over where something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def opinionated(vocab_size: int, seed: int) -> CoCa:
    """A tiny float64 model whose next token depends strongly on the picture and on the tokens before."""
    config = recipes.tiny.tiny().model
    model = build(dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=vocab_size)), seed)
    model = model.double().eval().requires_grad_(False)
    model.head.weight *= 2.5
    model.unimodal.tokens.weight *= 20
    for block in model.multimodal.blocks:
        block.cross_attention.out.weight *= 6
    return model


def picture_tokens(model: CoCa, pictures: int, seed: int = 0) -> Tensor:
    pixels = torch.randn(pictures, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model.encode_image(4 * pixels).tokens


class Stubborn(torch.nn.Module):
    """The head, with some logits overruled: what a model would do that wants these ids, or never wants them."""

    def __init__(self, head: torch.nn.Module, logits: dict[int, float]) -> None:
        super().__init__()
        self.head, self.logits = head, logits

    def forward(self, decoded: Tensor) -> Tensor:
        out = self.head(decoded).clone()
        for token, value in self.logits.items():
            out[..., token] = value
        return out


@pytest.fixture(scope="module")
def model() -> CoCa:
    return opinionated(vocab_size=9, seed=23)


@pytest.fixture(scope="module")
def tokens(model: CoCa) -> Tensor:
    return picture_tokens(model, 8)


def next_log_probs(model: CoCa, tokens_QD: Tensor, ids: tuple[int, ...], special: SpecialIds = SPECIAL) -> Tensor:
    """[V] after start and `ids`, computed without a cache; pad and start have no probability."""
    ids_1T = torch.tensor([[special.start, *ids]])
    text = model.encode_text(ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))
    logits_V = model.caption_logits(model.decode(tokens_QD[None], text.tokens))[0, -1]
    allowed_V = torch.ones(len(logits_V), dtype=torch.bool)
    allowed_V[[special.pad, special.start]] = False
    return torch.where(allowed_V, logits_V, -math.inf).log_softmax(dim=-1)


def likelihood(model: CoCa, tokens_QD: Tensor, ids: list[int], ended: bool) -> float:
    """Teacher-forced log-probability of `ids`, and of the end after them."""
    total, said = 0.0, (*ids, SPECIAL.end) if ended else tuple(ids)
    for t, token in enumerate(said):
        total += next_log_probs(model, tokens_QD, said[:t])[token].item()
    return total


def assert_same(ours: list[Generated], theirs: list[Generated]) -> None:
    assert [caption.ids for caption in ours] == [caption.ids for caption in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=NATS)


def plain_greedy(model: CoCa, tokens_QD: Tensor, max_tokens: int) -> Generated:
    ids: list[int] = []
    total = 0.0
    for _ in range(max_tokens):
        log_p = next_log_probs(model, tokens_QD, tuple(ids))
        total += log_p.max().item()
        if log_p.argmax() == SPECIAL.end:
            break
        ids.append(int(log_p.argmax()))
    return Generated(ids, total)


def test_greedy_equals_argmax_without_a_cache(model: CoCa, tokens: Tensor) -> None:
    captions = greedy(model, tokens, SPECIAL, max_tokens=8)
    assert_same(captions, [plain_greedy(model, row, 8) for row in tokens])
    lengths = {len(caption.ids) for caption in captions}
    assert len(lengths) >= 5 and 8 in lengths, f"{lengths}: captions of one length would test little"
    assert len({tuple(caption.ids) for caption in captions}) >= 5


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_a_batch_gives_what_each_picture_gives_alone(model: CoCa, tokens: Tensor, beams: int) -> None:
    """Pictures that are done leave the batch at different steps, and the others don't notice."""

    def run(rows: Tensor) -> list[Generated]:
        return beam_search(model, rows, SPECIAL, 8, beams) if beams else greedy(model, rows, SPECIAL, 8)

    together = run(tokens)
    assert_same(together, [run(tokens[i : i + 1])[0] for i in range(len(tokens))])
    assert_same(list(reversed(together)), run(tokens.flip(0)))


@pytest.mark.parametrize("beams", [0, 2])
def test_finished_captions_leave_the_computation(model: CoCa, tokens: Tensor, beams: int) -> None:
    rows: list[int] = []
    hook = model.unimodal.blocks[0].register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    captions = beam_search(model, tokens, SPECIAL, 8, 2) if beams else greedy(model, tokens, SPECIAL, 8)
    hook.remove()
    assert rows[0] == len(tokens) * max(1, beams)
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0]
    if not beams:
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
    for beams in (0, 1, 2, 4):
        captions = beam_search(model, tokens, SPECIAL, 6, beams) if beams else greedy(model, tokens, SPECIAL, 6)
        for row, caption in zip(tokens, captions, strict=True):
            expected = likelihood(model, row, caption.ids, ended=len(caption.ids) < 6)
            assert caption.log_prob == pytest.approx(expected, abs=NATS)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_one_beam_is_greedy(model: CoCa, tokens: Tensor, penalty: float) -> None:
    for max_tokens in (1, 2, 8):
        assert_same(
            beam_search(model, tokens, SPECIAL, max_tokens, beams=1, length_penalty=penalty),
            greedy(model, tokens, SPECIAL, max_tokens),
        )


def plain_beam_search(model: CoCa, tokens_QD: Tensor, max_tokens: int, beams: int, penalty: float) -> Generated:
    """The documented search for one picture, on lists, every step from scratch."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, Generated]] = []
    for t in range(1, max_tokens + 1):
        steps = [
            (total + log_p, ids, token)
            for total, ids in live
            for token, log_p in enumerate(next_log_probs(model, tokens_QD, ids).tolist())
        ]
        steps = sorted((step for step in steps if math.isfinite(step[0])), reverse=True)
        finished += [(s / t**penalty, Generated([*ids], s)) for s, ids, token in steps[:beams] if token == SPECIAL.end]
        live = [(total, (*ids, token)) for total, ids, token in steps if token != SPECIAL.end][:beams]
        if len(finished) >= beams:
            worst = sorted(score for score, _ in finished)[-beams]
            if live[0][0] / t**penalty <= worst:
                break
    if len(finished) < beams:
        finished += [(total / len(ids) ** penalty, Generated([*ids], total)) for total, ids in live]
    return max(finished, key=lambda scored: scored[0])[1]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beam_search_equals_a_plain_one(model: CoCa, tokens: Tensor, beams: int, penalty: float) -> None:
    captions = beam_search(model, tokens, SPECIAL, 6, beams, penalty)
    assert_same(captions, [plain_beam_search(model, row, 6, beams, penalty) for row in tokens])
    assert [c.ids for c in captions] != [c.ids for c in greedy(model, tokens, SPECIAL, 6)]


def every_caption(model: CoCa, tokens_QD: Tensor, max_tokens: int) -> Iterator[tuple[list[int], float, bool]]:
    """All (ids, log-probability, whether it ended) that there are."""
    prefixes: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for ids, total in prefixes:
        if len(ids) == max_tokens:
            yield [*ids], total, False
            continue
        log_p = next_log_probs(model, tokens_QD, ids).tolist()
        yield [*ids], total + log_p[SPECIAL.end], True
        prefixes += [((*ids, token), total + p) for token, p in enumerate(log_p) if token not in SPECIAL]


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_enough_beams_find_the_best_of_all_captions(max_tokens: int) -> None:
    """Three words, up to three in a caption: 1 + 3 + 9 that end and 27 that are cut off, 64 beams."""
    model = opinionated(vocab_size=6, seed=4)
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
        assert_same(found, [Generated(ids, log_prob) for ids, log_prob, _ in best])


def test_enough_beams_list_every_caption_in_order() -> None:
    """All 40 of them, each once: beams without a hypothesis are no captions, of probability 0 or otherwise."""
    model = opinionated(vocab_size=6, seed=4)
    tokens = picture_tokens(model, 3)
    for row, found in zip(tokens, n_best(model, tokens, SPECIAL, 3, beams=64, length_penalty=0.7), strict=True):
        ranked = sorted(every_caption(model, row, 3), key=lambda c: c[1] / (len(c[0]) + c[2]) ** 0.7, reverse=True)
        assert_same(found, [Generated(ids, log_prob) for ids, log_prob, _ in ranked])


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
    model.head = Stubborn(model.head, {1: 0.0, special.end: -10.0})  # pyright: ignore[reportAttributeAccessIssue]
    captions = beam_search(model, picture_tokens(model, 2), special, 10, beams=12, length_penalty=0.0)
    assert [caption.ids for caption in captions] == [[1] * 10] * 2
    assert captions[0].log_prob == pytest.approx(-10 * math.log1p(math.exp(-10)), abs=NATS)


def test_captions_that_ended_come_before_ones_that_were_cut_off() -> None:
    """With as many ended captions as beams, a hypothesis that max_tokens cut off isn't returned, whatever its score."""
    model = opinionated(vocab_size=9, seed=3)
    tokens = picture_tokens(model, 8)
    captions = beam_search(model, tokens, SPECIAL, 4, beams=2)
    assert_same(captions, [plain_beam_search(model, row, 4, 2, 1.0) for row in tokens])
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


@pytest.mark.parametrize("beams", [0, 1, 4])
def test_pad_and_start_are_never_said(tokens: Tensor, beams: int) -> None:
    model = stubborn(pad=50.0, start=60.0)
    captions = beam_search(model, tokens, SPECIAL, 8, beams) if beams else greedy(model, tokens, SPECIAL, 8)
    said = {token for caption in captions for token in caption.ids}
    assert said and not said & set(SPECIAL)
    for row, caption in zip(tokens, captions, strict=True):
        expected = likelihood(model, row, caption.ids, ended=len(caption.ids) < 8)
        assert caption.log_prob == pytest.approx(expected, abs=NATS), "the others share the probability"


@pytest.mark.parametrize("beams", [0, 1, 3])
@pytest.mark.parametrize(("max_tokens", "said"), [(1, 1), (5, 5), (14, 14), (1000, 14)])
def test_a_caption_without_end_is_cut_at_max_tokens_or_at_the_context(
    tokens: Tensor, max_tokens: int, said: int, beams: int
) -> None:
    """The context is 16: start, 14 words, end."""
    model = stubborn(end=-1e4)
    few = tokens[:2]
    captions = beam_search(model, few, SPECIAL, max_tokens, beams) if beams else greedy(model, few, SPECIAL, max_tokens)
    assert [len(caption.ids) for caption in captions] == [said, said]


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_a_caption_may_be_empty(tokens: Tensor, beams: int) -> None:
    model = stubborn(end=50.0)
    captions = beam_search(model, tokens, SPECIAL, 8, beams) if beams else greedy(model, tokens, SPECIAL, 8)
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


@pytest.mark.parametrize("beams", [0, 3])
def test_log_probabilities_are_float64_whatever_the_model_is(beams: int) -> None:
    """Where every word is as likely as any other, 14 words cost 14 log 7 and the last digit is right."""
    model = opinionated(vocab_size=9, seed=1)
    tokens = picture_tokens(model, 2).float()
    model = model.float()
    model.head.weight.zero_()
    captions = beam_search(model, tokens, SPECIAL, 5, beams) if beams else greedy(model, tokens, SPECIAL, 5)
    for caption in captions:
        said = len(caption.ids) + (len(caption.ids) < 5)
        assert caption.log_prob == pytest.approx(-said * math.log(7), rel=1e-14)


def test_special_ids_of_the_tokenizer_work_on_an_untrained_model_in_fp32() -> None:
    model = build(recipes.tiny.tiny().model)
    tokens = model.encode_image(torch.zeros(2, 3, 16, 16)).tokens
    for captions in (greedy(model, tokens, SpecialIds(), 5), beam_search(model, tokens, SpecialIds(), 5, 3)):
        assert captions[0] == captions[1] and all(0 < len(caption.ids) <= 5 for caption in captions)
