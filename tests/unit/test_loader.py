"""What is in the loader's batches: rows that belong together, on each rank its own, and which are not negatives."""

import collections
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.pairs import TOKENIZER, make, noise
from tests.support import samples, tiny_config, write_shards

from opencoca import recipes
from opencoca.config import PixelConfig
from opencoca.data.augment import Augmentation
from opencoca.data.loader import MOST_CAPTIONS, bucket_by_length, lengths_of, put_in_order
from opencoca.data.pixels import normalised, open_picture
from opencoca.data.shards import Sample, ShardReader
from opencoca.errors import DataError
from opencoca.losses import group_ids
from opencoca.model.init import build
from opencoca.train.task import Pretraining
from opencoca.types import caption_lengths


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_any_integer_is_a_seed(seed):
    options = {"augmentation": Augmentation(max_shift_px=1), "patch_noise": 3}
    assert make(noise(3), seed, **options).batch(0).patch_noise.isfinite().all()


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no samples"):
        make([])


def test_the_fingerprint_tells_other_data():
    items = noise(4)
    prints = {make(some).fingerprint for some in (items, items[:3], items[::-1])}
    assert len(prints) == 3 and make(items).fingerprint in prints


def test_rows_belong_together_and_stand_by_length():
    items = {item.key: item for item in samples()}
    batch = make(list(items.values()), batch_size=32, text_buckets=3).batch(0)
    lengths = batch.valid.sum(dim=1)
    assert lengths.tolist() == sorted(lengths.tolist()) and len(set(lengths.tolist())) > 2
    assert batch.pixels.dtype == torch.uint8 and batch.ids.dtype == torch.int64 and batch.valid.dtype == torch.bool
    for row, key in enumerate(batch.keys):
        assert TOKENIZER.decode(batch.ids[row]) == items[key].caption
        picture = np.array(open_picture(items[key].picture))
        assert torch.equal(batch.pixels[row], torch.from_numpy(picture).permute(2, 0, 1))
    for first, last, length in batch.buckets:
        assert lengths[last - 1] == length and not batch.valid[first:last, length:].any()


def test_a_caption_beyond_the_context_loses_its_end():
    batch = make([Sample("a", noise(1)[0].picture, "red square " * 30, {})], batch_size=1).batch(0)
    assert batch.ids.shape == (1, 16) and batch.ids[0, -1] == TOKENIZER.special.end and batch.valid.all()


@given(st.integers(0, 12).flatmap(lambda count: st.permutations(range(count))))
def test_rows_are_put_in_order_in_place(order):
    rows = np.arange(2 * len(order)).reshape(-1, 2)
    expected = rows[list(order)].copy()
    put_in_order(rows, order)
    assert np.array_equal(rows, expected)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=9), st.integers(1, 5), st.sampled_from([0, 3, 9, 1000]))
def test_buckets_cover_all_rows_at_least_cost(lengths, most, gain):
    lengths.sort()
    buckets = bucket_by_length(lengths, most, gain)
    assert 1 <= len(buckets) <= most
    assert [b.first for b in buckets] == [0, *(b.last for b in buckets[:-1])] and buckets[-1].last == len(lengths)
    assert all(b.first < b.last and b.length == max(lengths[b.first : b.last]) for b in buckets)

    def cost(cuts):
        runs = itertools.pairwise((0, *cuts, len(lengths)))
        return sum((last - first) * lengths[last - 1] for first, last in runs) + gain * len(cuts)

    best = min(
        cost(cuts) for n in range(min(most, len(lengths))) for cuts in itertools.combinations(range(1, len(lengths)), n)
    )
    assert sum((b.last - b.first) * b.length for b in buckets) + gain * (len(buckets) - 1) == best


@pytest.mark.parametrize("most", [1, 2, 4, 20])
def test_buckets_change_neither_losses_nor_gradients(most):
    """In float64; measured worst case 1.1e-15 for values and 1.2e-14 for gradients."""
    config = recipes.tiny.tiny()
    model, task = build(config.model, seed=1).double(), Pretraining(config.model, config.loss)
    batch = make(samples(), batch_size=24, text_buckets=most).batch(0)
    batch = batch._replace(pixels=normalised(batch.pixels, PixelConfig()).double())
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


# --- ranks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_rows_of_one_rank(world):
    """Each row is the same to the bit, wherever it is read."""
    options = {"batch_size": 24, "augmentation": Augmentation((0.5, 1.0), True, (2, 9), 1), "patch_noise": 6}
    whole = make(samples(), 3, **options)
    ranks = [make(samples(), 3, rank=rank, world=world, text_buckets=3, **options) for rank in range(world)]
    for position in (0, 24, 61):
        batch = whole.batch(position)
        draws = [row.numpy().tobytes() for row in batch.patch_noise]  # a sample may come in two epochs
        rows = {draw: (batch.keys[i], *(tensor[i] for tensor in batch[:4])) for i, draw in enumerate(draws)}
        order = [whole.source.keys[i] for i in whole._order.at(np.arange(position, position + 24))[1]]
        for rank, loader in enumerate(ranks):
            part = loader.batch(position)
            assert sorted(part.keys) == sorted(order[rank * 24 // world : (rank + 1) * 24 // world])
            assert sorted(part.valid.sum(1).tolist()) == part.valid.sum(1).tolist()
            assert [b.first for b in part.buckets] == [0, *(b.last for b in part.buckets[:-1])]
            width = part.ids.shape[1]
            for i, key in enumerate(part.keys):
                there, pixels, ids, valid, labels = rows[part.patch_noise[i].numpy().tobytes()]
                assert there == key and torch.equal(part.pixels[i], pixels) and torch.equal(part.labels[i], labels)
                assert torch.equal(part.ids[i], ids[:width]) and torch.equal(part.valid[i], valid[:width])
                assert not valid[width:].any()


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(DataError, match="batch_size 6 isn't a multiple of the 4 ranks; take 4 or 8"):
        make(noise(8), batch_size=6, world=4)


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


def test_a_batch_tells_which_texts_are_true_of_a_picture():
    """Its own caption first, then the picture's others, however many pictures they are true of."""
    picture = noise(1)[0].picture
    captions = {"a": ("a red cat", "red"), "b": ("a red dog", "red", "dog"), "c": ("a cow",)}
    made = [Sample(key, picture, first, {}, tuple(more)) for key, (first, *more) in captions.items()]
    assert make(made, batch_size=3).batch(0).texts is None
    for seed in range(8):  # in each, other captions are drawn
        batch = make(made, seed, batch_size=3, captions="sample", every_caption=True).batch(0)
        assert batch.texts is not None and batch.texts.shape == (3, MOST_CAPTIONS)
        own = dict(zip(batch.keys, batch.texts[:, 0].tolist(), strict=True))
        true = {key: set(row) for key, row in zip(batch.keys, batch.texts.tolist(), strict=True)}
        assert [len(true[key]) for key in "abc"] == [2, 3, 1]
        assert len(true["a"] & true["b"]) == 1 and not true["c"] & (true["a"] | true["b"])
        drawn = {key: TOKENIZER.decode(ids) for key, ids in zip(batch.keys, batch.ids, strict=True)}
        assert all((own[a] in true[b]) == (drawn[a] in captions[b]) for a in "abc" for b in "abc")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_groups_are_the_connected_components(labels):
    count = len(labels)
    joined = np.array([[any(a == b for a, b in zip(x, y, strict=True)) for y in labels] for x in labels])
    reach = np.linalg.matrix_power(joined.astype(int), count) > 0
    ids = group_ids(torch.tensor(labels)).tolist()
    assert (np.equal.outer(ids, ids) == reach).all()


def test_the_recipe_feeds_the_model(tmp_path):
    config = tiny_config(write_shards(tmp_path))
    reader = ShardReader(tmp_path, "train")
    batch = make(reader, batch_size=config.data.batch_size, text_buckets=config.data.text_buckets).batch(0)
    output = build(config.model)(normalised(batch.pixels, config.pixels), batch.ids, batch.valid, batch.buckets)
    assert output.image_embed.shape == (8, config.model.embed_dim) and output.decoded.isfinite().all()


def test_a_caption_s_length_counts_a_padding_id_inside_it():
    valid = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert caption_lengths(valid).tolist() == [4, 5, 1, 0]
    assert lengths_of(valid.numpy()).tolist() == [4, 5, 1, 0]
