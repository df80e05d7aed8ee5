"""Corruptions, low resolution, attacks, written names, another style, overlap: small exact cases."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.support import COLOURS, SHAPES, drawing, png, write_shards

from opencoca.errors import ConfigError, DataError
from opencoca.eval.cache import Cache
from opencoca.eval.registry import Options, Place
from opencoca.eval.robustness import (
    attacked,
    attacks,
    corrupted,
    library,
    overlap,
    pictures,
    resolution,
    style,
    typographic,
)
from opencoca.eval.robustness.corruptions import CORRUPTIONS, SEVERITIES
from opencoca.eval.robustness.corruptions import corrupted as corrupt

# A higher severity of these changes other pixels, not always more of them; so it is in the reference too.
NOT_MONOTONE = ("snow", "frost", "fog", "elastic_transform")
BLOCKS = ("pixelate", "jpeg_compression")  # whose edges may happen to lie on a picture's own


@pytest.fixture(scope="module")
def squares() -> np.ndarray:
    """A few pictures with edges, grey and smooth parts, none of them white all over."""
    ramp = np.linspace(40, 200, 96)
    smooth = np.stack([np.add.outer(ramp, ramp[::-1]) / 2, np.add.outer(ramp, ramp) / 2, np.tile(ramp, (96, 1))], -1)
    shapes = [np.asarray(drawing(c, s, size_px=96)) // 2 + 50 for c, s in zip(COLOURS, SHAPES, strict=False)]
    return np.stack([smooth.astype(np.uint8), *shapes])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six pictures in a folder per class: three colours, two shapes each."""
    for colour in ("red", "green", "blue"):
        (tmp_path / "test" / colour).mkdir(parents=True)
        for shape in ("square", "circle"):
            (tmp_path / "test" / colour / f"{shape}.png").write_bytes(png(drawing(colour, shape)))
    return tmp_path


def opened(folder: Path) -> Place:
    return Place(folder)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_again_and_worse_at_each_severity(name: str, squares: np.ndarray) -> None:
    distances = []
    for severity in SEVERITIES:
        made = [corrupt(square, name, severity, f"id{i}") for i, square in enumerate(squares)]
        assert all(one.dtype == np.uint8 and one.shape == squares[0].shape for one in made)
        again = [corrupt(square, name, severity, f"id{i}") for i, square in enumerate(squares)]
        assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
        distances.append(np.mean([np.abs(m.astype(float) - s).mean() for m, s in zip(made, squares, strict=True)]))
    assert distances[0] > 0.2
    if name in BLOCKS:
        assert distances[4] > 1.5 * distances[0]
    elif name not in NOT_MONOTONE:
        assert distances == sorted(distances)


def test_what_is_random_in_a_corruption_comes_from_seed_and_id(squares: np.ndarray) -> None:
    base = corrupt(squares[0], "gaussian_noise", 3, "a")
    assert not np.array_equal(base, corrupt(squares[0], "gaussian_noise", 3, "b"))
    assert not np.array_equal(base, corrupt(squares[0], "gaussian_noise", 3, "a", seed=1))
    assert base.astype(float).std() > 0 and abs(base.astype(float) - squares[0]).std() == pytest.approx(
        0.18 * 255 * math.sqrt(1 - 2 / math.pi), rel=0.15
    )
    with pytest.raises(ConfigError, match="'rain' of severity 1"):
        corrupt(squares[0], "rain", 1, "a")


def test_contrast_and_brightness_by_hand() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    grey[:, :4] = 60  # mean 80
    assert np.unique(corrupt(grey, "contrast", 1, "x")).tolist() == [72, 88]  # 80 -+ 20 * 0.4
    assert np.unique(corrupt(grey, "brightness", 2, "x")).tolist() == [111, 151]  # + 0.2 * 255


def test_gamma_and_war_by_hand() -> None:
    assert resolution.gamma(0.3, 0.6) == 0.5
    assert math.isnan(resolution.gamma(0.0, 0.0))
    # E = 0.6 - 0.5 = 0.1: 1 - exp(-200 * 0.01) = 1 - exp(-2)
    assert resolution.improved_gamma(0.3, 0.6, 0.5) == pytest.approx(0.5 * (1 - math.exp(-2)))
    assert resolution.improved_gamma(0.5, 0.5, 0.5) == 0  # at chance nothing is robust
    expected = (0.15556 * 0.8 + 1.0 * 0.2) / (0.15556 + 1.0)
    assert resolution.war({"imagenet": 0.8, "eurosat": 0.2}) == pytest.approx(expected)
    with pytest.raises(DataError, match="no weight for mnist"):
        resolution.war({"imagenet": 0.8, "mnist": 0.2})


def test_lowering_keeps_a_flat_picture_and_blurs_an_edge() -> None:
    flat = np.full((16, 16, 3), 77, np.uint8)
    assert np.array_equal(resolution.lowered(flat, 4), flat)
    edge = np.repeat(np.where(np.arange(16) < 8, 0, 255)[None, :, None], 16, 0).repeat(3, 2).astype(np.uint8)
    assert len(np.unique(resolution.lowered(edge, 8))) > 2


def linear(weight: torch.Tensor) -> attacks.Logits:
    return lambda pixels: pixels.flatten(1) @ weight.T


def test_attacks_of_eps_zero_change_nothing_and_more_eps_never_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3 * 5 * 5, generator=generator)
    pixels = torch.rand(40, 3, 5, 5, generator=generator)
    logits = linear(weight)
    truths = logits(pixels).argmax(dim=1)
    start = attacks.starts([str(i) for i in range(40)], (3, 5, 5))
    assert torch.equal(attacks.fgsm(logits, pixels, truths, 0.0), pixels)
    assert torch.equal(attacks.pgd(logits, pixels, truths, 0.0, start=start), pixels)
    stood = []
    for eps in (0.01, 0.02, 0.05, 0.1, 0.3):
        made = attacks.pgd(logits, pixels, truths, eps, start=start)
        assert (made - pixels).abs().max() <= eps + 1e-6 and made.min() >= 0 and made.max() <= 1
        stood.append((logits(made).argmax(dim=1) == truths).float().mean().item())
    assert stood == sorted(stood, reverse=True) and stood[0] > stood[-1]


def test_fgsm_is_one_step_of_eps_along_the_sign_of_the_gradient() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])  # of two classes over three pixels
    pixels = torch.full((1, 3, 1, 1), 0.5)
    made = attacks.fgsm(linear(weight), pixels, torch.tensor([0]), 8 / 255)
    # The loss of class 0 grows where its weight is below the other's.
    assert torch.allclose(made.flatten(), torch.tensor([0.5 - 8 / 255, 0.5 + 8 / 255, 0.5]))
    with pytest.raises(ConfigError, match="eps 8"):
        attacks.fgsm(linear(weight), pixels, torch.tensor([0]), 8)


def test_the_attacked_classifier_is_the_predictor_s() -> None:
    predictor = tiny.predictor()
    square = np.asarray(drawing("red", "circle", size_px=predictor.config.model.vision.image_size_px))[None]
    labels = predictor.embed_labels(["red", "blue"])
    expected = predictor.scale * predictor.encode_squares(square).embed @ labels.T
    pixels = torch.from_numpy(square.copy()).permute(0, 3, 1, 2).float() / 255
    got = attacked.classifier(predictor, labels)(pixels)
    assert torch.allclose(got, expected, atol=1e-5)  # worst seen: 5e-7


def test_attacks_give_a_falling_curve_and_the_clean_accuracy(folders: Path) -> None:
    result = attacked.make("classes/attacks", {"classes": opened(folders)}, Options())(tiny.predictor())
    stood = [result.figures[name] for name in ("acc1", "pgd_1", "pgd_2", "pgd_4", "pgd_8")]
    assert stood == sorted(stood, reverse=True)
    assert all(result.figures[f"fgsm_{eps}"] <= result.figures["acc1"] for eps in (1, 2, 4, 8))
    assert bool(result.facts["not_measured"]) == (library.version() == "")


def test_corruptions_of_a_folder_have_the_clean_accuracy_beside_them(folders: Path, tmp_path: Path) -> None:
    (folders / "test" / "red" / "square.png").write_bytes(b"broken")
    options = Options(cache=Cache(tmp_path / "kept"))
    result = corrupted.make("classes/corruptions", {"classes": opened(folders)}, options)(tiny.predictor())
    assert len(result.sample_ids) == 5 and result.facts["skipped"]["count"] == 1
    means = [result.figures[name] for name in CORRUPTIONS]
    assert result.figures["mean_corruption_acc"] == pytest.approx(np.mean(means))
    grid = result.facts["grids"][0]
    assert [row["name"] for row in grid["rows"]] == [name.replace("_", " ") for name in CORRUPTIONS]
    assert grid["rows"][0]["values"][0] == pytest.approx(result.figures["acc1"])
    again = corrupted.make("classes/corruptions", {"classes": opened(folders)}, options)(tiny.predictor())
    assert again.figures == result.figures


def test_captions_of_shards_are_classes(tmp_path: Path) -> None:
    found = pictures.open_pictures(Place(write_shards(tmp_path), "val"))
    assert found.templates == ("{}",) and len(found) == 12
    assert [found.names[t][0] for t in found.truths] == [found.read(i).caption for i in range(len(found))]
    with pytest.raises(DataError, match="no folder 'other'"):
        (tmp_path / "plain").mkdir()
        pictures.open_pictures(Place(tmp_path / "plain", "other"))


def test_a_wrong_name_is_never_the_right_one_and_what_is_drawn_is_repeatable() -> None:
    wrong = {typographic.wrong_class(2, 5, str(i)) for i in range(200)}
    assert wrong == {0, 1, 3, 4}
    square = np.asarray(drawing("blue", "circle", size_px=72))
    made = typographic.written(square, "flag of the Federated States of Micronesia", "a")
    assert np.array_equal(made, typographic.written(square, "flag of the Federated States of Micronesia", "a"))
    blank = typographic.written(square, "dog", "a", blank=True)
    named = typographic.written(square, "dog", "a")
    assert (named < 100).all(axis=2).sum() > 5 and not (blank < 100).all(axis=2).any()


def test_typographic_figures_are_shares_of_the_pictures(folders: Path) -> None:
    result = typographic.make("classes/typographic", {"classes": opened(folders)}, Options())(tiny.predictor())
    assert set(result.figures) >= {"acc1", "acc1_written", "fell_for", "fell_for_unwritten", "acc1_blank"}
    assert result.figures["acc1_written"] + result.figures["fell_for"] <= 1


def test_two_styles_are_compared_on_the_classes_that_both_have(folders: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for colour in ("red", "green", "pink"):
        (other / colour).mkdir(parents=True)
        (other / colour / "bar.png").write_bytes(png(drawing(colour, "bar")))
    data = {"classes": opened(folders), "style": Place(other)}
    result = style.make("classes/style", data, Options())(tiny.predictor())
    assert result.sample_ids == ["green", "red"]
    assert result.facts["pictures"] == {"first": 4, "other": 2}
    assert result.figures["drop"] == pytest.approx(result.figures["acc1"] - result.figures["acc1_other"])
    (other / "red").rename(other / "grey")
    with pytest.raises(DataError, match="share 1 classes"):
        style.make("classes/style", data, Options())


def test_duplicates_survive_scaling_and_jpeg_and_others_are_not_found(folders: Path, tmp_path: Path) -> None:
    known = tmp_path / "known" / "things"
    known.mkdir(parents=True)
    large, copy = drawing("red", "square", size_px=64), io.BytesIO()
    (folders / "test" / "red" / "square.png").write_bytes(png(large))
    large.resize((100, 100)).save(copy, "JPEG", quality=80)
    (known / "copy.jpg").write_bytes(copy.getvalue())
    (known / "other.png").write_bytes(png(drawing("yellow", "triangle", " on the left", 64)))
    data = {"classes": opened(folders), "training": Place(tmp_path / "known")}
    result = overlap.make("classes/overlap", data, Options())(tiny.predictor())
    assert result.facts["duplicates_found"] == [{"test": "red/square.png", "training": "things/copy.jpg"}]
    assert result.figures["duplicates"] == pytest.approx(1 / 6)
    clean = [
        right
        for name, right in zip(result.sample_ids, result.per_sample["acc1"], strict=True)
        if name != "red/square.png"
    ]
    assert result.figures["acc1_clean"] == pytest.approx(float(torch.stack(clean).mean()))


def test_hashes_of_a_picture_and_of_it_brighter_are_near() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(40, 200, (40, 40, 3), dtype=np.uint8)).resize((64, 64))
    brighter = Image.fromarray((np.asarray(picture).astype(int) + 5).astype(np.uint8))
    (one, thumb), (two, thumb_2) = overlap.described(picture), overlap.described(brighter)
    assert (one ^ two).bit_count() <= overlap.HASH_BITS
    turned = overlap.described(picture.rotate(90))[0]
    assert (one ^ turned).bit_count() > overlap.HASH_BITS
    found = overlap.nearest(
        np.array([one, turned], np.uint64), np.stack([thumb, thumb]), np.array([two], np.uint64), thumb_2[None]
    )
    assert found.tolist() == [0, -1]
