"""Augmentation: every change is drawn from (seed, epoch, sample) alone, and is what it says."""

import collections
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pairs import make, noise, photo

from opencoca.data.augment import OPERATIONS, Augmentation, random_box
from opencoca.data.draws import mix, mix64, sample_draw, uniforms
from opencoca.data.pixels import open_picture

# --- draws ------------------------------------------------------------------------------------------------------


def test_numbers_are_uniform_and_independent_of_each_other():
    """4,000 draws: the mean of each is within 4 standard errors of 1/2, every correlation within 4 of 0."""
    draws = [sample_draw(3, epoch, f"k{i}") for epoch in range(4) for i in range(1000)]
    values = np.array([[*uniforms(draw, "crop", 2), *uniforms(draw, "flip", 1), draw / 2**64] for draw in draws])
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 4 / math.sqrt(12 * 4000)
    correlations = np.corrcoef(values.T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(4000)
    assert len(set(draws)) == 4000 and np.array_equal(uniforms(draws[0], "crop", 2), values[0, :2])


def test_one_integer_mixes_as_many_do():
    numbers = np.array([0, 1, 2**63, 2**64 - 1, 12345678901234567890], np.uint64)
    assert mix64(numbers).tolist() == [mix(int(number)) for number in numbers]
    assert mix(0) == 0xE220A8397B1DCDAF  # splitmix64's first output from seed 0


# --- shift ------------------------------------------------------------------------------------------------------


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
    pictures = {item.key: np.asarray(open_picture(item.picture)) for item in items}

    def shifts(seed: int, epoch: int) -> dict[str, tuple[int, int]]:
        batch = make(items, seed, batch_size=40, augmentation=Augmentation(max_shift_px=most)).batch(40 * epoch)
        pixels = batch.pixels.numpy().transpose(0, 2, 3, 1)
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
        loader = make(items, 3, augmentation=Augmentation(max_shift_px=2), batch_size=batch_size)
        batches = [loader.batch(p) for p in range(0, 12, batch_size)]
        return {k: p for b in batches for k, p in zip(b.keys, b.pixels, strict=True)}

    alone, together = by_key(1), by_key(12)
    assert all(torch.equal(alone[key], together[key]) for key in alone)


def test_no_shift_leaves_the_pictures_as_they_are():
    a, b = (make(noise(4)).batch(epoch * 4) for epoch in (0, 1))
    assert torch.equal(a.pixels[np.argsort(a.keys)], b.pixels[np.argsort(b.keys)])


# --- crop and flip ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(640, 480), (30, 90), (1, 1), (2000, 3), (7, 5)])
def test_boxes_lie_inside_with_the_share_that_was_asked_for(width, height):
    boxes = [random_box(np.random.default_rng(i).random(40), width, height, 0.3, 0.8) for i in range(300)]
    assert all(b.left >= 0 and b.left + b.width <= width and b.width > 0 for b in boxes)
    assert all(b.top >= 0 and b.top + b.height <= height and b.height > 0 for b in boxes)
    if min(width, height) > 100:
        areas = np.array([b.width * b.height / width / height for b in boxes])
        ratios = np.array([b.width / b.height for b in boxes])
        assert 0.29 < areas.min() < 0.35 and 0.75 < areas.max() < 0.81
        assert 0.74 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.34
        assert len(set(boxes)) > 290 and min(b.left for b in boxes) < 5 and max(b.left + b.width for b in boxes) > 635


def test_a_crop_is_that_part_of_the_picture():
    """Each cropped noise picture is the resized part that the same draws name."""
    items, augmentation = noise(6, size_px=64), Augmentation(crop_scale=(0.2, 0.9))
    batch = make(items, 4, batch_size=6, augmentation=augmentation).batch(6)
    pictures = {item.key: open_picture(item.picture) for item in items}
    for key, pixels in zip(batch.keys, batch.pixels, strict=True):
        box = augmentation.box(sample_draw(4, 1, key), 64, 64)
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = pictures[key].resize((16, 16), Image.Resampling.BICUBIC, box=part)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_half_of_the_pictures_are_mirrored():
    items = noise(200)
    plain, mirrored = (make(items, 1, batch_size=200, augmentation=Augmentation(flip=flip)).batch(0) for flip in (0, 1))
    flips = [torch.equal(a.flip(2), b) for a, b in zip(plain.pixels, mirrored.pixels, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(plain.pixels, mirrored.pixels, strict=True)]
    assert all(a != b for a, b in zip(flips, same, strict=True)) and 70 < sum(flips) < 130
    assert plain.keys == mirrored.keys


# --- RandAugment ------------------------------------------------------------------------------------------------

PICTURE = photo(32, 32)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_operations_keep_the_size_and_change_with_strength(operation, strength):
    changed = operation(PICTURE, strength, 255)
    assert changed.size == PICTURE.size and changed.mode == "RGB"
    always = operation.__name__ in ("_autocontrast", "_equalize")
    never = operation.__name__ == "_identity"
    differs = not np.array_equal(np.asarray(changed), np.asarray(PICTURE))
    assert differs == (not never and (always or abs(strength) > 0.1))


def test_geometry_is_about_the_centre():
    """A dot near the corner: shear about the centre, translation by 150/331 of the side, rotation against the clock."""
    by_name = {operation.__name__: operation for operation in OPERATIONS}
    image = Image.new("RGB", (331, 331))
    image.paste((255, 255, 255), (60, 60, 71, 71))  # its middle is 100 left of and above the centre

    def middle(name: str, strength: float) -> list[float]:
        seen = np.argwhere(np.asarray(by_name[name](image, strength, 0))[..., 0] > 127)
        return [round(float(v) - 165) for v in seen.mean(0)[::-1]]

    assert middle("_identity", 0) == [-100, -100]
    assert middle("_shear_x", 1) == [-70, -100] and middle("_shear_x", -1) == [-130, -100]
    assert middle("_shear_y", 1) == [-100, -70] and middle("_shear_y", -1) == [-100, -130]
    assert middle("_translate_x", -0.5) == [-25, -100] and middle("_translate_y", -0.5) == [-100, -25]
    assert middle("_rotate", 1) == [round(-100 * math.cos(math.pi / 6) - 50), round(-100 * math.cos(math.pi / 6) + 50)]
    filled = np.asarray(by_name["_rotate"](image, 1, 200))
    assert filled[0, 0].tolist() == [200, 200, 200]


def test_enhancements_solarize_and_posterize_have_the_papers_ends():
    by_name = {operation.__name__: operation for operation in OPERATIONS}
    image = Image.fromarray(np.full((4, 4, 3), (200, 100, 50), np.uint8))
    assert np.asarray(by_name["_brightness"](image, -1, 0))[0, 0].tolist() == [20, 10, 5]
    assert np.asarray(by_name["_solarize"](image, 1, 0))[0, 0].tolist() == [55, 155, 205]
    assert np.asarray(by_name["_solarize"](image, 0.5, 0))[0, 0].tolist() == [55, 100, 50]
    assert np.asarray(by_name["_posterize"](image, -1, 0))[0, 0].tolist() == [192, 96, 48]
    grey = np.asarray(by_name["_colour"](image, -1, 0))[0, 0].astype(int)
    assert grey.max() - grey.min() == 15


def test_every_operation_is_drawn_alike():
    seen = collections.Counter()
    for i in range(1400):
        for which, _ in uniforms(sample_draw(0, 0, str(i)), "randaugment", 4).reshape(-1, 2):
            seen[int(which * len(OPERATIONS))] += 1
    assert len(seen) == 14 and all(140 < count < 260 for count in seen.values())


def test_randaugment_is_a_function_of_seed_epoch_and_sample():
    items, options = noise(30), {"batch_size": 30, "augmentation": Augmentation(randaugment=(2, 9))}

    def by_key(seed: int, epoch: int, **more) -> dict[str, bytes]:
        batch = make(items, seed, **(options | more)).batch(30 * epoch)
        return {key: pixels.numpy().tobytes() for key, pixels in zip(batch.keys, batch.pixels, strict=True)}

    first = by_key(0, 0)
    assert first == by_key(0, 0) == by_key(0, 0, cache_bytes=0)
    for other in (by_key(1, 0), by_key(0, 1), by_key(0, 0, augmentation=Augmentation())):
        assert sum(first[key] == other[key] for key in first) < 6
