"""Pictures of every kind that people have, and of the kinds that break things."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opencoca.data.pixels import FORMATS, normalise, open_picture, to_square
from opencoca.errors import DataError

noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opened(image, format="PNG", **options):
    return np.asarray(open_picture(encoded(image, format, **options)))


def png_with_header(width, height, *chunks):
    """A PNG that claims any size and holds no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


def test_every_kind_of_source_gives_the_same(tmp_path):
    image = Image.fromarray(noise)
    path = tmp_path / "a picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, noise):
        result = open_picture(source)
        assert result.mode == "RGB" and np.array_equal(np.asarray(result), noise)


@pytest.mark.parametrize("format", FORMATS)
def test_allowed_formats(format):
    result = opened(Image.new("RGB", (9, 5), (200, 30, 40)), format)
    assert result.shape == (5, 9, 3) and np.abs(result.astype(int) - (200, 30, 40)).max() < 8


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS"])
def test_other_formats_are_refused(format):
    with pytest.raises(DataError, match=r"is not a JPEG, PNG, .* picture, or is damaged; convert"):
        open_picture(encoded(Image.new("RGB", (16, 16)), format))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        result = opened(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (result == (255, 0, 0)).all(), format


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (8, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    result = opened(image, exif=exif)
    assert result.shape == (8, 4, 3) and (result[0, 3] == 0).all() and (result[0, 0] == 255).all()


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


def test_huge_pictures_are_refused_from_the_header():
    for width, height in ((13_000, 13_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match=r"pixels.*make it smaller"):
                open_picture(png_with_header(width, height))
    with pytest.raises(DataError, match="60 x 40 pixels, more than 2399"):
        open_picture(noise, max_pixels=2399)
    assert open_picture(encoded(Image.fromarray(noise)), max_pixels=2400).size == (60, 40)


def test_bad_paths_are_named_with_the_repair(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.fromarray(noise), "JPEG")[:900])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, message in {
        "none.png": "does not exist; check the path",
        "empty.png": r"is empty \(0 bytes\); copy or download it again",
        "text.png": "is not a JPEG, .* convert or replace it",
        "cut.jpg": "is truncated or damaged .*; copy or download it again",
        "pipe.png": "is not a plain file; give a picture file",
        "loop.png": "can't be opened|does not exist",
        "": "is a folder; give a picture file in it",
        "nul\0.png": "can't be opened|does not exist",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_picture(tmp_path / name)
        assert str(tmp_path / name).rstrip("/") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(Image.fromarray(noise)))
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(DataError, match=r"secret.png can't be read \(permission denied\)"):
        open_picture(tmp_path / "secret.png")


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_pictures_are_refused(format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(noise), format, **options)
    for part in (0.02, 0.3, 0.7):
        with pytest.raises(DataError):
            open_picture(data[: int(len(data) * part)])


def test_bad_values_in_memory_are_refused():
    for source, message in [
        (b"", "is empty"),
        (noise / 255, r"float64 \[40, 60, 3\]; give uint8"),
        (noise[:, :, :2], r"uint8 \[40, 60, 2\]"),
        (noise[None], r"uint8 \[1, 40, 60, 3\]"),
        (noise[:0], "60 x 0 pixels"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
        (None, "can't be a NoneType"),
        ([noise], "can't be a list"),
    ]:
        with pytest.raises(DataError, match=message):
            open_picture(source)


def test_an_error_uses_the_given_name():
    with pytest.raises(DataError, match=r"^upload 3 is empty"):
        open_picture(b"", name="upload 3")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.data()
)
def test_damaged_bytes_give_a_picture_or_a_data_error(format, changes, data):
    content = bytearray(encoded(Image.fromarray(noise[:12, :12]), format))
    for at, value in changes:
        content[at % len(content)] = value
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert open_picture(content, max_pixels=1_000_000).mode == "RGB"
        except DataError as error:
            assert "in memory" in str(error)


def test_an_image_of_the_caller_is_left_alone():
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    open_picture(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (1, 2, 3, 4)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (96, 96), (97, 33), (31, 200), (500, 333), (20, 400)])
def test_crop_is_resize_then_centre_crop(size):
    image = Image.fromarray(noise).resize(size)
    width, height = size
    wide, high = int(96 * width / min(size)), int(96 * height / min(size))
    left, top = round((wide - 96) / 2.0), round((high - 96) / 2.0)
    expected = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 96, top + 96))
    square = to_square(image, 96)
    assert square.shape == (96, 96, 3) and square.dtype == np.uint8
    # The very long one is resampled in one step: measured 1 on this smooth picture, up to 20 on noise that saturates.
    assert np.abs(square.astype(int) - np.asarray(expected)).max() <= (1 if max(size) > 16 * min(size) else 0)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    cropped = to_square(image, 20)
    assert (cropped[:, 2:18] == (0, 0, 255)).all()
    padded = to_square(image, 30, fit="pad")
    assert padded.shape == (30, 30, 3) and (padded[:10] == 255).all() and (padded[20:] == 255).all()
    assert (padded[10:20, 1:8] == (255, 0, 0)).all() and (padded[10:20, 12:18] == (0, 0, 255)).all()


def test_extreme_shapes_cost_no_memory():
    for size in ((1, 200_000), (200_000, 1), (1, 1)):
        for fit in ("crop", "pad"):
            assert to_square(Image.new("RGB", size, "red"), 32, fit).shape == (32, 32, 3)


def test_an_unknown_fit_is_refused():
    with pytest.raises(DataError, match="fit is 'stretch'; choose 'crop' or 'pad'"):
        to_square(Image.new("RGB", (4, 4)), 4, fit="stretch")


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
