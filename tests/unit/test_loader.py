"""The training loader: its order and augmentation are functions of seed and position, and no pair is lost."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import SIZE_PX, MemorySource, png, samples, tiny_config, tiny_tokenizer, write_shards

from opencoca import recipes
from opencoca.config import PixelConfig
from opencoca.data import loader as module
from opencoca.data.loader import PairLoader, bucket_by_length
from opencoca.data.pixels import normalise
from opencoca.data.shards import Sample, ShardReader
from opencoca.errors import DataError
from opencoca.losses import group_ids
from opencoca.model.init import build
from opencoca.train.task import Pretraining

TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(count: int, size_px: int = SIZE_PX) -> list[Sample]:
    """Pictures without a white pixel, each unlike the others, with captions of equal length."""
    generator = np.random.default_rng(7)
    pictures = generator.integers(0, 250, (count, size_px, size_px, 3), dtype=np.uint8)
    return [Sample(f"k{i:03d}", png(picture), f"c{i:03d}", {}) for i, picture in enumerate(pictures)]


def make(source, seed: int = 0, **options) -> PairLoader:
    source = source if hasattr(source, "keys") else MemorySource(source)
    options = {"batch_size": 4, "image_size_px": SIZE_PX, "context_length": 16, "pixels": PixelConfig()} | options
    return PairLoader(source, TOKENIZER, seed=seed, **options)


def same(a, b) -> bool:
    tensors = all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    return tensors and a.keys == b.keys and a.buckets == b.buckets


def stream(loader: PairLoader, first: int, count: int) -> list[str]:
    """The keys in the order in which they are drawn."""
    return [make_single(loader).batch(i).keys[0] for i in range(first, first + count)]


def make_single(loader: PairLoader) -> PairLoader:
    return make(loader.source, loader.seed, batch_size=1)


# --- patch noise ---


def test_patch_noise_is_drawn_from_seed_epoch_and_sample_alone():
    whole = make(noise(8), 3, batch_size=8, patch_noise=500).batch(0)
    drawn = dict(zip(whole.keys, whole.patch_noise, strict=True))
    for position in range(8):
        alone = make(noise(8), 3, batch_size=1, patch_noise=500).batch(position)
        assert torch.equal(alone.patch_noise[0], drawn[alone.keys[0]])
    later = make(noise(8), 3, batch_size=8, patch_noise=500).batch(8)
    other = make(noise(8), 4, batch_size=8, patch_noise=500).batch(0)
    for batch in (later, other):
        assert not any(torch.equal(row, drawn[key]) for key, row in zip(batch.keys, batch.patch_noise, strict=True))
    assert whole.patch_noise.min() >= 0 and whole.patch_noise.max() < 1
    assert whole.patch_noise.mean().item() == pytest.approx(0.5, abs=0.03)
    assert whole.patch_noise.unique().numel() > 3900


def test_without_patch_noise_there_is_none():
    assert make(noise(4)).batch(0).patch_noise is None


# --- order ------------------------------------------------------------------------------------------------------


def test_any_position_gives_the_batch_that_walking_there_gives(tmp_path):
    source = ShardReader(write_shards(tmp_path), "train")
    options = {"max_shift_px": 2, "text_buckets": 3, "batch_size": 7}
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
    order = stream(loader, 0, len(drawn) * batch_size)
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == sorted(loader.source.keys)
    assert drawn == [sorted(order[i * batch_size : (i + 1) * batch_size]) for i in range(len(drawn))]


def test_seeds_and_epochs_differ_in_order():
    source = MemorySource(noise(12))
    orders = {tuple(stream(make(source, seed), epoch * 12, 12)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert stream(make(source, 1), 0, 12) == stream(make(source, 1), 0, 12)


@pytest.mark.parametrize("clump_size", [2, 5])
def test_clumps_of_alike_pairs_lose_none_and_stay_side_by_side(clump_size):
    items = [item._replace(attributes={"concept": item.caption.split()[0]}) for item in samples()]
    loader, epochs = make(items, 1, batch_size=72, clump_size=clump_size), []
    single = make(items, 1, batch_size=1, clump_size=clump_size)
    for epoch in (0, 1):
        order = [single.batch(72 * epoch + i).keys[0] for i in range(72)]
        assert sorted(order) == sorted(loader.batch(72 * epoch).keys) == sorted(item.key for item in items)
        colours = [key.split("-")[0] for key in order]
        runs = [len(list(run)) for _, run in itertools.groupby(colours)]
        assert len(runs) <= 6 * math.ceil(12 / clump_size)  # 6 colours, each with 12 pairs
        epochs.append(order)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_any_integer_is_a_seed(seed):
    assert make(noise(3), seed, max_shift_px=1).batch(0).pixels.isfinite().all()


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no samples"):
        make([])


def test_the_fingerprint_tells_other_data():
    items = noise(4)
    prints = {make(some).fingerprint for some in (items, items[:3], items[::-1])}
    assert len(prints) == 3 and make(items).fingerprint in prints


# --- what is in a batch -----------------------------------------------------------------------------------------


def test_rows_belong_together_and_stand_by_length():
    items = {item.key: item for item in samples()}
    batch = make(list(items.values()), batch_size=32, text_buckets=3).batch(0)
    lengths = batch.valid.sum(dim=1)
    assert lengths.tolist() == sorted(lengths.tolist()) and len(set(lengths.tolist())) > 2
    assert batch.pixels.dtype == torch.float32 and batch.ids.dtype == torch.int64 and batch.valid.dtype == torch.bool
    for row, key in enumerate(batch.keys):
        assert TOKENIZER.decode(batch.ids[row]) == items[key].caption
        picture = np.asarray(module.open_picture(items[key].picture))
        assert torch.equal(batch.pixels[row], torch.from_numpy(normalise(picture, (0.5,) * 3, (0.5,) * 3))[0])
    for first, last, length in batch.buckets:
        assert lengths[last - 1] == length and not batch.valid[first:last, length:].any()


def test_a_caption_beyond_the_context_loses_its_end():
    batch = make([Sample("a", noise(1)[0].picture, "red square " * 30, {})], batch_size=1).batch(0)
    assert batch.ids.shape == (1, 16) and batch.ids[0, -1] == TOKENIZER.special.end and batch.valid.all()


@given(st.lists(st.integers(2, 12), min_size=1, max_size=9), st.integers(1, 5))
def test_buckets_cover_all_rows_at_least_cost(lengths, most):
    lengths.sort()
    buckets = bucket_by_length(lengths, most)
    assert 1 <= len(buckets) <= most
    assert [b.first for b in buckets] == [0, *(b.last for b in buckets[:-1])] and buckets[-1].last == len(lengths)
    assert all(b.first < b.last and b.length == max(lengths[b.first : b.last]) for b in buckets)

    def cost(cuts):
        return sum((last - first) * lengths[last - 1] for first, last in itertools.pairwise((0, *cuts, len(lengths))))

    best = min(
        cost(cuts) for n in range(min(most, len(lengths))) for cuts in itertools.combinations(range(1, len(lengths)), n)
    )
    assert sum((b.last - b.first) * b.length for b in buckets) == best


@pytest.mark.parametrize("most", [1, 2, 4, 20])
def test_buckets_change_neither_losses_nor_gradients(most):
    """In float64; measured worst case 1.1e-15 for values and 1.2e-14 for gradients."""
    config = recipes.tiny.tiny()
    model, task = build(config.model, seed=1).double(), Pretraining(config.model, config.loss)
    batch = make(samples(), batch_size=24, text_buckets=most).batch(0)
    batch = batch._replace(pixels=batch.pixels.double())
    assert 1 <= len(batch.buckets) <= most and (most == 1) == (len(batch.buckets) == 1)
    results = []
    for buckets in (batch.buckets, ()):
        model.zero_grad(set_to_none=True)
        output = model(batch.pixels, batch.ids, batch.valid, buckets)
        loss = task.loss(model, batch._replace(buckets=buckets))
        loss.total.backward()
        gradients = [p.grad for p in model.parameters()]
        decoded = output.decoded[batch.valid[:, 1:]]
        results.append([output.image_embed, output.text_embed, decoded, loss.total, *loss.parts.values(), *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# --- which pairs are not negatives ------------------------------------------------------------------------------


def groups(*items: tuple[str, str | None]) -> list[set[str]]:
    """The groups of pairs, given as (caption, drawing); keys are a, b, c, ..."""
    picture = noise(1)[0].picture
    made = [Sample(chr(97 + i), picture, c, {"picture": d} if d else {}) for i, (c, d) in enumerate(items)]
    batch = make(made, batch_size=len(made)).batch(0)
    found = collections.defaultdict(set)
    for key, group in zip(batch.keys, group_ids(batch.labels).tolist(), strict=True):
        found[group].add(key)
    return sorted(found.values(), key=sorted)


def test_pairs_with_one_caption_or_one_drawing_share_a_group():
    assert groups(("x", "1"), ("y", "2"), ("z", None)) == [{"a"}, {"b"}, {"c"}]
    assert groups(("x", "1"), ("y", "1"), ("z", "2")) == [{"a", "b"}, {"c"}]
    assert groups(("x", "1"), ("x", "2"), ("z", "2")) == [{"a", "b", "c"}]
    assert groups(("x", None), ("x", "2"), ("z", None)) == [{"a", "b"}, {"c"}]
    assert groups(("x", "1"), ("y", "2"), ("y", "1"), ("x", "3")) == [{"a", "b", "c", "d"}]
    assert groups(("1", None), ("x", "1")) == [{"a"}, {"b"}]  # a drawing's name is no caption


def test_captions_that_are_cut_to_the_same_ids_share_a_group():
    assert groups(("red " * 20 + "a", None), ("red " * 20 + "b", None), ("red", None)) == [{"a", "b"}, {"c"}]


def test_a_pair_that_comes_twice_in_a_batch_is_not_its_own_negative():
    batch = make(noise(3), batch_size=6).batch(1)
    assert len(set(zip(batch.keys, group_ids(batch.labels).tolist(), strict=True))) == 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_groups_are_the_connected_components(labels):
    count = len(labels)
    joined = np.array([[any(a == b for a, b in zip(x, y, strict=True)) for y in labels] for x in labels])
    reach = np.linalg.matrix_power(joined.astype(int), count) > 0
    ids = group_ids(torch.tensor(labels)).tolist()
    assert (np.equal.outer(ids, ids) == reach).all()


# --- augmentation -----------------------------------------------------------------------------------------------


def shift_of(shifted: np.ndarray, picture: np.ndarray, most: int) -> tuple[int, int]:
    """By how much a picture was moved, white filled in; fails where it wasn't."""
    padded = np.pad(picture, ((most, most), (most, most), (0, 0)), constant_values=255)
    size = len(picture)
    found = [
        (y - most, x - most)
        for y in range(2 * most + 1)
        for x in range(2 * most + 1)
        if (padded[y : y + size, x : x + size] == shifted).all()
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("most", [1, 3])
def test_shifts_are_bounded_white_and_differ_between_epochs(most):
    items = noise(40)
    pictures = {item.key: np.asarray(module.open_picture(item.picture)) for item in items}

    def shifts(seed: int, epoch: int) -> dict[str, tuple[int, int]]:
        batch = make(items, seed, batch_size=40, max_shift_px=most).batch(40 * epoch)
        pixels = np.rint((batch.pixels.numpy() * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return {k: shift_of(p, pictures[k], most) for k, p in zip(batch.keys, pixels, strict=True)}

    first = shifts(0, 0)
    assert first == shifts(0, 0)
    others = [shifts(0, 1), shifts(0, 2), shifts(1, 0)]
    expected = 40 / (2 * most + 1) ** 2  # as many stay where they were by chance
    for other in others:
        assert sum(first[key] == other[key] for key in first) < expected + 4 * math.sqrt(expected)
    seen = collections.Counter(shift for all_of in (first, *others) for shift in all_of.values())
    side = range(-most, most + 1)
    assert {y for y, _ in seen} == set(side) == {x for _, x in seen}
    assert len(seen) > 0.85 * len(side) ** 2


def test_a_shift_depends_on_the_pair_and_not_on_its_batch():
    items = noise(12)

    def by_key(batch_size):
        loader = make(items, 3, max_shift_px=2, batch_size=batch_size)
        batches = [loader.batch(p) for p in range(0, 12, batch_size)]
        return {k: p for b in batches for k, p in zip(b.keys, b.pixels, strict=True)}

    alone, together = by_key(1), by_key(12)
    assert all(torch.equal(alone[key], together[key]) for key in alone)


def test_no_shift_leaves_the_pictures_as_they_are():
    a, b = (make(noise(4)).batch(epoch * 4) for epoch in (0, 1))
    assert torch.equal(a.pixels[np.argsort(a.keys)], b.pixels[np.argsort(b.keys)])


# --- decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "decoded"), [(0, 30), (4, 10 + 6 + 6), (10, 10), (100, 10)])
def test_the_cache_is_bounded_and_saves_decoding(monkeypatch, room, decoded):
    plain = make(noise(10), batch_size=10)
    expected = [plain.batch(10 * epoch) for epoch in range(3)]
    calls, opened = [], module.open_picture
    monkeypatch.setattr(module, "open_picture", lambda *args, **kw: calls.append(1) or opened(*args, **kw))
    loader = make(noise(10), batch_size=10, cache_bytes=room * 3 * SIZE_PX**2 + 5)
    assert all(same(loader.batch(10 * epoch), expected[epoch]) for epoch in range(3))
    assert sum(picture.nbytes for picture in loader._cache.values()) <= room * 3 * SIZE_PX**2
    assert len(calls) == decoded


def test_a_damaged_picture_is_named():
    items = noise(3)
    items[1] = items[1]._replace(picture=items[1].picture[:60])
    with pytest.raises(DataError, match="k001") as caught:
        make(items, batch_size=3).batch(0)
    assert "\n" not in str(caught.value)


def test_pictures_of_any_shape_are_made_to_fit():
    tall = Sample("tall", png(np.zeros((90, 20, 3), np.uint8)), "black bar", {})
    batch = make([tall, *noise(1, size_px=50)], batch_size=2, pixels=PixelConfig(fit="pad")).batch(0)
    assert batch.pixels.shape == (2, 3, SIZE_PX, SIZE_PX)
    assert (batch.pixels[batch.keys.index("tall")] == 1).any()


def test_the_recipe_feeds_the_model(tmp_path):
    config = tiny_config(write_shards(tmp_path))
    reader = ShardReader(tmp_path, "train")
    batch = make(reader, batch_size=config.data.batch_size, text_buckets=config.data.text_buckets).batch(0)
    output = build(config.model)(batch.pixels, batch.ids, batch.valid, batch.buckets)
    assert output.image_embed.shape == (8, config.model.embed_dim) and output.decoded.isfinite().all()
