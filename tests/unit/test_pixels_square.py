"""From a picture to what the model sees: crop, pad and squash, the filter, every mode in its colours, the formula."""

import numpy as np
import pytest
from PIL import Image
from tests.picture_files import CROP, PAD, SQUASH, encoded, noise, png_of_16_bits

from opencoca.config import PixelConfig
from opencoca.data.pixels import normalise, open_picture, to_square
from opencoca.errors import ConfigError, DataError


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (96, 96), (97, 33), (31, 200), (500, 333), (20, 400)])
def test_crop_is_resize_then_centre_crop(size):
    image = Image.fromarray(noise).resize(size)
    width, height = size
    wide, high = int(96 * width / min(size)), int(96 * height / min(size))
    left, top = round((wide - 96) / 2.0), round((high - 96) / 2.0)
    expected = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 96, top + 96))
    square = to_square(image, 96, CROP)
    assert square.shape == (96, 96, 3) and square.dtype == np.uint8
    # The very long one is resampled in one step: measured 1 on this smooth picture, up to 20 on noise that saturates.
    assert np.abs(square.astype(int) - np.asarray(expected)).max() <= (1 if max(size) > 16 * min(size) else 0)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    cropped = to_square(image, 20, CROP)
    assert (cropped[:, 2:18] == (0, 0, 255)).all()
    padded = to_square(image, 30, PAD)
    assert padded.shape == (30, 30, 3) and (padded[:10] == 255).all() and (padded[20:] == 255).all()
    assert (padded[10:20, 1:8] == (255, 0, 0)).all() and (padded[10:20, 12:18] == (0, 0, 255)).all()


def test_extreme_shapes_cost_no_memory():
    for size in ((1, 200_000), (200_000, 1), (1, 1)):
        for pixels in (CROP, PAD, SQUASH):
            square = to_square(Image.new("RGB", size, "red"), 32, pixels)
            assert square.shape == (32, 32, 3) and (square == (255, 0, 0)).all(axis=2).any()


def test_squash_keeps_everything_and_no_proportion():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (150, 0, 300, 100))
    square = to_square(image, 30, SQUASH)
    assert (square[:, :13] == (255, 0, 0)).all() and (square[:, 17:] == (0, 0, 255)).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_filter_is_the_one_asked_for(fit):
    image = Image.fromarray(noise[:, :40])
    for resample, wanted in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        square = to_square(image, 17, PixelConfig(fit=fit, resample=resample))  # pyright: ignore[reportArgumentType]
        assert np.array_equal(square, np.asarray(image.resize((17, 17), wanted)))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (33, 97), (500, 333), (7, 5)])
def test_pad_is_scaled_then_centred_in_the_fill(size):
    image = Image.fromarray(noise).resize(size)
    ratio = max(size) / 32
    wide, high = round(size[0] / ratio), round(size[1] / ratio)
    left, top = (32 - wide) // 2, (32 - high) // 2
    square = to_square(image, 32, PixelConfig(fit="pad", fill=7))
    expected = image.resize((wide, high), Image.Resampling.BICUBIC)
    assert np.array_equal(square[top : top + high, left : left + wide], np.asarray(expected))
    outside = np.ones((32, 32), bool)
    outside[top : top + high, left : left + wide] = False
    assert outside.any() and (square[outside] == 7).all()


@pytest.mark.parametrize("mode", ["P", "1"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_indexed_pictures_can_be_scaled_as_clip_does(mode, fit):
    image = Image.fromarray(noise[:, :40])
    image = image.quantize(8) if mode == "P" else image.convert("1")
    picture, colours = open_picture(image), {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    nearest = to_square(picture, 30, PixelConfig(fit=fit, indexed="nearest"))
    assert {tuple(c) for c in nearest.reshape(-1, 3).tolist()} <= colours
    smooth = to_square(picture, 30, PixelConfig(fit=fit))
    assert np.array_equal(smooth, to_square(Image.fromarray(np.asarray(picture)), 30, PixelConfig(fit=fit)))
    assert not np.array_equal(smooth, nearest)


def test_a_transparent_colour_table_is_scaled_smoothly_whatever_is_asked():
    image = Image.fromarray(noise[:, :40]).quantize(8)
    picture = open_picture(encoded(image, transparency=0))
    assert (np.asarray(picture) == 255).all(axis=2).any()
    assert np.array_equal(
        to_square(picture, 30, PixelConfig(indexed="nearest")), to_square(picture, 30, PixelConfig(indexed="smooth"))
    )


def drawn():
    """Four fields of colour, none like another, 64 by 48."""
    image = Image.new("RGB", (64, 48), (250, 240, 230))
    for colour, box in (
        ((200, 30, 40), (0, 0, 32, 24)),
        ((30, 60, 200), (32, 0, 64, 24)),
        ((20, 90, 20), (0, 24, 32, 48)),
    ):
        image.paste(colour, box)
    return image


def on_glass(image):
    """The picture with its lower right field see-through, and its hidden colour black."""
    glass = image.convert("RGBA")
    glass.paste((0, 0, 0, 0), (32, 24, 64, 48))
    return glass


def upside_down(image):
    """The picture stored upside down, with the EXIF entry that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(image.rotate(180), "JPEG", quality=95, subsampling=0, exif=exif)


MODES = {
    "grey": lambda image: encoded(image.convert("L")),
    "grey JPEG": lambda image: encoded(image.convert("L"), "JPEG", quality=95),
    "palette": lambda image: encoded(image.quantize(16)),
    "palette with transparency": lambda image: encoded(on_glass(image).quantize(16)),
    "grey with alpha": lambda image: encoded(on_glass(image).convert("LA")),
    "colour with alpha": lambda image: encoded(on_glass(image)),
    "inks": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=95),
    "inks in TIFF": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "16-bit grey": lambda image: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "16-bit colour": lambda image: png_of_16_bits(np.asarray(image).astype(np.uint16) * 257),
    "upside down": upside_down,
    "animated GIF": lambda image: encoded(
        image.quantize(16), "GIF", save_all=True, append_images=[Image.new("P", image.size)]
    ),
    "animated WebP": lambda image: encoded(
        image, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", image.size)]
    ),
    "animated PNG": lambda image: encoded(image, save_all=True, append_images=[Image.new("RGB", image.size)]),
    "AVIF": lambda image: encoded(image, "AVIF", quality=95, subsampling="4:4:4"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reaches_the_model_upright_and_in_its_colours(mode):
    image, levels = drawn(), np.zeros((1, 3, 2, 2))
    if "alpha" in mode or "transparency" in mode:
        image.paste((255, 255, 255), (32, 24, 64, 48))
    if "grey" in mode:
        image = image.convert("L").convert("RGB")
    data = MODES[mode](drawn())
    levels = normalise(to_square(open_picture(data), 32, CROP), (0, 0, 0), (1, 1, 1))[0] * 255
    expected = to_square(image, 32, CROP).transpose(2, 0, 1)
    away = [slice(2, 14), slice(18, 30)]  # from the edges of the fields, where lossy formats smear
    worst = max(np.abs(levels[:, y, x] - expected[:, y, x]).max() for y in away for x in away)
    assert worst <= (8 if b"JFIF" in data or b"Adobe" in data or mode == "AVIF" else 2)


def test_one_pixel_fills_the_square():
    for data in (encoded(Image.new("RGB", (1, 1), (10, 200, 30))), encoded(Image.new("P", (1, 1)), "GIF")):
        for pixels in (CROP, PAD, SQUASH):
            square = to_square(open_picture(data), 16, pixels)
            assert square.shape == (16, 16, 3) and (square == square[0, 0]).all()


def test_an_unknown_fit_and_an_impossible_fill_are_refused():
    with pytest.raises(DataError, match="fit is 'stretch'; choose 'crop', 'pad' or 'squash'"):
        to_square(Image.new("RGB", (4, 4)), 4, PixelConfig(fit="stretch"))  # pyright: ignore[reportArgumentType]
    for fill in (-1, 256):
        with pytest.raises(ConfigError, match=f"fill {fill} must be a level from 0"):
            PixelConfig(fill=fill)


def test_normalise_is_the_formula():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    batch = np.stack([noise, noise[::-1]])
    result = normalise(batch, mean, std)
    assert result.dtype == np.float32 and result.shape == (2, 3, 40, 60) and result.flags.c_contiguous
    expected = ((batch / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-7)
    assert np.array_equal(normalise(noise, mean, std), result[:1])
    with pytest.raises(DataError, match="give uint8"):
        normalise(batch.astype(np.float32), mean, std)
    with pytest.raises(DataError, match="give uint8"):
        normalise(batch.transpose(0, 3, 1, 2), mean, std)
