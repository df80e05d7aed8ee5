"""Pictures of every kind that people have: formats, frames, turns, transparency, depths and colour modes."""

import io
import warnings

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from tests.picture_files import encoded, noise, opened, png_of_16_bits

from opencoca.data.pixels import FORMATS, open_picture
from opencoca.errors import DataError


def test_every_kind_of_source_gives_the_same(tmp_path):
    image = Image.fromarray(noise)
    path = tmp_path / "a picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, noise):
        result = open_picture(source)  # pyright: ignore[reportArgumentType]
        assert result.mode == "RGB" and np.array_equal(np.asarray(result), noise)


@pytest.mark.parametrize("format", FORMATS)
def test_allowed_formats(format):
    result = opened(Image.new("RGB", (9, 5), (200, 30, 40)), format)
    assert result.shape == (5, 9, 3) and np.abs(result.astype(int) - (200, 30, 40)).max() < 8


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        result = opened(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (result == (255, 0, 0)).all(), format


@pytest.mark.parametrize(
    ("orientation", "corner"),  # where the black corner, stored at the top left, belongs
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_exif_rotation_is_applied(orientation, corner):
    image = Image.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = opened(image, "JPEG", exif=exif, quality=95)
    assert result.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    corners = {at: result[at].max() for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert corners.pop(corner) < 20 and min(corners.values()) > 235


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(noise), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_picture(data).size == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))  # hidden black
    image.paste((255, 0, 0, 255), (2, 0, 4, 2))
    options = {}
    if mode in ("L", "RGB"):
        image = image.convert(mode)
        options["transparency"] = 0 if mode == "L" else (0, 0, 0)
    result = opened(image.convert(mode) if mode != "P" else image.quantize(4), "PNG", **options)
    assert (result[:, :2] == 255).all()
    assert (result[:, 2:] != 255).any()


def test_half_transparent_is_half_white():
    assert np.abs(opened(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).astype(int) - 127).max() <= 1
    assert np.abs(np.asarray(open_picture(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8))).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert opened(Image.fromarray(values), format)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_of_every_kind(channels):
    """A ramp of grey or of colours, half of it see-through where there is alpha."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(4, axis=0)
    colours = ramp if channels < 3 else np.concatenate([ramp, ramp[:, ::-1], ramp], axis=2)
    alpha = np.full_like(ramp, 65535)
    alpha[:2] = 0
    values = np.concatenate([colours, alpha], axis=2) if channels in (2, 4) else colours
    result = np.asarray(open_picture(png_of_16_bits(values)))
    expected = np.broadcast_to(colours // 257, (4, 256, 3)).astype(int)
    assert np.abs(result[2:].astype(int) - expected[2:]).max() <= 1
    assert (result[:2] == 255).all() if channels in (2, 4) else np.abs(result[:2].astype(int) - expected[:2]).max() <= 1


def test_wide_and_float_grey_is_scaled_not_clipped():
    wide = Image.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))
    assert np.asarray(open_picture(wide))[0, :, 0].tolist() == [0, 128, 255]
    unit = Image.fromarray(np.array([[0, 0.5, 1, np.nan]], np.float32))
    assert np.asarray(open_picture(unit))[0, :, 0].tolist() == [0, 128, 255, 0]
    flat = Image.fromarray(np.full((2, 2), 7e9, np.float32))
    assert np.asarray(open_picture(flat)).shape == (2, 2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_converted(mode):
    image = Image.new("RGB", (4, 4), "white").convert("L" if mode == "1" else "RGB")
    image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4), (255, 128, 128))
    assert np.asarray(open_picture(image)).min() >= 254


def test_cmyk_jpeg():
    result = opened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert result[0, 0, 0] > 200 and result[0, 0, 1:].max() < 60


def test_the_inverted_inks_of_adobe():
    """Adobe writes ink 0 as 255 and says so in a marker; a reader that overlooks it shows the negative."""
    image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    image.paste((0, 255, 255, 0), (16, 0, 32, 16))
    data = encoded(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK" and "adobe" in stored.info
        stored.tile = [tile._replace(args=("CMYK", "")) for tile in stored.tile]
        assert stored.getpixel((4, 4)) == (255, 255, 255, 255), "the file itself holds inverted inks"
    result = np.asarray(open_picture(data)).astype(int)
    assert result[4, 4].min() > 245 and result[4, 28, 0] > 245 and result[4, 28, 1:].max() < 10


def test_avif_is_read_where_pillow_can():
    assert "AVIF" in FORMATS, "the wheels of Pillow that we install have its decoder"
    square = opened(Image.fromarray(noise).resize((64, 64)), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(square.astype(int) - np.asarray(Image.fromarray(noise).resize((64, 64)))).mean() < 3
    transparent = opened(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "AVIF")
    assert (transparent == 255).all()


def test_heic_is_read_with_its_package():
    image = Image.new("RGB", (64, 32), (200, 30, 40))
    image.paste((20, 60, 220), (32, 0, 64, 32))
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95)
    data = file.getvalue()
    result = np.asarray(open_picture(data)).astype(int)
    assert np.abs(result[:, 4:28] - (200, 30, 40)).max() < 8 and np.abs(result[:, 36:60] - (20, 60, 220)).max() < 8
    with pytest.raises(DataError, match="64 x 32 pixels, more than 100"):
        open_picture(data, max_pixels=100)
    for part in (0.02, 0.5, 0.9):
        with pytest.raises(DataError):
            open_picture(data[: int(len(data) * part)])


def test_an_image_of_the_caller_is_left_alone():
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    open_picture(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (1, 2, 3, 4)
