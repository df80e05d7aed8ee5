"""The image encoder against plain float64 reimplementations: patches, positions, and which patches are read."""

import dataclasses

import pytest
import torch
from tests import plain_model
from tests.plain_model import EXACT, all_random, random, tiny
from torch import Tensor
from torch.nn import functional as F

from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.model.vit import patchify, prominence

model, pixels = plain_model.model, plain_model.pixels


def test_patchify_equals_a_convolution() -> None:
    pixels_BCHW = random(2, 3, 8, 12)
    kernel = random(7, 3, 4, 4, seed=1)
    convolved = F.conv2d(pixels_BCHW, kernel, stride=4).flatten(2).transpose(1, 2)
    patches = patchify(pixels_BCHW, 4) @ kernel.reshape(7, -1).T
    assert patches.shape == (2, 6, 7)
    torch.testing.assert_close(patches, convolved, **EXACT)


@pytest.mark.parametrize("shape", [(18, 16), (16, 18), (2, 2)])
def test_pictures_that_cannot_be_cut_into_patches_are_refused(model: CoCa, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} px .* patches of 4 px"):
        model.encode_image(torch.zeros(1, 3, *shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (8, 8), (24, 12), (4, 4)])
def test_other_resolutions_run(model: CoCa, shape: tuple[int, int]) -> None:
    pixels_BCHW = random(2, 3, *shape)
    assert model.encoder(pixels_BCHW).shape == (2, shape[0] * shape[1] // 16, 32)
    image = model.encode_image(pixels_BCHW)
    assert image.embed.shape == (2, 48) and image.tokens.shape == (2, 5, 48)
    assert image.embed.isfinite().all()


def test_positions_of_the_trained_grid_are_the_parameter_itself(model: CoCa) -> None:
    assert model.encoder.positions(4, 4) is model.encoder.positions_PD


def test_positions_interpolate_rows_as_rows_and_columns_as_columns() -> None:
    """Channel 0 rises with the row, channel 1 with the column, channel 2 is constant."""
    encoder = build(tiny()).encoder
    with torch.no_grad():
        encoder.positions_PD[:, 0] = torch.arange(4.0).repeat_interleave(4)
        encoder.positions_PD[:, 1] = torch.arange(4.0).repeat(4)
        encoder.positions_PD[:, 2] = 7.0
        wanted = encoder.positions(8, 4).reshape(8, 4, -1)
    torch.testing.assert_close(wanted[:, :, 0], wanted[:, :1, 0].expand(8, 4), rtol=0, atol=1e-5)
    assert (wanted[1:, 0, 0] > wanted[:-1, 0, 0]).all()
    torch.testing.assert_close(wanted[2:6, 0, 0], torch.tensor([0.75, 1.25, 1.75, 2.25]), rtol=0, atol=0.06)
    torch.testing.assert_close(wanted[:, :, 1], torch.arange(4.0).expand(8, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(wanted[:, :, 2], torch.full((8, 4), 7.0), rtol=0, atol=1e-5)
    with torch.no_grad():
        as_many_patches = encoder.positions(2, 8).reshape(2, 8, -1)
    torch.testing.assert_close(as_many_patches[:, :, 0], as_many_patches[:, :1, 0].expand(2, 8), rtol=0, atol=1e-5)
    assert (as_many_patches[0, 1:, 1] > as_many_patches[0, :-1, 1]).all()


def with_max_patches(max_patches: int) -> CoCa:
    config = tiny()
    vision = dataclasses.replace(config.vision, max_patches=max_patches)
    return all_random(build(dataclasses.replace(config, vision=vision))).requires_grad_(False)  # pyright: ignore


def test_prominence_is_the_squared_difference_from_the_edge() -> None:
    pixels_BCHW = random(2, 3, 8, 12)
    measured_BP = prominence(pixels_BCHW, 4)
    assert measured_BP.shape == (2, 6)
    for b in range(2):
        rows, columns = range(8), range(12)
        edge = [(y, x) for y in (0, 7) for x in columns] + [(y, x) for x in (0, 11) for y in rows]
        colour_C = torch.stack([pixels_BCHW[b, :, y, x] for y, x in edge]).mean(dim=0)
        for patch in range(6):
            top, left = 4 * (patch // 3), 4 * (patch % 3)
            patch_CHW = pixels_BCHW[b, :, top : top + 4, left : left + 4]
            expected = ((patch_CHW - colour_C[:, None, None]) ** 2).mean()
            torch.testing.assert_close(measured_BP[b, patch], expected, **EXACT)


def test_the_encoder_reads_the_most_prominent_patches_where_they_stand() -> None:
    """A drawing in two patches of a blank picture: the same as a plain encoder that is given only those two."""
    coca = with_max_patches(2)
    pixels_BCHW = torch.ones(2, 3, 16, 16, dtype=torch.float64)
    drawn = [(5, 10), (9, 6)]  # patch 4 * row + column; none touches the edge
    for b, patches in enumerate(drawn):
        for strength, patch in zip((3.0, 1.0), patches, strict=True):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            pixels_BCHW[b, :, top : top + 4, left : left + 4] += strength * random(3, 4, 4, seed=patch)
    measured = coca.encoder(pixels_BCHW)
    assert measured.shape == (2, 2, 32)
    for b, patches in enumerate(drawn):
        x_BPD = coca.encoder.patch(patchify(pixels_BCHW, 4)[b : b + 1, list(patches)])
        x_BPD = x_BPD + coca.encoder.positions_PD[list(patches)]
        for block in coca.encoder.blocks:
            x_BPD = block(x_BPD)
        torch.testing.assert_close(measured[b], x_BPD[0], **EXACT)
    assert coca.encode_image(pixels_BCHW).tokens.shape == (2, 5, 48)


def test_training_reads_the_patches_with_most_noise(pixels: Tensor) -> None:
    config = tiny()
    few = dataclasses.replace(config, vision=dataclasses.replace(config.vision, train_patches=3))
    reads_all, reads_few = (build(c).to(pixels.dtype).encoder.requires_grad_(False) for c in (config, few))
    noise_BP = torch.rand(len(pixels), config.vision.grid**2)
    kept_BP = torch.zeros_like(noise_BP).scatter(1, noise_BP.topk(3).indices, 1.0).bool()
    upscaled = kept_BP.unflatten(1, (config.vision.grid, -1)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    assert reads_few(pixels, noise_BP).shape[1] == 3
    changed = torch.where(upscaled, pixels, pixels + 1)  # what isn't drawn makes no difference
    assert torch.equal(reads_few(changed, noise_BP), reads_few(pixels, noise_BP))
    assert not torch.equal(reads_few(pixels + 1, noise_BP), reads_few(pixels, noise_BP))
    assert torch.equal(reads_few(pixels), reads_all(pixels)), "outside training all are read"


@pytest.mark.parametrize("max_patches", [0, 16, 17])
def test_as_many_patches_as_there_are_means_all_of_them(model: CoCa, pixels: Tensor, max_patches: int) -> None:
    assert torch.equal(with_max_patches(max_patches).encoder(pixels), model.encoder(pixels))


def test_a_larger_picture_is_read_at_its_most_prominent_patches_too() -> None:
    coca = with_max_patches(6)
    assert coca.encoder(random(2, 3, 24, 32)).shape == (2, 6, 32)
    assert coca.encoder(random(2, 3, 8, 8)).shape == (2, 4, 32)


def test_the_encoder_sees_where_a_patch_stands(model: CoCa, pixels: Tensor) -> None:
    moved = pixels.roll(4, dims=3)
    rolled_back = model.encoder(moved).unflatten(1, (4, 4)).roll(-1, dims=2).flatten(1, 2)
    assert not torch.allclose(rolled_back, model.encoder(pixels), atol=1e-3)


def test_the_encoder_is_not_causal(model: CoCa, pixels: Tensor) -> None:
    other = pixels.clone()
    other[:, :, -1, -1] += 1.0
    first = model.encoder(pixels)[:, 0] - model.encoder(other)[:, 0]
    assert first.abs().max() > 1e-6
