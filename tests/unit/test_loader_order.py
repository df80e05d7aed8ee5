"""The order of samples: a function of seed and position alone, that loses none, in windows and in mixtures too."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pairs import TOKENIZER, drawn_keys, make, noise, same
from tests.support import MemorySource, samples, tiny_config, write_shards

from opencoca.data.augment import Augmentation
from opencoca.data.loader import PairLoader
from opencoca.data.mixture import Mixture, open_training_source, parse_mixture
from opencoca.data.order import BLOCK, EpochOrder, MixtureOrder, shares
from opencoca.data.shards import ShardReader
from opencoca.data.sources import captions_of
from opencoca.errors import ConfigError, DataError


def test_any_position_gives_the_batch_that_walking_there_gives(tmp_path):
    source = ShardReader(write_shards(tmp_path), "train")
    options = {"augmentation": Augmentation(max_shift_px=2), "text_buckets": 3, "batch_size": 7}
    walking = make(source, 5, **options).batches()
    walked = [next(walking) for _ in range(20)]
    assert [position for _, position in walked] == list(range(7, 141, 7))
    for i in (19, 0, 8, 9, 3):  # 60 pairs: the batch from 56 spans two epochs
        fresh = make(ShardReader(tmp_path, "train"), 5, **options)
        assert same(fresh.batch(7 * i), walked[i][0])
        batch, position = next(fresh.batches(7 * i))
        assert same(batch, walked[i][0]) and position == 7 * (i + 1)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (10, 4), (5, 8), (1, 3), (6, 6)])
def test_every_pair_comes_once_an_epoch(count, batch_size):
    loader = make(noise(count), batch_size=batch_size)
    batches = loader.batches()
    drawn = [sorted(next(batches)[0].keys) for _ in range(math.lcm(count, batch_size) // batch_size + 3)]
    order = drawn_keys(loader, 0, len(drawn) * batch_size)
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == sorted(loader.source.keys)
    assert drawn == [sorted(order[i * batch_size : (i + 1) * batch_size]) for i in range(len(drawn))]


def test_seeds_and_epochs_differ_in_order():
    source = MemorySource(noise(12))
    orders = {tuple(drawn_keys(make(source, seed), epoch * 12, 12)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert drawn_keys(make(source, 1), 0, 12) == drawn_keys(make(source, 1), 0, 12)


@pytest.mark.parametrize("clump_size", [2, 5])
def test_clumps_of_alike_pairs_lose_none_and_stay_side_by_side(clump_size):
    items = [item._replace(attributes={"concept": item.caption.split()[0]}) for item in samples()]
    loader, epochs = make(items, 1, batch_size=72, clump_size=clump_size), []
    for epoch in (0, 1):
        order = drawn_keys(loader, 72 * epoch, 72)
        assert sorted(order) == sorted(loader.batch(72 * epoch).keys) == sorted(item.key for item in items)
        colours = [key.split("-")[0] for key in order]
        runs = [len(list(run)) for _, run in itertools.groupby(colours)]
        assert len(runs) <= 6 * math.ceil(12 / clump_size)  # 6 colours, each with 12 pairs
        epochs.append(order)
    assert epochs[0] != epochs[1]


# --- windows of shards ------------------------------------------------------------------------------------------


def ranges(*sizes: int) -> list[range]:
    starts = [0, *itertools.accumulate(sizes)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.integers(1, 9),
    st.integers(-5, 5),
    st.integers(0, 3),
)
def test_windows_lose_nothing(sizes, window, seed, epoch):
    count = sum(sizes)
    epochs, indices = EpochOrder(seed, count, ranges(*sizes), window).at(np.arange(count) + count * epoch)
    assert sorted(indices) == list(range(count)) and set(epochs) == {epoch}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 9))
def test_each_window_holds_whole_shards(sizes, window):
    count = sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[
        EpochOrder(1, count, ranges(*sizes), window).at(np.arange(count))[1]
    ]
    place = 0
    while place < count:
        members = list(dict.fromkeys(shard_of[place:].tolist()))[:window]
        length = sum(sizes[shard] for shard in members)
        assert set(shard_of[place : place + length].tolist()) == set(members)
        place += length


def test_any_place_in_windows_is_found_without_those_before():
    shards = ranges(5, 3, 8, 1, 7, 6)
    walked = EpochOrder(3, 30, shards, 2).at(np.arange(90))
    for place in (89, 0, 31, 30, 59, 60, 12):
        epochs, indices = EpochOrder(3, 30, shards, 2).at(np.array([place]))
        assert (epochs[0], indices[0]) == (walked[0][place], walked[1][place])
    assert not np.array_equal(walked[1][:30], walked[1][30:60])


def test_windows_shuffle_shards_and_samples():
    shards = ranges(*[10] * 20)
    order = EpochOrder(0, 200, shards, 4).at(np.arange(200))[1]
    windows = [set((order[i : i + 40] // 10).tolist()) for i in range(0, 200, 40)]
    assert all(len(window) == 4 for window in windows) and len(set.union(*windows)) == 20
    assert windows != [set(range(i, i + 4)) for i in range(0, 20, 4)]
    assert all(len(set((order[i : i + 40] // 10)[:10].tolist())) > 1 for i in range(0, 200, 40))


def test_shards_that_do_not_add_up_are_refused():
    with pytest.raises(DataError, match="hold 7 samples, not its 8"):
        EpochOrder(0, 8, ranges(3, 4), 1)


# --- mixtures ---------------------------------------------------------------------------------------------------


def mixed(*weights: float, seed: int = 0) -> MixtureOrder:
    return MixtureOrder(seed, [EpochOrder(seed + i, 7 + 4 * i) for i in range(len(weights))], weights)


def sources_at(order: MixtureOrder, positions: np.ndarray) -> np.ndarray:
    return np.searchsorted(order.offsets, order.at(positions)[1], side="right") - 1


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=5), st.integers(0, 3 * BLOCK), st.integers(1, 700))
def test_any_run_of_a_mixture_holds_its_shares(weights, first, length):
    """Measured: within 3 samples of the exact share, which differs from the asked one by at most 1 in BLOCK."""
    found = sources_at(mixed(*weights), np.arange(first, first + length))
    for source, weight in enumerate(weights):
        share = weight / sum(weights) * length
        assert abs((found == source).sum() - share) <= 2 + len(weights) + length / BLOCK


def test_each_source_of_a_mixture_comes_in_its_own_order():
    order = mixed(1, 3)
    positions = np.arange(2 * BLOCK + 100)
    epochs, indices = order.at(positions)
    sources = sources_at(order, positions)
    for number, own in enumerate(order.orders):
        here = sources == number
        expected = own.at(np.arange(here.sum()))
        assert np.array_equal(epochs[here], expected[0])
        assert np.array_equal(indices[here] - order.offsets[number], expected[1])


@pytest.mark.parametrize("place", [0, 1, BLOCK - 1, BLOCK, 10 * BLOCK + 17, 10**12])
def test_a_mixture_finds_any_position_at_once(place):
    walked = mixed(2, 1, 1).at(np.arange(place, place + 5))
    for i in range(5):
        alone = mixed(2, 1, 1).at(np.array([place + i]))
        assert (alone[0][0], alone[1][0]) == (walked[0][i], walked[1][i])
    assert not np.array_equal(walked[1], mixed(2, 1, 1, seed=1).at(np.arange(place, place + 5))[1])


def test_shares_are_exact_and_none_is_lost():
    assert shares([1, 1], 4096).tolist() == [2048, 2048] and shares([1, 1, 1], 10).sum() == 10
    with pytest.raises(DataError, match=r"weight 1e-06 of a mixture is below 1/4096"):
        shares([1, 1e-6], 4096)


class Described(MemorySource):
    skipped = (("gone", "it has no picture"),)
    ignored = 0

    @property
    def captions(self) -> list[str]:
        return [item.caption for item in self.items]

    @property
    def fingerprint(self) -> str:
        return "-".join(self.keys)

    @property
    def shards(self) -> list[range]:
        return [range(0, 2), range(2, len(self))]


def test_a_mixture_of_sources_keeps_them_apart():
    items = noise(5)
    other = Described([item._replace(caption="x") for item in items])
    items[1] = items[1]._replace(attributes={"picture": "p"})
    source = Mixture([Described(items[:3]), other], [1, 1])
    assert len(source) == 8 and list(source.keys) == [f"0/k00{i}" for i in range(3)] + [f"1/k00{i}" for i in range(5)]
    assert [source[i].key for i in range(8)] == list(source.keys) and source.keys[-1:] == ["1/k004"]
    assert source[1].attributes == {"picture": "p"} and source[4].caption == source.captions[4] == "x"
    assert source.skipped[0][0] == "0/gone" and source.shards == [range(0, 2), range(2, 3), range(3, 5), range(5, 8)]
    assert source.fingerprint != Mixture([other, Described(items[:3])], [1, 1]).fingerprint
    with pytest.raises(IndexError):
        source[8]
    loader = make(source, batch_size=64)
    drawn = [key.split("/")[0] for key in loader.batch(0).keys]
    assert abs(drawn.count("0") - 32) <= 2
    assert len(set(map(tuple, loader.batch(0).labels.tolist()))) == 8


def test_a_caption_has_one_label_on_every_rank():
    """However long the longest caption of its rows is: by labels ranks find the pairs that are no negatives."""
    captions = ("a", "a", "a b", "a b c d")
    items = [item._replace(caption=caption) for item, caption in zip(noise(4), captions, strict=True)]
    labels: dict[str, set[int]] = {}
    for rank in range(2):
        for batch in (make(items, seed, batch_size=4, rank=rank, world=2).batch(0) for seed in range(8)):
            for key, label in zip(batch.keys, batch.labels[:, 0].tolist(), strict=True):
                labels.setdefault(items[int(key[1:])].caption, set()).add(label)
    assert len(labels) == 3 and all(len(found) == 1 for found in labels.values())


def test_a_configuration_mixes_what_it_names(tmp_path):
    """Two folders of shards, 3 to 1; one rank of two reads its half, by windows of shards."""
    paths = [write_shards(tmp_path / name) for name in ("a", "b=c")]
    mixture = (f"{paths[0]}=3", f"{paths[1]}=1")
    data = {"mixture": mixture, "batch_size": 32, "shuffle_window": 2, "crop_scale": (0.5, 1.0), "flip": True}
    config = tiny_config(tmp_path, data=data)
    source = open_training_source(config.data)
    assert len(source) == 120 and source.weights == [3, 1] and len(list(captions_of(source))) == 120
    ranks = [PairLoader.from_config(config, source, TOKENIZER, rank, 2).batch(64) for rank in range(2)]
    keys = [key for batch in ranks for key in batch.keys]
    assert len(keys) == 32 and abs(sum(key.startswith("0/") for key in keys) - 24) <= 2
    alone = open_training_source(dataclasses.replace(config.data, folder=str(paths[1]), mixture=()))
    assert len(alone) == 60 and alone.fingerprint != source.fingerprint


@pytest.mark.parametrize("entry", ["a", "a=", "=1", "a=0", "a=-1", "a=b", "a=inf"])
def test_a_mixture_is_paths_with_weights(entry):
    assert parse_mixture(["x=y/z=0.5", "b=1"]) == [("x=y/z", 0.5), ("b", 1.0)]
    with pytest.raises(ConfigError, match="isn't PATH=WEIGHT"):
        parse_mixture([entry])
