"""Likelihoods: against the training loss's own path, and over all texts there are."""

import itertools
import math

import pytest
import torch
from tests.plain_generation import NATS, SPECIAL, opinionated, picture_tokens

from opencoca.errors import DataError
from opencoca.infer import score as module
from opencoca.infer.score import score
from opencoca.losses import captioning_loss
from opencoca.model.coca import CoCa

TEXTS = [[0, 5, 1, 2], [0, 2], [0, 3, 3, 3, 8, 1, 2], [0, 7]]


@pytest.fixture(scope="module")
def model() -> CoCa:
    return opinionated(vocab_size=9, seed=23)


def test_likelihoods_are_the_captioning_loss(model: CoCa) -> None:
    """Teacher-forced, padded, without a cache."""
    tokens = picture_tokens(model, len(TEXTS))
    found = score(model, tokens, TEXTS, SPECIAL)
    for row, ids, log_p in zip(tokens, TEXTS, found, strict=True):
        ids_1T = torch.tensor([[*ids, SPECIAL.pad]])
        text = model.encode_text(ids_1T, torch.arange(ids_1T.shape[1])[None] < len(ids))
        decoded = model.decode(row[None], text.tokens)
        loss = captioning_loss(model.caption_logits(decoded[:, : len(ids) - 1]), ids_1T[:, 1:-1])
        assert log_p == pytest.approx(-loss.item() * (len(ids) - 1), abs=NATS)


def test_probabilities_of_all_texts_add_up_to_one(model: CoCa) -> None:
    """Whatever two ids follow start; with several texts of one picture beside each other."""
    tokens = picture_tokens(model, 2)
    texts = [[SPECIAL.start, *pair] for pair in itertools.product(range(9), repeat=2)]
    found = score(model, tokens, texts * 2, SPECIAL)
    for log_p in (found[:81], found[81:]):
        assert math.fsum(map(math.exp, log_p)) == pytest.approx(1, abs=1e-12)
    assert found[:81] != found[81:]
    assert found[81:] == pytest.approx(score(model, tokens[1:], texts, SPECIAL), abs=NATS)


def test_the_size_of_a_chunk_of_logits_does_not_matter(model: CoCa, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = picture_tokens(model, len(TEXTS))
    expected = score(model, tokens, TEXTS, SPECIAL)
    monkeypatch.setattr(module, "LOGIT_ROWS", 3)
    assert score(model, tokens, TEXTS, SPECIAL) == pytest.approx(expected, abs=NATS)


def test_nothing_to_score(model: CoCa) -> None:
    tokens = picture_tokens(model, 2)
    assert score(model, tokens, [[SPECIAL.start], [SPECIAL.start]], SPECIAL) == [0.0, 0.0]
    assert score(model, tokens[:0], [], SPECIAL) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 2]], "1 texts can't be shared out among 2 pictures"),
        ([[0, 2]] * 3, "3 texts can't be shared out among 2 pictures"),
        ([], "0 texts can't be shared out among 2 pictures"),
        ([[0, 2], [5, 2]], "text 1 doesn't begin with start, id 0"),
        ([[0, 2], []], "text 1 doesn't begin with start, id 0"),
        ([[0, 9, 2], [0, 2]], "text 0 holds ids outside of 0 to 8"),
        ([[0, -1, 2], [0, 2]], "text 0 holds ids outside of 0 to 8"),
        ([[0] + [1] * 16, [0, 2]], "text 0 has 17 ids, context_length is 16"),
    ],
)
def test_refusals(model: CoCa, ids: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(model, picture_tokens(model, 2), ids, SPECIAL)
