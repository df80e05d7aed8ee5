"""Single pairs: what can't be read is replaced and counted, one of several captions is drawn, the cache is bounded."""

import collections

import numpy as np
import pytest
import torch
from tests.pairs import TOKENIZER, damaged, drawn_keys, make, noise, same
from tests.support import SIZE_PX, png

from opencoca.config import PixelConfig
from opencoca.data import decode
from opencoca.data.augment import Augmentation
from opencoca.data.loader import PairLoader
from opencoca.data.reader import REPLACEMENTS, kind_of
from opencoca.data.sample import Sample
from opencoca.errors import DataError


@pytest.mark.parametrize(("room", "decoded"), [(0, 30), (4, 10 + 6 + 6), (10, 10), (100, 10)])
def test_the_cache_is_bounded_and_saves_decoding(monkeypatch, room, decoded):
    plain = make(noise(10), batch_size=10)
    expected = [plain.batch(10 * epoch) for epoch in range(3)]
    calls, opened = [], decode.open_picture
    monkeypatch.setattr(decode, "open_picture", lambda *args, **kw: calls.append(1) or opened(*args, **kw))
    loader = make(noise(10), batch_size=10, cache_bytes=room * 3 * SIZE_PX**2 + 5)
    assert all(same(loader.batch(10 * epoch), expected[epoch]) for epoch in range(3))
    assert sum(picture.nbytes for picture in loader._reader._cache.values()) <= room * 3 * SIZE_PX**2
    assert len(calls) == decoded


def test_nothing_is_kept_where_each_epoch_reads_another_part():
    loader = make(noise(10), batch_size=10, augmentation=Augmentation(crop_scale=(0.5, 1.0)))
    assert not torch.equal(loader.batch(0).pixels, loader.batch(10).pixels) and not loader._reader._cache


# --- what can't be read -----------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_replaced_and_counted():
    items = damaged(noise(20), 3, 8, 9)
    loader = make(items, 1, batch_size=10)
    for position in range(0, 60, 10):
        batch = loader.batch(position)
        assert not {"k003", "k008", "k009"} & set(batch.keys) and len(batch.keys) == 10
        order = drawn_keys(loader, position, 10)
        good = [key for key in order if key not in ("k003", "k008", "k009")]
        assert not collections.Counter(good) - collections.Counter(batch.keys)
    assert loader.counts.total() >= 9 and loader.drawn == 60 + loader.counts.total()
    assert set(loader.counts) == {"is truncated or damaged"}
    assert sorted(key for key, _ in loader.skipped) == ["k003", "k008", "k009"]
    assert all("truncated" in reason and "\n" not in reason for _, reason in loader.skipped)


def test_a_replacement_depends_on_the_sample_alone():
    items = damaged(noise(20), 3)
    whole = make(items, 1, batch_size=20)
    missing = [k for k in drawn_keys(whole, 0, 20)]
    place = missing.index("k003")
    expected = collections.Counter(whole.batch(0).keys) - collections.Counter(k for k in missing if k != "k003")
    for batch_size, world in ((1, 1), (4, 2), (10, 1)):
        first = place // batch_size * batch_size
        ranks = [make(items, 1, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
        keys = [key for loader in ranks for key in loader.batch(first).keys]
        order = [key for key in drawn_keys(whole, first, batch_size) if key != "k003"]
        assert collections.Counter(keys) - collections.Counter(order) == expected
    assert make(items, 1, batch_size=1).batch(place).keys != make(items, 1, batch_size=1).batch(place + 20).keys


def test_where_nothing_can_be_read_the_loader_gives_up():
    loader = make(damaged(noise(5), *range(5)), batch_size=2)
    with pytest.raises(DataError, match=rf"neither k00\d nor {REPLACEMENTS} samples .* can be read .*truncated"):
        loader.batch(0)


def test_reasons_are_counted_by_kind():
    reason = (
        "the picture of a b/1.jpg has 9000 x 9000 pixels, more than 64,000,000; make it smaller or raise max_pixels"
    )
    assert kind_of(reason, "a b/1.jpg") == "has # x # pixels, more than #"
    assert kind_of(reason, "0/a b/1.jpg") == kind_of(reason, "a b/1.jpg")
    assert kind_of("the picture of x is truncated or damaged (3 bytes); copy", "x") == "is truncated or damaged"
    assert kind_of("the picture of x: /data/y.png does not exist; check the path", "x") == "a file does not exist"
    assert kind_of("a sample of its own", "a") == "a sample of its own"


# --- captions ---------------------------------------------------------------------------------------------------


def several() -> list[Sample]:
    return [item._replace(caption="red", more_captions=("green", "blue", "black")) for item in noise(40)]


def captions(loader: PairLoader, position: int) -> dict[str, str]:
    batch = loader.batch(position)
    return {key: TOKENIZER.decode(row) for key, row in zip(batch.keys, batch.ids, strict=True)}


def test_one_of_several_captions_is_drawn_each_epoch():
    loader = make(several(), 2, batch_size=40)
    epochs = [captions(loader, 40 * epoch) for epoch in range(5)]
    assert epochs[0] == captions(make(several(), 2, batch_size=40, cache_bytes=0), 0)
    assert captions(make(several(), 2, batch_size=1), 0).items() <= epochs[0].items()
    counts = collections.Counter(caption for epoch in epochs for caption in epoch.values())
    assert set(counts) == {"red", "green", "blue", "black"} and all(25 < count < 75 for count in counts.values())
    assert sum(epochs[0][key] == epochs[1][key] for key in epochs[0]) < 20


@pytest.mark.parametrize(("share", "expected"), [(0.0, 25), (0.6, 70), (1.0, 100)])
def test_the_first_caption_may_be_drawn_more_often(share, expected):
    loader = make(several(), 2, batch_size=40, first_caption=share)
    counts = collections.Counter(caption for epoch in range(10) for caption in captions(loader, 40 * epoch).values())
    assert counts["red"] / 400 == pytest.approx(expected / 100, abs=0.07)
    others = [counts[caption] / 400 for caption in ("green", "blue", "black")]
    assert others == pytest.approx([(100 - expected) / 300] * 3, abs=0.05)


def test_the_first_caption_may_be_asked_for():
    assert set(captions(make(several(), 2, batch_size=40, captions="first"), 40).values()) == {"red"}


def test_pictures_of_any_shape_are_made_to_fit():
    tall = Sample("tall", png(np.zeros((90, 20, 3), np.uint8)), "black bar", {})
    batch = make([tall, *noise(1, size_px=50)], batch_size=2, pixels=PixelConfig(fit="pad")).batch(0)
    assert batch.pixels.shape == (2, 3, SIZE_PX, SIZE_PX)
    assert (batch.pixels[batch.keys.index("tall")] == 255).any()
