"""Decoding with the cache: the same logits as without it, and beams that share, branch and leave."""

import pytest
import torch
from tests import plain_model
from tests.plain_model import EXACT, tiny
from torch import Tensor

from opencoca.model.coca import CoCa
from opencoca.model.init import build

model, pixels = plain_model.model, plain_model.pixels


def test_cached_logits_equal_uncached_ones_at_every_position(model: CoCa, pixels: Tensor) -> None:
    ids = torch.randint(3, 320, (3, 16), generator=torch.Generator().manual_seed(0))
    image = model.encode_image(pixels)
    text = model.encode_text(ids, ids > 0)
    expected = model.caption_logits(model.decode(image.tokens, text.tokens))
    cache = model.start_decoding(image.tokens, capacity=16)
    for t in range(16):
        assert cache.length == t
        logits = model.decode_step(ids[:, t : t + 1], cache)
        torch.testing.assert_close(logits, expected[:, t], **EXACT)
    with pytest.raises(ValueError, match="holds 16 positions, 17"):
        model.decode_step(ids[:, :1], cache)


def test_beams_share_their_picture(model: CoCa, pixels: Tensor) -> None:
    ids = torch.randint(3, 320, (6, 4), generator=torch.Generator().manual_seed(0))
    tokens = model.encode_image(pixels).tokens
    shared = model.start_decoding(tokens, capacity=4, beams=2)
    repeated = model.start_decoding(tokens.repeat_interleave(2, dim=0), capacity=4)
    for steps in (ids[:, :1], ids[:, 1:3], ids[:, 3:]):
        logits = model.decode_step(steps, shared)
        torch.testing.assert_close(logits, model.decode_step(steps, repeated), **EXACT)
    assert [len(picture.keys) for picture in shared.pictures] == [3, 3]


def test_beams_branch_change_places_and_leave(model: CoCa, pixels: Tensor) -> None:
    """Three pictures of one row branch into two beams; these change places; a picture leaves; the others go on."""
    drawn = torch.Generator().manual_seed(0)
    tokens = model.encode_image(pixels).tokens
    cache = model.start_decoding(tokens, capacity=7, beams=2)
    pasts: list[list[list[int]]] = [[[]], [[]], [[]]]  # by picture and beam

    def step(positions: int) -> Tensor:
        ids = torch.randint(3, 320, (sum(map(len, pasts)), positions), generator=drawn)
        for past, new in zip((past for beams in pasts for past in beams), ids.tolist(), strict=True):
            past += new
        return model.decode_step(ids, cache)

    def select(parents: list[list[int]]) -> None:
        pasts[:] = [[[*beams[parent]] for parent in some] for beams, some in zip(pasts, parents, strict=True)]
        cache.select_beams(torch.tensor(parents))

    step(2)
    select([[0, 0]] * 3)
    step(2)
    select([[0, 1], [1, 0], [1, 1]])
    step(1)
    order = cache.keep_pictures(torch.tensor([False, True, True])).tolist()
    assert order == [2, 1], "the last moves into the free place"
    pasts[:] = [pasts[picture] for picture in order]
    select([[1, 0], [1, 1]])
    found = step(2).unflatten(0, (2, 2))
    assert cache.length == 7 == len(pasts[0][0])
    for picture, beams, logits in zip(order, pasts, found, strict=True):
        fresh = model.start_decoding(tokens[picture].expand(2, -1, -1), capacity=7)
        torch.testing.assert_close(logits, model.decode_step(torch.tensor(beams), fresh), **EXACT)


def test_a_cache_cannot_be_longer_than_the_positions(model: CoCa, pixels: Tensor) -> None:
    tokens = model.encode_image(pixels).tokens
    with pytest.raises(ValueError, match=r"17 tokens is beyond context_length 16"):
        model.start_decoding(tokens, capacity=17)


def test_decoding_runs_in_bfloat16(pixels: Tensor) -> None:
    coca = build(tiny()).bfloat16()
    tokens = coca.encode_image(pixels.bfloat16()).tokens
    logits = coca.decode_step(torch.tensor([[1], [1], [1]]), coca.start_decoding(tokens, capacity=2))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
